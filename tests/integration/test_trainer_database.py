"""The schema: up, down and up again, by several at a time, and the same as the code believes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from guidehall.core.errors import Unavailable
from guidehall.core.migrations import migrate
from guidehall.core.postgres import create_engine, transaction
from guidehall.core.settings import ChannelSettings, PostgresSettings
from guidehall.local.backing import BackingServers
from services.trainer.settings import TrainerSettings
from services.trainer.tables import metadata

PACKAGE = "services.trainer"
_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'trainer' ORDER BY 1"


@pytest.fixture
def settings(backing: BackingServers) -> TrainerSettings:
    database = PostgresSettings(**asdict(backing.create_database(f"schema_{uuid.uuid4().hex[:12]}")))
    return TrainerSettings(postgres=database, storage=ChannelSettings(target="127.0.0.1:1"))


@pytest.fixture
async def engine(settings: TrainerSettings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(settings.postgres)
    yield engine
    await engine.dispose()


async def tables(engine: AsyncEngine) -> list[str]:
    async with transaction(engine) as connection:
        return list((await connection.execute(text(_TABLES))).scalars())


async def test_up_down_and_up_again(settings: TrainerSettings, engine: AsyncEngine) -> None:
    await migrate(settings, PACKAGE)
    made = await tables(engine)
    assert set(made) == {table.name for table in metadata.tables.values()} | {"alembic_version"}
    await migrate(settings, PACKAGE)
    await migrate(settings, PACKAGE, "base")
    assert await tables(engine) == ["alembic_version"]
    await migrate(settings, PACKAGE)
    assert await tables(engine) == made


async def test_several_may_migrate_at_a_time(settings: TrainerSettings, engine: AsyncEngine) -> None:
    await asyncio.gather(*(migrate(settings, PACKAGE) for _ in range(4)))
    assert "jobs" in await tables(engine)


async def test_the_steps_make_what_the_code_believes(settings: TrainerSettings, engine: AsyncEngine) -> None:
    await migrate(settings, PACKAGE)

    def compare(connection: Connection) -> list[object]:
        options = {
            "compare_type": True,
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == "trainer",
            "version_table_schema": "trainer",
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with transaction(engine) as connection:
        assert await connection.run_sync(compare) == []


async def test_a_database_that_does_not_answer_is_given_up_on(settings: TrainerSettings) -> None:
    nowhere = settings.postgres.model_copy(update={"port": 1})
    with pytest.raises(Unavailable):
        await migrate(TrainerSettings(postgres=nowhere, storage=settings.storage, start_seconds=0.2), PACKAGE)


_MANY = """
INSERT INTO trainer.jobs (
    id, project, owner, display_name, labels, pipeline, pipeline_version, params, params_digest, seed, inputs,
    pool, priority, memory_hint_bytes, max_attempts, timeout_seconds, state, desired, end_reason,
    lease_epoch, attempt_count, queue_rank, create_time, update_time)
SELECT gen_random_uuid(), 'p', 'owner' || n % 50, '', '{}', 'toy.line', '1', '{}', '', 1, '{}',
    'cpu', 2, 0, 3, 60, CASE WHEN n % 10 = 0 THEN 'QUEUED' ELSE 'FAILED' END, 'RUN',
    CASE WHEN n % 10 = 0 THEN NULL ELSE 'USER_ERROR' END,
    0, 0, now() - n * interval '1 s', now() - n * interval '1 s', now() - n * interval '1 s'
FROM generate_series(1, 5000) AS n
"""
_AFTER = "(create_time, id) < (now(), gen_random_uuid()) ORDER BY create_time DESC, id DESC LIMIT 50"
_QUERIES = {
    "jobs_project_create_time_idx": f"project = 'p' AND {_AFTER}",
    "jobs_owner_create_time_idx": f"project = 'p' AND owner = 'owner7' AND {_AFTER}",
    "jobs_project_update_time_idx": "project = 'p' ORDER BY update_time, id LIMIT 50",
    "jobs_queue_idx": "state = 'QUEUED' AND pool = 'cpu' AND (not_before IS NULL OR not_before <= now())"
    " ORDER BY queue_rank, id LIMIT 1 FOR UPDATE SKIP LOCKED",
}


async def test_lists_and_the_queue_are_read_in_the_order_of_an_index(
    settings: TrainerSettings, engine: AsyncEngine
) -> None:
    await migrate(settings, PACKAGE)
    async with transaction(engine) as connection:
        await connection.execute(text(_MANY))
        await connection.execute(text("ANALYZE trainer.jobs"))
        for index, query in _QUERIES.items():
            explain = text(f"EXPLAIN SELECT * FROM trainer.jobs WHERE {query}")  # noqa: S608
            plan = "\n".join((await connection.execute(explain)).scalars())
            assert index in plan, plan
            assert "Sort" not in plan, plan
