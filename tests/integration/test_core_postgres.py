"""Transactions and wake-ups on a real PostgreSQL that is killed, paused and brought back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from guidehall.core.errors import Aborted, Unavailable
from guidehall.core.postgres import Listener, create_engine, transaction, wait_until_ready
from guidehall.core.settings import PostgresSettings, SettingsError
from guidehall.local.backing import BackingServers

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def settings(backing: BackingServers) -> PostgresSettings:
    database = backing.create_database("core_test")
    return PostgresSettings(
        host=database.host,
        port=database.port,
        database=database.database,
        user=database.user,
        password=SecretStr(database.password),
        pool_size=2,
        connect_seconds=2.0,
        listen_retry_seconds=0.02,
    )


@asynccontextmanager
async def engine_for(settings: PostgresSettings, **changes: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings.model_copy(update=changes))
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture
async def engine(settings: PostgresSettings) -> AsyncIterator[AsyncEngine]:
    async with engine_for(settings) as opened:
        async with transaction(opened) as connection:
            await connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY, n int)")
            await connection.exec_driver_sql("TRUNCATE t")
            await connection.exec_driver_sql("INSERT INTO t VALUES (1, 0), (2, 0)")
        yield opened


@pytest.fixture
def restored(backing: BackingServers) -> Iterator[None]:
    """PostgreSQL is back after a test that took it away."""
    yield
    backing.restart("postgres")


async def count(engine: AsyncEngine) -> int:
    async with transaction(engine) as connection:
        return int((await connection.exec_driver_sql("SELECT count(*) FROM t")).scalar_one())


async def test_a_block_commits_and_an_error_rolls_back(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.exec_driver_sql("INSERT INTO t VALUES (3, 0)")

    async def fail() -> None:
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (4, 0)")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()

    assert await count(engine) == 3


async def test_faults_of_ours_stay_what_they_are(engine: AsyncEngine) -> None:
    with pytest.raises(IntegrityError):
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (1, 0)")
    for statement, arguments in (("SELECT $1::int", ("no number",)), ("SELECT nonsense", ())):
        with pytest.raises(DBAPIError):
            async with transaction(engine) as connection:
                await connection.exec_driver_sql(statement, arguments)
    with pytest.raises(FileNotFoundError):
        async with transaction(engine):
            raise FileNotFoundError


async def test_a_deadlock_is_a_reason_to_try_again(engine: AsyncEngine) -> None:
    both = asyncio.Barrier(2)

    async def change(first: int, second: int) -> None:
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("UPDATE t SET n = n + 1 WHERE id = $1", (first,))
            await both.wait()
            await connection.exec_driver_sql("UPDATE t SET n = n + 1 WHERE id = $1", (second,))

    results = await asyncio.gather(change(1, 2), change(2, 1), return_exceptions=True)

    assert sorted(type(result) for result in results if result is not None) == [Aborted]


async def test_a_statement_that_takes_too_long_is_given_up(settings: PostgresSettings) -> None:
    async with engine_for(settings, statement_seconds=0.2) as engine:
        with pytest.raises(Unavailable):
            async with transaction(engine) as connection:
                await connection.exec_driver_sql("SELECT pg_sleep(30)")


async def test_a_server_that_only_reads_is_away(engine: AsyncEngine) -> None:
    # As every transaction is at a primary that has become a standby.
    async def write() -> None:
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            await connection.exec_driver_sql("UPDATE t SET n = 1")

    with pytest.raises(Unavailable):
        await write()


async def test_a_full_pool_does_not_wait_for_ever(settings: PostgresSettings) -> None:
    async with engine_for(settings, pool_size=1, pool_wait_seconds=0.1) as engine, transaction(engine):
        with pytest.raises(Unavailable) as caught:
            async with transaction(engine):
                pass

    assert caught.value.reason == "DATABASE_BUSY"


async def test_nobody_listens_there(settings: PostgresSettings) -> None:
    async with engine_for(settings, port=1) as engine:
        with pytest.raises(Unavailable):
            async with transaction(engine):
                pass
        with pytest.raises(Unavailable):
            await wait_until_ready(engine, 0.2)


async def test_a_wrong_password_is_no_outage(settings: PostgresSettings) -> None:
    async with engine_for(settings, password=SecretStr("wrong")) as engine:
        with pytest.raises(SettingsError, match=r"postgres\.password.*password authentication failed"):
            await wait_until_ready(engine, 5.0)


async def test_a_connection_that_the_server_ends_is_unavailable_and_replaced(engine: AsyncEngine) -> None:
    with pytest.raises(Unavailable):
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    assert await count(engine) == 2


async def test_a_server_that_dies_in_a_transaction_is_unavailable_until_it_is_back(
    engine: AsyncEngine, backing: BackingServers, restored: None
) -> None:
    async def interrupted() -> None:
        async with transaction(engine) as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (3, 0)")
            await asyncio.to_thread(backing.kill, "postgres")
            # The process behind a connection outlives the server by a moment.
            while True:
                await connection.exec_driver_sql("SELECT 1")

    with pytest.raises(Unavailable):
        await interrupted()
    with pytest.raises(Unavailable):
        await count(engine)

    await asyncio.to_thread(backing.restart, "postgres")
    await wait_until_ready(engine, 20.0)

    assert await count(engine) == 2


@asynccontextmanager
async def listening(settings: PostgresSettings) -> AsyncIterator[asyncio.Queue[str]]:
    heard: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.create_task(Listener(settings, {"toy": heard.put_nowait}).run())
    try:
        yield heard
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def notify(engine: AsyncEngine, payload: str) -> None:
    async with transaction(engine) as connection:
        await connection.exec_driver_sql(f"NOTIFY toy, '{payload}'")


async def next_of(heard: asyncio.Queue[str]) -> str:
    return await asyncio.wait_for(heard.get(), 20)


async def test_a_notification_is_heard(settings: PostgresSettings, engine: AsyncEngine) -> None:
    async with listening(settings) as heard:
        assert await next_of(heard) == ""
        await notify(engine, "7f")

        assert await next_of(heard) == "7f"


async def test_a_listener_comes_back_and_says_that_something_may_be_missing(
    settings: PostgresSettings, engine: AsyncEngine
) -> None:
    async with listening(settings) as heard:
        assert await next_of(heard) == ""
        async with transaction(engine) as connection:
            await connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )

        assert await next_of(heard) == ""
        await notify(engine, "after")
        assert await next_of(heard) == "after"


async def test_a_listener_waits_for_a_server_that_is_away(
    settings: PostgresSettings, engine: AsyncEngine, backing: BackingServers, restored: None
) -> None:
    async with listening(settings) as heard:
        assert await next_of(heard) == ""
        await asyncio.to_thread(backing.kill, "postgres")
        await asyncio.to_thread(backing.restart, "postgres")

        assert await next_of(heard) == ""
        await wait_until_ready(engine, 20.0)
        await notify(engine, "after")
        assert await next_of(heard) == "after"


async def test_a_listener_notices_a_server_that_answers_no_more(
    settings: PostgresSettings, engine: AsyncEngine, backing: BackingServers, restored: None
) -> None:
    quick = settings.model_copy(update={"listen_check_seconds": 0.1, "connect_seconds": 0.3})
    async with listening(quick) as heard:
        assert await next_of(heard) == ""
        backing.pause("postgres")
        try:
            # Longer than a check and the wait for its answer.
            await asyncio.sleep(1.0)
        finally:
            backing.resume("postgres")

        assert await next_of(heard) == ""
