"""A PostgreSQL server of our own: made, started and given roles and databases, on loopback with passwords."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from guidehall.local.access import PostgresAccess
from guidehall.local.accounts import account_for_postgres, can_enter
from guidehall.local.binaries import PostgresInstall, find_postgres
from guidehall.local.descendants import name_of, working_in
from guidehall.local.errors import StackError
from guidehall.local.files import Secrets, read_json, write_json
from guidehall.local.ports import LOOPBACK
from guidehall.local.processes import Account, Program, Run

SUPERUSER = "postgres"
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# Roots for data of a server that may not enter our folder, best first: what is in /var/tmp may be swept away.
_ELSEWHERE = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 (mkdtemp makes the folder in it)
_PREFIX = "guidehall-"
# Says in our folder where that is.
_RECORD = "elsewhere.json"
_ORPHANS_SECONDS = 5.0
_POLL_SECONDS = 0.05
# Modest: a handful of services on a machine of two cores that also trains networks.
_SETTINGS = {
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "effective_cache_size": "512MB",
    "max_wal_size": "512MB",
    "autovacuum_max_workers": "1",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "log_line_prefix": "%m [%p] %u ",
}
# For tests alone: fast, and safe as long as the machine itself does not fail.
# What is committed is with the kernel, so that a killed server forgets nothing of it.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


@dataclass(frozen=True)
class Database:
    """How to reach one database."""

    host: str
    port: int
    database: str
    user: str
    password: str


class PostgresServer:
    """PostgreSQL below `folder`, or elsewhere when the account that it runs as cannot enter that.

    Args:
        folder: the data folder of the stack.
        port: where it listens on loopback.
        secrets: where the superuser's password is kept.
        durable: False gives up safety against power loss for speed, for tests.
    """

    def __init__(self, folder: Path, port: int, secrets: Secrets, durable: bool = True) -> None:
        self.host = LOOPBACK
        self.port = port
        self.user = SUPERUSER
        self.password = secrets.text("postgres-superuser")
        self._account = account_for_postgres()
        self._secrets = secrets
        self._durable = durable
        self.home = _home(folder, self._account)
        self._data = self.home / "data"
        self._original = find_postgres(_version_of(self._data))

    def program(self) -> Program:
        """The server as a program to supervise."""
        install = self._install()
        settings = _SETTINGS | {"listen_addresses": self.host, "port": str(self.port)}
        if not self._durable:
            settings |= _NOT_DURABLE
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            argv=(str(install.program("postgres")), "-D", str(self._data), *options),
            environment=_environment(),
            probe=f"postgres://{self.host}:{self.port}",
            prepare=self._prepare,
            # SIGINT closes connections and stops; SIGTERM would wait for clients to leave.
            stop_signal=signal.SIGINT,
            stop_seconds=20.0,
            account=self._account,
        )

    def create_database(self, name: str, password: str) -> Database:
        """Makes the database `name`, owned by a role of that name that owns nothing else; harmless to repeat.

        Raises:
            StackError: the name is not a plain identifier, or the server refused.
        """
        if not _IDENTIFIER.fullmatch(name):
            raise StackError(f"not a database name: {name!r}")
        self.run_sql(create_database_sql(name, password))
        return Database(self.host, self.port, name, name, password)

    def provide(self, names: tuple[str, ...]) -> None:
        """Makes sure of a database and a role for each name, with a password of its own."""
        for name in names:
            self.create_database(name, self._secrets.text(f"postgres-{name}"))

    def access(self, name: str) -> PostgresAccess:
        """How a service reaches the database `name`."""
        return PostgresAccess(self.host, self.port, name, name, self._secrets.path(f"postgres-{name}"))

    def generation(self) -> str:
        """Text that is another one for each database cluster ever made here; there must be one."""
        return f"made {(self._data / 'PG_VERSION').stat().st_mtime_ns}"

    def run_sql(self, sql: str) -> str:
        """Runs a psql script as superuser and returns what it prints."""
        # The script goes by standard input and the password by file: other accounts can read command lines.
        passfile = self._secrets.keep("pgpass", passfile_line(self.user, self.password))
        return run_psql(self._original, self.host, self.port, self.user, passfile, sql)

    @property
    def is_new(self) -> bool:
        """Whether there is no database yet."""
        return _version_of(self._data) is None

    def remove(self) -> None:
        """Removes the data, wherever they are; for tests."""
        shutil.rmtree(self.home)

    def _install(self) -> PostgresInstall:
        """What to run: the original, or a copy if its account cannot reach that (homes are often closed)."""
        original = self._original
        if self._account is None or can_enter(self._account, original.program("postgres").parent):
            return original
        return original.copy_to(self.home)

    def _prepare(self, run: Run) -> None:
        if _version_of(self._data) is None:
            self._initialise(run)
        self._end_orphans()
        # Left by a killed server. None runs on these data: only the holder of the data folder's lock gets
        # here, after ending what an earlier supervisor left. The number in it may be anybody's by now.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _end_orphans(self) -> None:
        """Sees to it that no backend outlives a killed server: it would go on writing beside a new one's.

        Backends end by themselves, but not before they look, and a long statement seldom looks.
        """
        give_up = time.monotonic() + _ORPHANS_SECONDS
        while orphans := [pid for pid in working_in(self._data.resolve()) if name_of(pid) == "postgres"]:
            if time.monotonic() > give_up:
                for pid in orphans:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _initialise(self, run: Run) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        unfinished = self.home / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        passfile = self.home / "superuser-password"
        passfile.touch(mode=0o600)
        passfile.write_text(self.password)
        if self._account is not None:
            os.chown(unfinished, self._account.user, self._account.group)
            os.chown(passfile, self._account.user, self._account.group)
        try:
            run(
                (
                    str(self._install().program("initdb")),
                    f"--pgdata={unfinished}", f"--username={SUPERUSER}",
                    f"--pwfile={passfile}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C",
                    "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
                    *(() if self._durable else ("--no-sync",)),
                ),
                _environment(),
                self._account,
            )  # fmt: skip
        finally:
            passfile.unlink()
        # Renamed when complete, so that an interrupted start leaves nothing that looks like a database.
        unfinished.rename(self._data)


def create_database_sql(name: str, password: str) -> str:
    """A psql script that makes a role and its database unless they exist, and sets the role's password."""
    # Names are checked by `create_database`. The role is granted to the one who makes it, who need not be a
    # superuser and must be a member of the role to give it a database.
    return f"""
SELECT 'CREATE ROLE "{name}"' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') \\gexec
ALTER ROLE "{name}" LOGIN PASSWORD '{scram_verifier(password)}';
GRANT "{name}" TO CURRENT_USER;
SELECT 'CREATE DATABASE "{name}" OWNER "{name}"'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec
REVOKE ALL ON DATABASE "{name}" FROM PUBLIC;
"""  # noqa: S608


def scram_verifier(password: str) -> str:
    """What the server stores of a password (RFC 5803): so it never sees, or logs, the password itself."""
    salt, iterations = os.urandom(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def passfile_line(user: str, password: str) -> str:
    """A line of a password file that is good for every database of every server."""
    escaped = (re.sub(r"([\\:])", r"\\\1", text) for text in (user, password))
    return ":".join(("*", "*", "*", *escaped)) + "\n"


def run_psql(install: PostgresInstall, host: str, port: int, user: str, passfile: Path, sql: str) -> str:
    """Runs a psql script against any server and returns what it prints.

    Raises:
        StackError: the server refused something, or did not answer within a minute.
    """
    environment = _environment() | {
        "PGHOST": host,
        "PGPORT": str(port),
        "PGUSER": user,
        "PGDATABASE": "postgres",
        "PGPASSFILE": str(passfile),
        "PGCONNECT_TIMEOUT": "10",
    }
    command = [str(install.program("psql")), "-XqAt", "-v", "ON_ERROR_STOP=1"]
    try:
        done = subprocess.run(
            command, input=sql, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"PostgreSQL at {host}:{port} did not answer within a minute") from error
    if done.returncode != 0:
        raise StackError(f"PostgreSQL at {host}:{port}: {done.stderr.strip()}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _home(folder: Path, account: Account | None) -> Path:
    """The folder of the server's files, whose parents its account may pass; recorded once chosen."""
    home = folder / "postgres"
    home.mkdir(parents=True, exist_ok=True)
    if account is None:
        return home
    for passed in (folder, home):
        passed.chmod(passed.stat().st_mode | 0o011)
    record = home / _RECORD
    elsewhere = read_json(record).get("home")
    if elsewhere is None and can_enter(account, home):
        return home
    if elsewhere is None:
        elsewhere = _make_elsewhere()
        write_json(record, {"home": elsewhere})
    if not Path(elsewhere).is_dir():
        raise StackError(
            f"the database's folder {elsewhere} is gone; restore it, or remove {record} to begin anew"
        )
    return Path(elsewhere)


def home_elsewhere(folder: Path) -> Path | None:
    """The folder of the server's files outside `folder`; None if there is none."""
    text = read_json(folder / "postgres" / _RECORD).get("home")
    home = Path(text) if isinstance(text, str) else None
    made = home is not None and home.parent in _ELSEWHERE and home.name.startswith(_PREFIX)
    return home if made and home is not None and home.is_dir() else None


def _make_elsewhere() -> str:
    for root in _ELSEWHERE:
        with contextlib.suppress(OSError):
            made = tempfile.mkdtemp(prefix=_PREFIX, dir=root)
            # Ours, and only to be passed through: the account owns nothing but the data in it.
            Path(made).chmod(0o711)
            return made
    raise StackError(f"cannot make a folder for PostgreSQL's data in {' or '.join(map(str, _ELSEWHERE))}")


def _version_of(data: Path) -> int | None:
    """The major version of the database in `data`; None if there is none."""
    try:
        return int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None
