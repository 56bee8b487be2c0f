"""Brings a service's database to the newest schema, or back to an earlier one."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, text

from guidehall.core.postgres import create_engine, transaction, wait_until_ready
from guidehall.core.settings import PostgresSettings


class Migrated(Protocol):
    """What a service with a database has among its settings.

    Attributes:
        postgres: the database.
        start_seconds: how long it may take to answer.
        migrate_seconds: how long one statement of a migration may take.
    """

    @property
    def postgres(self) -> PostgresSettings: ...

    @property
    def start_seconds(self) -> float: ...

    @property
    def migrate_seconds(self) -> float: ...


async def migrate(settings: Migrated, package: str, down_to: str | None = None) -> None:
    """Takes the steps that are missing, in one transaction: all of them or none.

    Who comes while another is at it waits, and then finds nothing to do.

    Args:
        settings: of the service.
        package: of the service, such as "services.storage". Its folder `migrations` holds the steps, for
            Alembic, whose `env.py` finds the connection among the attributes. The schema that keeps which
            steps were taken is called like the service.
        down_to: goes down to this step instead, to empty tables by "base"; what the earlier schema cannot
            hold is lost.

    Raises:
        Unavailable: the database does not answer.
    """
    folder, schema = Path(str(files(package))) / "migrations", package.rpartition(".")[2]
    engine = create_engine(
        settings.postgres.model_copy(update={"statement_seconds": settings.migrate_seconds})
    )
    try:
        await wait_until_ready(engine, settings.start_seconds)
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
