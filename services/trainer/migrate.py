"""Brings the trainer's database to the newest schema, or back to an earlier one."""

from __future__ import annotations

from pathlib import Path

from guidehall.core import migrations
from services.trainer.settings import TrainerSettings


async def migrate(settings: TrainerSettings, down_to: str | None = None) -> None:
    """Goes up as far as there are steps, or down to the one that is given ("base" is before the first).

    Raises:
        Unavailable: the database does not answer.
    """
    await migrations.migrate(
        settings.postgres,
        Path(__file__).parent / "migrations",
        "trainer",
        wait_seconds=settings.start_seconds,
        step_seconds=settings.migrate_seconds,
        down_to=down_to,
    )
