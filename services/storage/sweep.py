"""Upkeep: what processes that died left behind, and what nobody will ask for any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Table, delete, func, select, union_all, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import AppError
from guidehall.core.faults import fault_point
from services.storage import garbage, staging
from services.storage.database import Database
from services.storage.jobs import Job
from services.storage.objects import ObjectStore
from services.storage.settings import UpkeepSettings
from services.storage.tables import objects, outbox, requests, staged_objects, staged_results

logger = logging.getLogger(__name__)


class Sweeper:
    """Puts the tables in order, and less often the bucket. Several may run.

    Args:
        database: of the service.
        store: the bucket.
        collector: is woken when something was given up.
        upkeep: how old things get.
        forgetting: what other modules delete that nobody will ask for.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        collector: garbage.Collector,
        upkeep: UpkeepSettings,
        forgetting: Sequence[Callable[[AsyncConnection], Awaitable[None]]],
    ) -> None:
        self._database = database
        self._store = store
        self._collector = collector
        self._upkeep = upkeep
        self._forgetting = forgetting

    async def run(self) -> None:
        """Goes on until cancelled, whatever is away meanwhile."""
        loop = asyncio.get_running_loop()
        reconcile_at = loop.time()
        while True:
            try:
                await self.sweep()
                if loop.time() >= reconcile_at:
                    await self.reconcile()
                    reconcile_at = loop.time() + self._upkeep.reconcile_seconds
            except AppError as error:
                logger.debug("the sweep waits: %s", error.message)
            self._collector.wake()
            await asyncio.sleep(self._upkeep.sweep_seconds)

    async def sweep(self) -> None:
        """Gives up what is too old, by the database's clock."""
        upkeep = self._upkeep
        async with self._database.transaction() as connection:
            abandoned = _older(objects, upkeep.writing_max_age_seconds)
            await connection.execute(
                update(objects).where(objects.c.state == "writing", abandoned).values(garbage.DROPPED)
            )
            await connection.execute(delete(requests).where(_older(requests, upkeep.request_max_age_seconds)))
            await connection.execute(
                delete(outbox).where(_older(outbox, upkeep.announcement_max_age_seconds))
            )
        for forget in self._forgetting:
            async with self._database.transaction() as connection:
                await forget(connection)
        fault_point("storage.sweep.committed")
        await self._forget_jobs()

    async def _forget_jobs(self) -> None:
        """Drops what jobs staged that have staged nothing since long ago."""
        age = timedelta(seconds=self._upkeep.staging_max_age_seconds)
        staged = union_all(
            *(
                select(table.c.project, table.c.job, table.c.create_time)
                for table in (staged_objects, staged_results)
            )
        ).subquery()
        newest = func.max(staged.c.create_time)
        forgotten = select(staged.c.project, staged.c.job).group_by(staged.c.project, staged.c.job)
        is_forgotten = forgotten.having(newest < func.now() - age)
        async with self._database.transaction() as connection:
            jobs = [Job(row.project, row.job) for row in await connection.execute(is_forgotten)]
        for job in jobs:
            # One transaction each, as whoever stages takes one lock. Looked at again behind it: the job may
            # have staged something meanwhile.
            async with self._database.transaction() as connection:
                await staging.lock(connection, job)
                if (
                    await connection.execute(is_forgotten.where(staging.of_job(staged, job)))
                ).first() is None:
                    continue
                await staging.drop(connection, staging.of_job(staged_objects, job))
                await connection.execute(delete(staged_results).where(staging.of_job(staged_results, job)))

    async def reconcile(self) -> None:
        """Finds objects that no table knows and gives them up, unless there are suspiciously many."""
        before = datetime.now(UTC) - timedelta(seconds=self._upkeep.stray_max_age_seconds)
        strays: list[str] = []
        async for listed in self._store.list():
            keys = [item.key for item in listed if item.modified < before]
            async with self._database.transaction() as connection:
                known = set(
                    (await connection.scalars(select(objects.c.key).where(objects.c.key.in_(keys)))).all()
                )
            strays += [key for key in keys if key not in known]
            if len(strays) > self._upkeep.max_strays:
                logger.error(
                    "the bucket holds more than %d objects that no table knows: it is not touched; "
                    "is it shared, or the database an older one?",
                    self._upkeep.max_strays,
                )
                return
        if strays:
            logger.warning("%d objects that no table knows are deleted", len(strays))
            fault_point("storage.reconcile.found")
            rows = [{"key": key, "state": "garbage", "media_type": ""} for key in strays]
            async with self._database.transaction() as connection:
                await connection.execute(insert(objects).on_conflict_do_nothing(), rows)
            self._collector.wake()


def _older(table: Table, seconds: float) -> ColumnElement[bool]:
    return table.c.create_time < func.now() - timedelta(seconds=seconds)
