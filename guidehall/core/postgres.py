"""One service's database: engine, transactions, and LISTEN/NOTIFY wake-ups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from guidehall.core.errors import Aborted, AppError, Unavailable
from guidehall.core.settings import PostgresSettings, SettingsError
from guidehall.core.tls import client_context, fault

logger = logging.getLogger(__name__)

# Classes of SQLSTATE: connection, resources (such as too many connections), shutdown; a cancelled statement;
# a server that only reads, such as one that was the primary until a moment ago.
_AWAY = ("08", "53", "57P", "57014", "25006")
_NOT_LET_IN = "28"
_SERIALIZATION_FAILURE = "40001"
_DEADLOCK = "40P01"


def create_engine(settings: PostgresSettings) -> AsyncEngine:
    """A pooled engine; connections that died are replaced when they are taken.

    Raises:
        SettingsError: the certificates cannot be used.
    """
    arguments = {
        "timeout": settings.connect_seconds,
        "command_timeout": settings.statement_seconds,
        "ssl": client_context(settings.tls) or False,
    }
    engine = create_async_engine(
        settings.dsn(),
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_wait_seconds,
        connect_args=arguments,
    )
    event.listen(engine.sync_engine, "checkout", _require_open)
    return engine


def _require_open(connection: Any, _record: object, _proxy: object) -> None:
    """Has the pool replace a connection that the server has closed; asking the server costs a way there."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction: committed at the end of the block, rolled back when it raises.

    Raises:
        Unavailable: the database cannot be reached, went away meanwhile, or answers too late.
        Aborted: another transaction was quicker (deadlock, serialization failure); a repeat may succeed.
    """
    async with AsyncExitStack() as stack:
        with _told(OSError, PoolTimeoutError, DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await stack.enter_async_context(engine.connect())
        # From here on an OSError may be one of the block's own.
        with _told(ConnectionError, TimeoutError, DBAPIError):
            async with connection.begin():
                yield connection


@contextmanager
def _told(*kinds: type[Exception]) -> Iterator[None]:
    """Turns failures of the database into what they mean to the caller; faults of ours stay what they are."""
    try:
        yield
    except kinds as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        logger.warning("database: %s (%s)", meaning.reason, _brief(error))
        raise meaning from error


def _meaning(error: Exception) -> AppError | None:
    state = _sqlstate(error)
    if isinstance(error, PoolTimeoutError):
        return _unavailable("all connections to the database are busy", "DATABASE_BUSY")
    if state in (_SERIALIZATION_FAILURE, _DEADLOCK):
        return Aborted("another change was quicker; try again", reason="CONCURRENT_CHANGE")
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if lost or state.startswith(_AWAY) or isinstance(error, (OSError, asyncpg.InterfaceError)):
        return _unavailable("the database cannot be reached", "DATABASE_UNAVAILABLE")
    return None


def _sqlstate(error: Exception) -> str:
    """The five characters by which PostgreSQL names an error; empty when it did not come from there."""
    source: Any = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(source, "sqlstate", None) or "")


def _tls_fault(error: BaseException | None) -> str | None:
    # asyncpg has no type for it.
    if "rejected SSL upgrade" in str(error):
        return "postgres.tls asks for encryption, which the server does not offer"
    return fault(error, "postgres")


def _brief(error: Exception) -> str:
    return _tls_fault(error) or _sqlstate(error) or type(error).__name__


def _unavailable(message: str, reason: str) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after_seconds=1.0)


async def wait_until_ready(engine: AsyncEngine, timeout_seconds: float) -> None:
    """Returns when the database answers.

    Raises:
        Unavailable: it did not within the time.
        SettingsError: it does not let us in, or we do not trust it: waiting would not help.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout_seconds
    pause = 0.1
    while True:
        try:
            async with transaction(engine) as connection:
                await connection.exec_driver_sql("SELECT 1")
            return
        except DBAPIError as error:
            if not _sqlstate(error).startswith(_NOT_LET_IN):
                raise
            asked = "postgres.user, postgres.password or postgres.tls is not what the server asks for"
            raise SettingsError(f"{asked}: {error.orig}") from None
        except AppError as error:
            if untrusted := _tls_fault(error.__cause__):
                raise SettingsError(untrusted) from None
            if loop.time() >= give_up:
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)


class Listener:
    """Calls back on NOTIFY, on a connection of its own that is opened again whenever it breaks.

    After each reconnect every callback runs once with an empty payload: something may have been missed.
    """

    def __init__(self, settings: PostgresSettings, callbacks: dict[str, Callable[[str], None]]) -> None:
        self._settings = settings
        self._callbacks = callbacks

    async def run(self) -> None:
        """Listens until cancelled."""
        first, last = self._settings.listen_retry_seconds, self._settings.connect_seconds
        delay = first
        while True:
            if await self._listen():
                delay = first
            await asyncio.sleep(delay)
            delay = min(2 * delay, last)

    async def _listen(self) -> bool:
        """Listens until the connection breaks.

        Returns:
            Whether there was one.
        """
        listening = False
        try:
            connection = await self._connect()
            try:
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _: lost.set())
                for channel in self._callbacks:
                    await connection.add_listener(channel, self._heard)
                listening = True
                for callback in self._callbacks.values():
                    callback("")
                await self._until_lost(connection, lost)
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.warning("listening to the database: %s", _brief(error))
        return listening

    def _heard(self, _connection: object, _pid: int, channel: str, payload: str) -> None:
        self._callbacks[channel](payload)

    async def _until_lost(self, connection: asyncpg.Connection, lost: asyncio.Event) -> None:
        """An idle connection cannot tell that the other side is gone: asks now and then."""
        while not lost.is_set():
            try:
                async with asyncio.timeout(self._settings.listen_check_seconds):
                    await lost.wait()
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=self._settings.connect_seconds)

    async def _connect(self) -> asyncpg.Connection:
        settings = self._settings
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.database,
            user=settings.user,
            password=settings.password.get_secret_value(),
            timeout=settings.connect_seconds,
            command_timeout=settings.connect_seconds,
            ssl=client_context(settings.tls) or False,
        )
