"""One service's database: engine, transactions, and LISTEN/NOTIFY wake-ups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from guidehall.core.errors import Unavailable
from guidehall.core.settings import PostgresSettings

logger = logging.getLogger(__name__)
_RECONNECT_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)


def create_engine(settings: PostgresSettings) -> AsyncEngine:
    """A pooled engine; connections that died are replaced when they are taken."""
    arguments = {
        "timeout": settings.connect_seconds,
        "command_timeout": settings.statement_seconds,
        "ssl": "verify-full" if settings.tls.enabled else False,
    }
    return create_async_engine(
        settings.dsn(), pool_size=settings.pool_size, max_overflow=0, pool_pre_ping=True, connect_args=arguments
    )


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction: committed at the end of the block, rolled back when it raises.

    Raises:
        Unavailable: the database cannot be reached, or went away meanwhile.
    """
    try:
        async with engine.begin() as connection:
            yield connection
    except (InterfaceError, OperationalError, OSError, TimeoutError) as error:
        raise _unavailable(error) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise _unavailable(error) from error
        raise


def _unavailable(error: BaseException) -> Unavailable:
    logger.warning("database unavailable: %s", type(error).__name__)
    return Unavailable("the database cannot be reached", reason="DATABASE_UNAVAILABLE", retry_after_seconds=1.0)


async def wait_until_ready(engine: AsyncEngine, timeout_seconds: float) -> None:
    """Returns when the database answers.

    Raises:
        Unavailable: it did not within the time.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout_seconds
    while True:
        try:
            async with transaction(engine) as connection:
                await connection.exec_driver_sql("SELECT 1")
            return
        except Unavailable:
            if loop.time() >= give_up:
                raise
            await asyncio.sleep(0.1)


class Listener:
    """Calls back on NOTIFY, on a connection of its own that is opened again whenever it breaks.

    After each reconnect every callback runs once with an empty payload: something may have been missed.
    """

    def __init__(self, settings: PostgresSettings, callbacks: dict[str, Callable[[str], None]]) -> None:
        self._settings = settings
        self._callbacks = callbacks

    async def run(self) -> None:
        """Listens until cancelled."""
        failures = 0
        while True:
            try:
                connection = await self._connect()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                delay = _RECONNECT_SECONDS[min(failures, len(_RECONNECT_SECONDS) - 1)]
                failures += 1
                await asyncio.sleep(delay)
                continue
            failures = 0
            try:
                await self._serve(connection)
            finally:
                connection.terminate()

    async def _connect(self) -> asyncpg.Connection:
        settings = self._settings
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.database,
            user=settings.user,
            password=settings.password.get_secret_value(),
            timeout=settings.connect_seconds,
            ssl="verify-full" if settings.tls.enabled else False,
        )

    async def _serve(self, connection: asyncpg.Connection) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())

        def heard(_connection: object, _pid: int, channel: str, payload: str) -> None:
            self._callbacks[channel](payload)

        try:
            for channel in self._callbacks:
                await connection.add_listener(channel, heard)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return
        for callback in self._callbacks.values():
            callback("")
        await lost.wait()
