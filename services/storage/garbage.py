"""Objects that nothing refers to any more: marked by the transaction that dropped them, deleted later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from prometheus_client import Counter
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import AppError, Unavailable
from guidehall.core.faults import fault_point
from services.storage.database import Database
from services.storage.objects import ObjectStore
from services.storage.settings import UpkeepSettings
from services.storage.tables import objects

logger = logging.getLogger(__name__)

_DELETED = Counter("guidehall_storage_deleted_objects", "Objects deleted from the object store")

# What makes an object garbage.
DROPPED = {"state": "garbage", "next_time": func.now()}


async def drop(connection: AsyncConnection, keys: Sequence[str]) -> None:
    """Gives objects up, if the transaction commits; whatever referred to them has to go in it too."""
    if keys:
        await connection.execute(update(objects).where(objects.c.key.in_(keys)).values(DROPPED))


class Collector:
    """Deletes garbage. Several may run: what one has claimed the others leave alone for a while."""

    def __init__(self, database: Database, store: ObjectStore, upkeep: UpkeepSettings) -> None:
        self._database = database
        self._store = store
        self._upkeep = upkeep
        self._woken = asyncio.Event()
        # Uploads that have ended. Lost with the process, but then the sweep finds their objects by their age.
        self._ended: set[str] = set()

    def wake(self) -> None:
        """There is something to delete."""
        self._woken.set()

    def give_up(self, key: str) -> None:
        """An upload has ended: its object becomes garbage unless it was kept."""
        self._ended.add(key)
        self._woken.set()

    async def run(self) -> None:
        """Goes on until cancelled, whatever is away meanwhile."""
        while True:
            self._woken.clear()
            try:
                await self._drop_ended()
                while await self._collect_batch() == self._upkeep.batch:
                    pass
            except AppError as error:
                logger.debug("garbage waits: %s", error.message)
            try:
                async with asyncio.timeout(self._upkeep.sweep_seconds):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def settle(self) -> None:
        """Writes down, as the process ends, which uploads have ended."""
        try:
            await self._drop_ended()
        except AppError as error:
            logger.warning("%d objects are left to the sweep: %s", len(self._ended), error.message)

    async def _drop_ended(self) -> None:
        ended = frozenset(self._ended)
        if ended:
            settled = select(objects.c.key).where(objects.c.key.in_(ended), objects.c.state != "writing")
            # A row that is not there may still come, by a commit whose caller is gone: an insert waits for
            # it, an update would pass it by. A row too many costs the removal of what is not there.
            unkept = insert(objects).on_conflict_do_update(
                index_elements=["key"], set_=DROPPED, where=objects.c.state == "writing"
            )
            async with self._database.transaction() as connection:
                keys = ended.difference(await connection.scalars(settled))
                if keys:
                    rows = [{"key": key, "state": "garbage", "media_type": ""} for key in keys]
                    await connection.execute(unkept, rows)
            self._ended -= ended

    async def _collect_batch(self) -> int:
        """Deletes some of what is due.

        Claimed beforehand: neither a connection nor a lock is held while the object store is waited for.
        """
        deleted = []
        for key in await self._claim():
            try:
                await self._store.remove(key)
            except Unavailable:
                break
            fault_point("storage.garbage.removed")
            deleted.append(key)
        if deleted:
            async with self._database.transaction() as connection:
                gone = await connection.execute(delete(objects).where(objects.c.key.in_(deleted)))
            _DELETED.inc(gone.rowcount)
        return len(deleted)

    async def _claim(self) -> Sequence[str]:
        """Keys of what is due, counted as tried already: until it is due again nobody else takes it."""
        upkeep = self._upkeep
        due = (
            select(objects.c.key)
            .where(objects.c.state == "garbage", objects.c.next_time <= func.now())
            .order_by(objects.c.next_time)
            .limit(upkeep.batch)
            .with_for_update(skip_locked=True)
        )
        seconds = func.least(upkeep.max_retry_seconds, upkeep.retry_seconds * func.power(2, objects.c.tries))
        claimed = (
            update(objects)
            .where(objects.c.key.in_(due.scalar_subquery()))
            .values(tries=objects.c.tries + 1, next_time=func.now() + seconds * timedelta(seconds=1))
            .returning(objects.c.key)
        )
        async with self._database.transaction() as connection:
            return (await connection.scalars(claimed)).all()
