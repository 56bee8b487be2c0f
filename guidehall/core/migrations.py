"""Brings a service's database to the newest schema, or back to an earlier one."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, text

from guidehall.core.postgres import create_engine, transaction, wait_until_ready
from guidehall.core.settings import PostgresSettings


async def migrate(
    settings: PostgresSettings,
    folder: Path,
    schema: str,
    *,
    wait_seconds: float,
    step_seconds: float,
    down_to: str | None = None,
) -> None:
    """Takes the steps that are missing, in one transaction: all of them or none.

    Who comes while another is at it waits, and then finds nothing to do.

    Args:
        settings: the database.
        folder: the steps, for Alembic; its `env.py` finds the connection among the attributes.
        schema: where the database keeps which steps were taken.
        wait_seconds: how long the database may take to answer.
        step_seconds: how long one statement may take.
        down_to: goes down to this step instead, to empty tables by "base"; what the earlier schema cannot
            hold is lost.

    Raises:
        Unavailable: the database does not answer.
    """
    engine = create_engine(settings.model_copy(update={"statement_seconds": step_seconds}))
    try:
        await wait_until_ready(engine, wait_seconds)
        async with transaction(engine) as connection:
            lock = text("SELECT pg_advisory_xact_lock(hashtext(:name))")
            await connection.execute(lock, {"name": f"migrate {schema}"})
            await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            await connection.run_sync(_take, folder, down_to)
    finally:
        await engine.dispose()


def _take(connection: Connection, folder: Path, down_to: str | None) -> None:
    # Slow to import, and every process of a service would pay.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    if down_to is None:
        command.upgrade(config, "head")
    else:
        command.downgrade(config, down_to)
