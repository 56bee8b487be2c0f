"""Brings the database to the newest schema, or to any step of its history."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from guidehall.core.postgres import create_engine, transaction, wait_until_ready
from guidehall.core.settings import PostgresSettings
from services.trainer.tables import SCHEMA

NEWEST = "head"
# Any number, the same everywhere: one migration at a time, the others wait and then find nothing to do.
_LOCK = 7_101_001


async def migrate(settings: PostgresSettings, wait_seconds: float, revision: str = NEWEST) -> None:
    """Goes up, or down, to `revision` in one transaction: all of it happens or nothing.

    Args:
        settings: the database.
        wait_seconds: how long it may take to answer.
        revision: "head" for the newest, "base" for an empty schema, or a step's number.

    Raises:
        Unavailable: the database does not answer.
    """
    engine = create_engine(settings)
    try:
        await wait_until_ready(engine, wait_seconds)
        async with transaction(engine) as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            await connection.run_sync(_run, revision)
    finally:
        await engine.dispose()


def _run(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    step = command.downgrade if revision == "base" else command.upgrade
    step(config, revision)
