"""What somebody's things take up, and how much that may be."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Select, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.access import owner_for, sees_everything
from guidehall.core.auth import Principal
from guidehall.core.errors import ResourceExhausted
from services.storage.database import Database
from services.storage.tables import (
    artifacts,
    dataset_versions,
    datasets,
    job_logs,
    model_versions,
    models,
    objects,
    results,
)


@dataclass(frozen=True)
class Usage:
    """Stored bytes by kind; what was deleted still counts, for it is kept."""

    dataset_bytes: int
    model_bytes: int
    artifact_bytes: int
    log_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of all kinds."""
        return self.dataset_bytes + self.model_bytes + self.artifact_bytes + self.log_bytes


class Quota:
    """How many bytes of each owner are kept.

    What jobs leave counts and is never refused: what was computed is not lost for want of room.

    Attributes:
        allowed_bytes: 0 is no limit.
    """

    def __init__(self, database: Database, allowed_bytes: int) -> None:
        self._database = database
        self.allowed_bytes = allowed_bytes

    async def usage(self, owner: str) -> Usage:
        """What an owner's things take up."""
        async with self._database.transaction() as connection:
            return await _usage(connection, owner)

    async def require_room_soon(self, principal: Principal, more_bytes: int | None) -> None:
        """Refuses before the bytes come what `require_room` would refuse after; None is not known yet. Who
        sees everything may add to what is somebody else's.

        Raises:
            ResourceExhausted: it says how much is used and how much is allowed.
        """
        if self.allowed_bytes and not sees_everything(principal):
            async with self._database.transaction() as connection:
                self._require(await _usage(connection, owner_for(principal)), more_bytes or 1)

    async def require_room(self, connection: AsyncConnection, owner: str, more_bytes: int) -> None:
        """Refuses what would be too much; a guest's things have no limit.

        Nothing else of the owner's is looked at until the end of the transaction: of two that both fit, both
        together may not.

        Raises:
            ResourceExhausted: it says how much is used and how much is allowed.
        """
        if self.allowed_bytes and owner:
            key = func.hashtextextended(f"quota {owner}", cast(0, BigInteger))
            await connection.execute(select(func.pg_advisory_xact_lock(key)))
            self._require(await _usage(connection, owner), more_bytes)

    def _require(self, usage: Usage, more_bytes: int) -> None:
        used, allowed = usage.total_bytes, self.allowed_bytes
        if used + more_bytes > allowed:
            raise ResourceExhausted(
                f"stored bytes: {used} are used and {more_bytes} more are asked for; allowed: {allowed}",
                reason="QUOTA_EXCEEDED",
                metadata={"used_bytes": str(used), "allowed_bytes": str(allowed)},
            )


async def _usage(connection: AsyncConnection, owner: str) -> Usage:
    size = func.coalesce(func.sum(objects.c.size_bytes), 0)
    of_datasets = (
        select(size)
        .select_from(objects)
        .join(dataset_versions, dataset_versions.c.object_key == objects.c.key)
        .join(datasets)
        .where(datasets.c.owner == owner)
    )
    of_models = (
        select(size)
        .select_from(objects)
        .join(model_versions, model_versions.c.object_key == objects.c.key)
        .join(models)
        .where(models.c.owner == owner)
    )
    of_results = (
        select(size)
        .select_from(objects)
        .join(artifacts, artifacts.c.object_key == objects.c.key)
        .join(results)
        .where(results.c.owner == owner)
    )
    of_logs = (
        select(size)
        .select_from(objects)
        .join(job_logs, job_logs.c.object_key == objects.c.key)
        .where(job_logs.c.owner == owner)
    )
    kinds: list[Select[tuple[int]]] = [of_datasets, of_models, of_results, of_logs]
    row = (await connection.execute(select(*(kind.scalar_subquery() for kind in kinds)))).one()
    return Usage(*(int(count) for count in row))
