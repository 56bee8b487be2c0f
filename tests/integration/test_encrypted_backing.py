"""PostgreSQL, NATS and S3 over TLS: who is trusted, who is let in, and what is said of the others."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from guidehall.core.bus import EventBus
from guidehall.core.errors import Unavailable
from guidehall.core.postgres import Listener, create_engine, wait_until_ready
from guidehall.core.settings import NatsSettings, PostgresSettings, S3Settings, SettingsError, TlsSettings
from guidehall.core.tls import client_context
from guidehall.local import processes
from guidehall.local.accounts import account_for_postgres
from guidehall.local.backing import BackingServers
from guidehall.local.files import Secrets
from guidehall.local.nats import NatsServer
from guidehall.local.ports import Ports
from guidehall.local.processes import RestartPolicy, Run
from guidehall.local.s3 import S3Server
from guidehall.local.supervisor import Supervisor
from services.storage.objects import ObjectStore
from services.storage.settings import TransferSettings
from tests.fixtures.certificates import Authority
from tests.fixtures.storage import READY
from tests.missing import missing
from tests.processes import Program, Server

pytestmark = pytest.mark.timeout(240)

# "mutual" must show a certificate besides its password; without TLS only the probe of readiness is heard.
_ACCESS = """
host    guidehall guidehall 127.0.0.1/32 scram-sha-256
hostssl all       postgres  127.0.0.1/32 scram-sha-256
hostssl all       mutual    127.0.0.1/32 scram-sha-256 clientcert=verify-ca
hostssl all       app       127.0.0.1/32 scram-sha-256
"""
UNTRUSTED = "does not vouch for the server"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's own temporary folder: as root, PostgreSQL runs as another account, and that one is closed.
    made = Path(tempfile.mkdtemp(prefix="guidehall-tls-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def client(authority: Authority) -> TlsSettings:
    """Trusts the authority and has its certificate."""
    cert, key = authority.issue("client")
    return TlsSettings(ca_file=authority.file, cert_file=cert, key_file=key)


@pytest.fixture
def foreigner(authority: Authority, stranger: Authority) -> TlsSettings:
    """Trusts the authority and has somebody else's certificate."""
    cert, key = stranger.issue("foreigner")
    return TlsSettings(ca_file=authority.file, cert_file=cert, key_file=key)


@contextmanager
def running(folder: Path, program: processes.Program, *arguments: str) -> Iterator[None]:
    supervisor = Supervisor(folder / "logs", RestartPolicy(longest_seconds=1.0))
    supervisor.start([dataclasses.replace(program, argv=(*program.argv, *arguments))])
    try:
        yield
    finally:
        supervisor.stop()


def find_postgres_with_tls() -> Path:
    """The programs of an installed PostgreSQL: those that come by pip are built without TLS."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if server := shutil.which("postgres"):
        places.insert(0, Path(server).resolve().parent)
    if not places:
        missing("no PostgreSQL with TLS: apt-get install postgresql")
    return places[0]


@asynccontextmanager
async def postgres(folder: Path, authority: Authority) -> AsyncIterator[int]:
    """A server with two databases and their users; its port."""
    programs, account = find_postgres_with_tls(), account_for_postgres()
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    cert, key = authority.issue("database")
    given = {"ssl_cert_file": cert, "ssl_key_file": key, "ssl_ca_file": authority.file}
    options = {"ssl": "on", "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    for name, file in given.items():
        options[name] = shutil.copy(file, folder)
        Path(options[name]).chmod(0o600)
    access, password = folder / "access.conf", folder / "password"
    access.write_text(_ACCESS)
    password.write_text("secret")
    if account is not None:
        for path in (data, access, password, *(folder / file.name for file in given.values())):
            os.chown(path, account.user, account.group)

    def prepare(run: Run) -> None:
        arguments = ("--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync")
        run((str(programs / "initdb"), f"--pgdata={data}", *arguments), {}, account)

    with Ports(None, usual=False) as ports:
        port = ports.choose("postgres", 0)
        options |= {"hba_file": str(access), "port": str(port)}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        program = processes.Program(
            name="postgres",
            argv=(str(programs / "postgres"), "-D", str(data), *settings),
            probe=f"postgres://127.0.0.1:{port}",
            prepare=prepare,
            stop_signal=signal.SIGINT,
            account=account,
        )
        with running(folder, program):
            owner = await asyncpg.connect(
                host="127.0.0.1", port=port, user="postgres", password="secret", database="postgres",
                ssl=client_context(TlsSettings(ca_file=authority.file)),
            )  # fmt: skip
            for name in ("app", "mutual"):
                await owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
                await owner.execute(f"CREATE DATABASE {name} OWNER {name}")
            await owner.close()
            yield port


@contextmanager
def nats(folder: Path, **configuration: object) -> Iterator[NatsSettings]:
    with Ports(None, usual=False) as ports:
        server = NatsServer(
            folder, ports.choose("nats", 0), ports.choose("monitor", 0), Secrets(folder / "secrets")
        )
        program = server.program()
        file = Path(program.argv[-1])

        def prepare(run: Run) -> None:
            assert program.prepare is not None
            program.prepare(run)
            file.write_text(json.dumps(json.loads(file.read_text()) | configuration))

        with running(folder, dataclasses.replace(program, prepare=prepare)):
            yield NatsSettings(
                url=server.url, user=server.user, password=SecretStr(server.password(server.user)),
                connect_seconds=5.0, retry_seconds=0.05, reconnect_seconds=0.05,
            )  # fmt: skip


@contextmanager
def s3(folder: Path, *arguments: str) -> Iterator[S3Settings]:
    with Ports(None, usual=False) as ports:
        server = S3Server(folder, ports.choose("s3", 0), Secrets(folder / "secrets"))
        with running(folder, server.program(), *arguments):
            yield S3Settings(
                endpoint=server.endpoint,
                access_key=server.access_key,
                secret_key=SecretStr(server.secret_key),
            )


def certificate(authority: Authority, cert: str, key: str) -> dict[str, str]:
    """A certificate of a server, under the names that the server has for it."""
    return dict(zip((cert, key), map(str, authority.issue("server")), strict=True))


def broker_tls(authority: Authority) -> dict[str, object]:
    return {"ca_file": str(authority.file), **certificate(authority, "cert_file", "key_file")}


def store_tls(authority: Authority) -> list[str]:
    return [f"{name}={file}" for name, file in certificate(authority, "--cert", "--key").items()]


def database(port: int, name: str, tls: TlsSettings) -> PostgresSettings:
    return PostgresSettings(
        port=port, database=name, user=name, password=SecretStr("secret"), listen_retry_seconds=0.02, tls=tls
    )


async def enter(settings: PostgresSettings) -> None:
    """Connects once, by the way that every service does."""
    engine = create_engine(settings)
    try:
        await wait_until_ready(engine, 20.0)
        async with engine.connect() as connection:
            row = await connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert row.scalar_one() is True
    finally:
        await engine.dispose()


async def test_a_database_is_trusted_by_its_authority(
    authority: Authority, stranger: Authority, client: TlsSettings, foreigner: TlsSettings, folder: Path
) -> None:
    ours, theirs = TlsSettings(ca_file=authority.file), TlsSettings(ca_file=stranger.file)
    async with postgres(folder, authority) as port:
        await enter(database(port, "app", ours))
        await enter(database(port, "mutual", client))

        with pytest.raises(SettingsError, match=rf"postgres\.tls\.ca_file {UNTRUSTED}"):
            await enter(database(port, "app", theirs))
        with pytest.raises(SettingsError, match=r"postgres\.tls\.ca_file .* not valid for 'localhost'"):
            await enter(database(port, "app", ours).model_copy(update={"host": "localhost"}))
        with pytest.raises(SettingsError, match=r"postgres\.tls is not .*no encryption"):
            await enter(database(port, "app", TlsSettings()))
        with pytest.raises(SettingsError, match=r"postgres\.tls is not .*certificate"):
            await enter(database(port, "mutual", ours))
        with pytest.raises(SettingsError, match=r"postgres\.tls\.cert_file is not what the server asks for"):
            await enter(database(port, "mutual", foreigner))
        with pytest.raises(SettingsError, match=r"postgres\.password .*password authentication failed"):
            await enter(database(port, "app", ours).model_copy(update={"password": SecretStr("wrong")}))


async def test_notifications_are_encrypted(
    authority: Authority, stranger: Authority, client: TlsSettings, folder: Path
) -> None:
    async with postgres(folder, authority) as port:
        heard = asyncio.Event()
        settings = database(port, "mutual", client)
        async with listening(Listener(settings, {"news": lambda _: heard.set()})):
            await asyncio.wait_for(heard.wait(), 20)

        wary = database(port, "mutual", TlsSettings(ca_file=stranger.file))
        with said(f"postgres.tls.ca_file {UNTRUSTED}") as complaint:
            async with listening(Listener(wary, {"news": lambda _: None})):
                await asyncio.wait_for(complaint, 20)


@asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[None]:
    task = asyncio.create_task(listener.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_database_without_tls_is_told_nothing(authority: Authority, backing: BackingServers) -> None:
    made = backing.create_database("tls_test")
    settings = database(made.port, made.database, TlsSettings(ca_file=authority.file))

    with pytest.raises(SettingsError, match=r"postgres\.tls asks for encryption"):
        await enter(settings.model_copy(update={"password": SecretStr(made.password)}))


@contextmanager
def said(text: str) -> Iterator[asyncio.Future[None]]:
    """What comes true as soon as a line with the text is logged."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[None] = loop.create_future()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage() and not found.done():
                loop.call_soon_threadsafe(found.set_result, None)

    ear = Ear()
    logging.getLogger().addHandler(ear)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(ear)


async def talk(settings: NatsSettings, **more: Any) -> None:
    """Connects and stores a message."""
    bus = await EventBus.connect(settings.model_copy(update=more), "test", owns_streams=True)
    try:
        assert bus.connected
        await bus.provision()
        await bus.publish("jobs.cpu", b"x", "a")
    finally:
        await bus.close()


async def is_refused(told: str, settings: NatsSettings, **more: Any) -> None:
    """Waits for the complaint; there is no connection all the while."""
    with said(told) as complaint:
        bus = await EventBus.connect(settings.model_copy(update={"connect_seconds": 1.0, **more}), "test")
        try:
            await asyncio.wait_for(complaint, 20)
            assert not bus.connected
        finally:
            await bus.close()


async def test_a_broker_is_trusted_by_its_authority(
    authority: Authority, stranger: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with nats(folder, tls=broker_tls(authority)) as settings:
        await talk(settings, tls=TlsSettings(ca_file=authority.file))

        untrusted = f"nats.tls.ca_file {UNTRUSTED}"
        await is_refused(untrusted, settings, tls=TlsSettings(ca_file=stranger.file))
        await is_refused(untrusted, settings)


async def test_a_broker_lets_in_who_shows_a_certificate(
    authority: Authority, client: TlsSettings, foreigner: TlsSettings, folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with nats(folder, tls=broker_tls(authority) | {"verify": True}) as settings:
        await talk(settings, tls=client)

        unwanted = "nats.tls.cert_file is not what the server asks for"
        await is_refused(unwanted, settings, tls=TlsSettings(ca_file=authority.file))
        await is_refused(unwanted, settings, tls=foreigner)


async def test_a_broker_without_tls_is_told_no_password(
    authority: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with nats(folder) as settings:
        refused = "nats.tls or nats.url asks for encryption"
        await is_refused(refused, settings, tls=TlsSettings(ca_file=authority.file))
        await is_refused(refused, settings, url=str(settings.url).replace("nats://", "tls://"))


async def test_a_broker_that_also_takes_plaintext_is_spoken_to_over_tls(
    authority: Authority, stranger: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with nats(folder, tls=broker_tls(authority), allow_non_tls=True) as settings:
        await talk(settings)
        await talk(settings, tls=TlsSettings(ca_file=authority.file))
        refused = {"tls": TlsSettings(ca_file=stranger.file)}
        await is_refused(f"nats.tls.ca_file {UNTRUSTED}", settings, **refused)


async def keep(settings: S3Settings, **more: Any) -> None:
    """Makes the bucket and reads back an object."""
    store = ObjectStore(settings.model_copy(update=more), TransferSettings(connect_seconds=5.0, threads=1))
    try:
        await store.prepare()
        writer = store.writer("objects/aa/one")
        await writer.write(b"bytes")
        await writer.finish()
        assert await store.read("objects/aa/one", 0, 5) == b"bytes"
    finally:
        await store.close()


async def is_refused_by_store(
    caplog: pytest.LogCaptureFixture, told: str, settings: S3Settings, **more: Any
) -> None:
    caplog.clear()
    with pytest.raises(Unavailable):
        await keep(settings, **more)
    assert told in caplog.text


async def test_an_object_store_is_trusted_by_its_authority(
    authority: Authority, stranger: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with s3(folder, *store_tls(authority)) as settings:
        await keep(settings, secure=True, tls=TlsSettings(ca_file=authority.file))
        url = f"https://{settings.endpoint}"
        await keep(settings, endpoint=url, tls=TlsSettings(ca_file=authority.file))

        untrusted = f"s3.tls.ca_file {UNTRUSTED}"
        await is_refused_by_store(
            caplog, untrusted, settings, secure=True, tls=TlsSettings(ca_file=stranger.file)
        )
        await is_refused_by_store(caplog, untrusted, settings, secure=True)
        await is_refused_by_store(caplog, "s3.secure", settings)


async def test_an_object_store_lets_in_who_shows_a_certificate(
    authority: Authority, client: TlsSettings, foreigner: TlsSettings, folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    arguments = [f"--client-ca={authority.file}", *store_tls(authority)]
    with s3(folder, *arguments) as settings:
        await keep(settings, secure=True, tls=client)

        unwanted = "s3.tls.cert_file is not what the server asks for"
        await is_refused_by_store(
            caplog, unwanted, settings, secure=True, tls=TlsSettings(ca_file=authority.file)
        )
        await is_refused_by_store(caplog, unwanted, settings, secure=True, tls=foreigner)


async def test_an_object_store_without_tls_is_told_nothing(
    authority: Authority, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with s3(folder) as settings:
        await is_refused_by_store(
            caplog, "s3.tls: no encrypted connection comes about", settings, secure=True,
            tls=TlsSettings(ca_file=authority.file),
        )  # fmt: skip


def test_certificates_for_a_plaintext_endpoint_are_refused(authority: Authority) -> None:
    tls = TlsSettings(ca_file=authority.file)
    for endpoint in ("localhost:9000", "http://localhost:9000"):
        with pytest.raises(ValueError, match="tls needs secure, or an endpoint that begins with https"):
            S3Settings(endpoint=endpoint, access_key="a", secret_key=SecretStr("s"), tls=tls)


async def test_a_service_stands_on_encrypted_servers(
    authority: Authority, stranger: Authority, client: TlsSettings, folder: Path
) -> None:
    shown = {"CA_FILE": client.ca_file, "CERT_FILE": client.cert_file, "KEY_FILE": client.key_file}
    store = [f"--client-ca={authority.file}", *store_tls(authority)]
    broker = broker_tls(authority) | {"verify": True}
    async with postgres(folder, authority) as port:
        with nats(folder, tls=broker) as bus, s3(folder, *store) as objects:
            assert bus.password is not None
            values = {
                "GRPC__PORT": 0,
                "OPS__PORT": 0,
                "POSTGRES__PORT": port,
                "POSTGRES__DATABASE": "mutual",
                "POSTGRES__USER": "mutual",
                "POSTGRES__PASSWORD": "secret",
                "NATS__URL": bus.url,
                "NATS__USER": bus.user,
                "NATS__PASSWORD": bus.password.get_secret_value(),
                "S3__ENDPOINT": f"https://{objects.endpoint}",
                "S3__ACCESS_KEY": objects.access_key,
                "S3__SECRET_KEY": objects.secret_key.get_secret_value(),
            }
            for group in ("POSTGRES", "NATS", "S3"):
                values |= {f"{group}__TLS__{name}": file for name, file in shown.items()}
            variables = {f"GUIDEHALL_STORAGE__{name}": str(value) for name, value in values.items()}
            environ = {**os.environ, **variables}

            migration = Program("services.storage", "migrate", environ=environ)
            assert await asyncio.to_thread(migration.wait) == 0
            storage = Server("services.storage", "serve", environ=environ, ready=READY)
            try:
                storage.wait_for("bus connected")
                await asyncio.to_thread(storage.wait_serving)
            finally:
                assert storage.stop() == 0

            wary = environ | {"GUIDEHALL_STORAGE__POSTGRES__TLS__CA_FILE": str(stranger.file)}
            refused = Program("services.storage", "serve", environ=wary)
            assert await asyncio.to_thread(refused.wait) == 1
            assert f"postgres.tls.ca_file {UNTRUSTED}" in refused.log[-1]
