"""The database's history: up, down, up again, by several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from services.storage.audit import tables as audit_tables
from services.storage.identity import tables as identity_tables
from services.storage.tables import metadata
from tests.fixtures.storage import StorageSite

pytestmark = pytest.mark.slow

_TABLES = (
    "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables "
    "WHERE table_schema IN ('storage', 'identity', 'audit')"
)


def _differences(connection: Connection) -> list[object]:
    schemas = ("storage", "identity", "audit")
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name in schemas,
        "version_table_schema": "storage",
        "compare_server_default": True,
    }
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, [metadata, identity_tables.metadata, audit_tables.metadata]))


async def test_the_migrated_schema_is_the_one_that_the_code_knows(storage: StorageSite) -> None:
    database = storage.database
    engine = create_async_engine(
        f"postgresql+asyncpg://{database.user}:{database.password}@{database.host}:{database.port}/{database.database}"
    )
    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(_differences) == []
    finally:
        await engine.dispose()


async def test_up_down_up(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    made = {row["name"] for row in await site.fetch(_TABLES)}

    down = site.run("migrate", "--down-to", "base")
    left = {row["name"] for row in await site.fetch(_TABLES)}
    up = site.run("migrate")
    again = site.run("migrate")
    remade = {row["name"] for row in await site.fetch(_TABLES)}

    assert [done.returncode for done in (down, up, again)] == [0, 0, 0], (
        down.stderr + up.stderr + again.stderr
    )
    assert left == {"storage.alembic_version"}
    assert made == remade
    assert {"storage.objects", "identity.users", "audit.events"} < made


async def test_several_may_migrate_at_once(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    assert site.run("migrate", "--down-to", "base").returncode == 0

    done = await asyncio.gather(*(asyncio.to_thread(site.run, "migrate") for _ in range(3)))

    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]


def test_a_database_that_is_away_is_said_in_one_line(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()

    done = site.run("migrate", POSTGRES__PORT=1, START_SECONDS=0.3)

    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "the database cannot be reached"
    assert "Traceback" not in done.stderr
    assert site.database.password not in done.stderr
