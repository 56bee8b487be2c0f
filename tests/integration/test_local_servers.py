"""How the backing servers are started, protected and ended: accounts, folders, passwords, sudden deaths."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest

from guidehall.local.backing import BackingServers
from guidehall.local.binaries import find_postgres
from guidehall.local.descendants import descendants, identity, working_in
from guidehall.local.errors import StackError
from guidehall.local.external import ExternalNats, ExternalPostgres, ExternalS3
from guidehall.local.files import Secrets
from guidehall.local.postgres import PostgresServer
from guidehall.local.s3 import create_bucket
from tests.fixtures.backing import backing_servers
from tests.missing import missing

_ROOT = Path(__file__).parents[2]
_NOBODY = 65_534
needs_root = pytest.mark.usefixtures("root")


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        missing("only root can change to another account")


_START = """
import json, sys, time
from pathlib import Path
from guidehall.local.backing import BackingServers
servers = BackingServers(Path(sys.argv[1]))
servers.start()
servers.create_database("kept")
print(json.dumps({"home": str(servers.postgres.home)}), flush=True)
sys.stdin.read()
servers.stop()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other accounts may pass, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="guidehall-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@contextmanager
def _running(
    folder: Path, interpreter: str = sys.executable, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Backing servers in a process of their own, which stops them when its input ends."""
    process = subprocess.Popen(
        [interpreter, "-c", _START, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        **options,
    )
    with process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


def _wait_until_gone(pids: list[int], seconds: float = 20.0) -> list[int]:
    """Those of `pids` that still run after a while."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        pids = [pid for pid in pids if identity(pid) is not None]
        if not pids:
            break
        pause.wait(0.02)
    return pids


def test_nothing_outlives_a_killed_supervisor_and_the_next_one_finds_its_data(folder: Path) -> None:
    with _running(folder) as (process, _):
        pids = descendants(process.pid)
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
        process.send_signal(signal.SIGKILL)
        process.wait()

        survivors = _wait_until_gone(pids)

    assert {"postgres", "nats-server", "rclone"} <= names
    assert survivors == []
    with BackingServers(folder) as servers:
        databases = servers.postgres.run_sql("SELECT datname FROM pg_database")
    assert "kept" in databases.split()


def test_a_killed_postgres_that_left_its_lock_file_is_started_again(folder: Path) -> None:
    with BackingServers(folder) as servers:
        data = servers.postgres.home / "data"
    # The number of a process that lives and is no server, as after a reboot.
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n0\n5432\n\n127.0.0.1\n0 0\nready\n")

    with BackingServers(folder) as servers:
        assert servers.postgres.run_sql("SELECT 1") == "1\n"


@pytest.mark.slow
def test_no_backend_of_a_killed_postgres_goes_on_beside_the_next_one(folder: Path) -> None:
    with BackingServers(folder) as servers:
        # All but the server itself have no children.
        backend = next(pid for pid in working_in(servers.postgres.home / "data") if not descendants(pid))
        # It cannot notice that its server is gone.
        os.kill(backend, signal.SIGSTOP)
        servers.kill("postgres")
    before = identity(backend)

    with BackingServers(folder) as servers:
        assert servers.postgres.run_sql("SELECT 1") == "1\n"
        assert before is not None
        assert identity(backend) is None


@needs_root
def test_as_root_in_a_closed_folder_the_database_moves_out_and_is_found_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    data = tmp_path / "data"
    data.mkdir()
    with BackingServers(data) as servers:
        servers.create_database("kept")
        home = servers.postgres.home
        owners = (home.stat().st_uid, (home / "data").stat().st_uid)
    try:
        with BackingServers(data) as servers:
            databases = servers.postgres.run_sql("SELECT datname FROM pg_database").split()
            same_home = servers.postgres.home == home
    finally:
        shutil.rmtree(home)

    assert not home.is_relative_to(tmp_path)
    assert owners[0] == 0
    assert owners[1] != 0
    assert same_home
    assert "kept" in databases


@needs_root
def test_as_root_binaries_in_a_closed_home_are_copied_to_where_the_database_may_run_them(
    folder: Path, tmp_path: Path
) -> None:
    original = find_postgres()
    packages = tmp_path / "site-packages"
    package = packages / original.prefix.parent.name
    shutil.copytree(original.prefix, package / original.prefix.name)
    shutil.copytree(original.libraries, packages / original.libraries.name)
    (package / "__init__.py").touch()
    tmp_path.chmod(0o700)

    with _running(folder, env=os.environ | {"PYTHONPATH": str(packages)}) as (process, _):
        programs = {Path(f"/proc/{pid}/exe").readlink() for pid in descendants(process.pid) if identity(pid)}

    postgres = [path for path in programs if path.name == "postgres"]
    assert process.returncode == 0
    assert postgres
    assert all(path.is_relative_to(folder) and path.stat().st_uid == 0 for path in postgres)


@pytest.fixture
def ordinary() -> dict[str, Any]:
    """How to run Python as an ordinary user: with an interpreter that it may use."""
    site_packages = Path(pytest.__file__).parents[1]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": f"{_ROOT}:{site_packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    account = {"user": _NOBODY, "group": _NOBODY, "extra_groups": [], "env": environment}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            command = [interpreter, "-c", "import guidehall.local.backing"]
            if subprocess.run(command, **account, cwd="/", check=False, capture_output=True).returncode == 0:
                return account | {"interpreter": interpreter}
        except OSError:
            continue
    return missing("no interpreter that an ordinary user may run")


def _owner(pid: int) -> int | None:
    """The account of a process; None for one that has ended since it was listed."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except FileNotFoundError:
        return None


@needs_root
def test_an_ordinary_user_needs_no_other_account(folder: Path, ordinary: dict[str, Any]) -> None:
    os.chown(folder, _NOBODY, _NOBODY)
    folder.chmod(0o700)

    with _running(folder, **ordinary) as (process, facts):
        owners = {owner for pid in descendants(process.pid) if (owner := _owner(pid)) is not None}

    assert process.returncode == 0
    assert Path(facts["home"]).is_relative_to(folder)
    assert owners == {_NOBODY}


def test_secrets_are_files_of_their_owner_and_on_no_command_line(backing: BackingServers) -> None:
    folder = backing.folder
    secrets = list((folder / "secrets").iterdir())
    command_lines = b"".join(
        (Path("/proc") / str(pid) / "cmdline").read_bytes()
        for pid in descendants(os.getpid())
        if identity(pid)
    )

    assert b"nats-server" in command_lines
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert (folder / "secrets").stat().st_mode & 0o777 == 0o700
    assert not [path.name for path in secrets if path.read_bytes().strip() in command_lines]
    logs = b"".join(path.read_bytes() for path in (folder / "logs").iterdir())
    assert not [path.name for path in secrets if path.read_bytes().strip() in logs]


def test_servers_listen_on_loopback_only(backing: BackingServers) -> None:
    inodes = set()
    for pid in [process for process in descendants(os.getpid()) if identity(process)]:
        for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
            inodes.add(str(descriptor.readlink()))
    listening = [
        fields[1]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    ]

    assert len(listening) >= 4
    # The second is the first as programs that speak IPv6 too have it.
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert {address.split(":")[0] for address in listening} <= loopback


@pytest.mark.parametrize(
    ("user", "subject", "allowed"),
    [
        ("trainer", "jobs.cpu", True),
        ("trainer", "events.job.1", True),
        ("trainer", "model.published", False),
        ("storage", "model.published", True),
        ("storage", "dataset.version_created", True),
        ("storage", "jobs.cpu", False),
        ("inference", "model.published", False),
        ("worker", "jobs.cpu", False),
        ("worker", "events.job.1", False),
        ("worker", "$JS.API.STREAM.DELETE.JOBS", False),
        ("gateway", "events.job.1", False),
    ],
)
def test_a_nats_user_may_publish_its_own_subjects_only(
    backing: BackingServers, user: str, subject: str, allowed: bool
) -> None:
    answers = _say_to_nats(backing, user, backing.nats.password(user), f"PUB {subject} 0\r\n\r\n")

    assert (b"Permissions Violation for Publish" not in answers) is allowed, answers
    assert b"PONG" in answers


def _say_to_nats(backing: BackingServers, user: str, password: str, command: str) -> bytes:
    """What the server answers to a command of a user, up to the answer to a PING after it, or to the end."""
    address = urlsplit(backing.nats.url)
    greeting = json.dumps({"user": user, "pass": password, "verbose": False})
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(f"CONNECT {greeting}\r\n{command}PING\r\n".encode())
        answers = b""
        while b"PONG" not in answers and (data := connection.recv(4096)):
            answers += data
    return answers


@pytest.fixture
def own_backing() -> Iterator[BackingServers]:
    """Servers whose streams nobody else made."""
    with backing_servers() as servers:
        yield servers


async def test_the_worker_hears_doorbells_that_the_trainer_rings(own_backing: BackingServers) -> None:
    broker = own_backing.nats
    trainer = await nats.connect(broker.url, user="trainer", password=broker.password("trainer"))
    worker = await nats.connect(broker.url, user="worker", password=broker.password("worker"))
    await trainer.jetstream().add_stream(name="JOBS", subjects=["jobs.>"])
    try:
        subscription = await worker.jetstream().pull_subscribe("jobs.cpu", durable="cpu", stream="JOBS")
        await trainer.jetstream().publish("jobs.cpu", b"ring")
        (message,) = await subscription.fetch(1, timeout=5)
        await message.ack_sync()
    finally:
        await worker.close()
        await trainer.close()

    assert message.data == b"ring"


def test_a_nats_user_needs_its_password(backing: BackingServers) -> None:
    answers = _say_to_nats(backing, "trainer", "guess", "")

    assert b"-ERR 'Authorization Violation'" in answers
    assert b"PONG" not in answers


def test_s3_needs_its_key(backing: BackingServers) -> None:
    backing.create_bucket("local-things")

    with pytest.raises(StackError, match="refused bucket"):
        create_bucket(backing.s3.endpoint, backing.s3.access_key, "guess", "local-things", secure=False)


def test_external_servers_are_reached_by_url(backing: BackingServers, tmp_path: Path) -> None:
    # Not a superuser: one who may make roles and databases is enough.
    backing.postgres.run_sql(
        r"""CREATE ROLE "local: maker" LOGIN CREATEROLE CREATEDB PASSWORD 'p@ss: \\word'"""
    )
    address = f"{backing.postgres.host}:{backing.postgres.port}"
    secrets = Secrets(tmp_path)

    postgres = ExternalPostgres(f"postgresql://local%3A%20maker:p%40ss%3A%20%5C%5Cword@{address}/", secrets)
    postgres.provide(("local_external",))
    postgres.provide(("local_external",))
    nats_server = ExternalNats(
        backing.nats.url.replace("//", f"//admin:{backing.nats.password('admin')}@"), secrets
    )
    nats_server.check()
    s3 = ExternalS3(
        f"http://{backing.s3.access_key}:{backing.s3.secret_key}@{backing.s3.endpoint}/local-ext", secrets
    )
    s3.check()

    access = postgres.access("local_external")
    owner = backing.postgres.run_sql(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'local_external'"
    )
    assert (access.user, owner) == ("local_external", "local_external\n")
    assert nats_server.access("trainer").user == "admin"
    assert s3.access().bucket == "local-ext"


def test_an_external_server_that_refuses_is_named_without_the_password(
    backing: BackingServers, tmp_path: Path
) -> None:
    address = f"{backing.postgres.host}:{backing.postgres.port}"
    postgres = ExternalPostgres(f"postgresql://postgres:hunter2@{address}", Secrets(tmp_path))

    with pytest.raises(StackError, match=f"PostgreSQL at {address}") as caught:
        postgres.provide(("local_refused",))

    assert "hunter2" not in str(caught.value)


def test_the_postgres_that_runs_is_never_root(backing: BackingServers) -> None:
    pids = [pid for pid in descendants(os.getpid()) if identity(pid)]
    postgres = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"]

    assert isinstance(backing.postgres, PostgresServer)
    assert postgres
    assert 0 not in {Path(f"/proc/{pid}").stat().st_uid for pid in postgres}
