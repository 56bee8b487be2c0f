"""Brings the database to the newest schema, or back to an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from guidehall.core.postgres import create_engine, transaction, wait_until_ready
from services.storage.settings import StorageSettings

NEWEST = "head"
# Any number, the same everywhere: one migration at a time, the others wait and then find nothing to do.
_LOCK = 7_102_001


async def upgrade(settings: StorageSettings, revision: str) -> None:
    """Goes up to `revision`, all the way by "head"; there already is fine.

    Raises:
        Unavailable: the database does not answer.
    """
    await _migrate(settings, command.upgrade, revision)


async def downgrade(settings: StorageSettings, revision: str) -> None:
    """Goes down to `revision`, to an empty database by "base"; what the earlier schema cannot hold is lost.

    Raises:
        Unavailable: the database does not answer.
    """
    await _migrate(settings, command.downgrade, revision)


async def _migrate(settings: StorageSettings, step: Callable[[Config, str], None], revision: str) -> None:
    """Takes the steps in one transaction: all of them or none."""

    def run(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        step(config, revision)

    engine = create_engine(
        settings.postgres.model_copy(update={"statement_seconds": settings.migrate_seconds})
    )
    try:
        await wait_until_ready(engine, settings.start_seconds)
        async with transaction(engine) as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.execute(text("CREATE SCHEMA IF NOT EXISTS storage"))
            await connection.run_sync(run)
    finally:
        await engine.dispose()
