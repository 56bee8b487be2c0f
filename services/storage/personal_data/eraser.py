"""Takes storage's steps of erasures, some rows in each transaction: killed anywhere, it goes on there."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import GROUP_PROJECT, user_reader
from guidehall.core.errors import AppError
from guidehall.core.faults import fault_point
from services.storage import garbage, job_logs, outbox, tables
from services.storage.audit import log
from services.storage.database import Database
from services.storage.personal_data.erasures import Erasure, complete, due, finish
from services.storage.tables import (
    artifacts,
    dataset_versions,
    datasets,
    history,
    model_versions,
    models,
    requests,
    results,
    upload_roles,
)

logger = logging.getLogger(__name__)

_TOGETHER = 50
_OWNED = {"datasets": datasets, "models": models, "results": results}
# What has the bytes of each, and the column that says whose they are.
_PARTS = {
    "datasets": (dataset_versions, "dataset"),
    "models": (model_versions, "model"),
    "results": (artifacts, "result"),
}
ERASED_METHOD = "/guidehall.identity.v1.PersonalDataService/Erased"


class Eraser:
    """Runs in every replica; what one has locked the others pass over."""

    def __init__(self, database: Database, collector: garbage.Collector, interval_seconds: float) -> None:
        self._database = database
        self._collector = collector
        self._interval = interval_seconds

    async def run(self) -> None:
        """Goes on until cancelled, whatever is away meanwhile."""
        while True:
            try:
                while await self.advance():
                    pass
            except AppError as error:
                logger.debug("erasures wait: %s", error.message)
            except SQLAlchemyError:
                # Such as a table that refers to what is to go: the rest of the service goes on.
                logger.exception("an erasure cannot go on")
            await asyncio.sleep(self._interval)

    async def advance(self) -> bool:
        """Takes one step, or a part of one; whether there was any.

        Raises:
            Unavailable: the database does not answer.
        """
        async with self._database.transaction() as connection:
            erasure = await due(connection)
            if erasure is None:
                return False
            step = erasure.steps_left[0]
            if await self._take(connection, erasure, step):
                await complete(connection, erasure.id, step)
            fault_point("storage.erasure.stepped")
        self._database.announced.set()
        self._collector.wake()
        return True

    async def _take(self, connection: AsyncConnection, erasure: Erasure, step: str) -> bool:
        """Does what a step is about; whether nothing of it is left."""
        user = erasure.user_id
        assert user is not None  # noqa: S101 (it is not done)
        if step == "history":
            await connection.execute(delete(history).where(history.c.user_id == user))
            await connection.execute(delete(upload_roles).where(upload_roles.c.user_id == user))
        elif step == "requests":
            await connection.execute(delete(requests).where(requests.c.caller == f"user:{user}"))
        elif step == "name":
            # An upload that had begun before may have ended only now.
            for kind, table in _OWNED.items():
                if not await _clear(connection, erasure, kind):
                    return False
                await _stop_sharing(connection, table, user)
            await self._finish(connection, erasure)
        else:
            return await _clear(connection, erasure, step)
        return True

    async def _finish(self, connection: AsyncConnection, erasure: Erasure) -> None:
        await finish(connection, erasure)
        entry = log.own_entry(ERASED_METHOD, names.USER.format(user=erasure.pseudonym))
        await log.append(connection, [entry])


async def _clear(connection: AsyncConnection, erasure: Erasure, step: str) -> bool:
    """Gives away or deletes what a user owns in one table; whether nothing of it is left."""
    user = erasure.user_id
    assert user is not None  # noqa: S101 (it is not done)
    table = _OWNED[step]
    if table is results:
        await _clear_logs(connection, erasure, user)
    # What is in a group's project is the group's: it stays, without the name of who made it.
    await _hand_over(connection, table, user, erasure.pseudonym, table.c.project.startswith(GROUP_PROJECT))
    if erasure.hand_over_to:
        await _hand_over(connection, table, user, erasure.hand_over_to)
        return True
    return await _delete(connection, step, user)


async def _clear_logs(connection: AsyncConnection, erasure: Erasure, user: str) -> None:
    """Logs of jobs without a result go where results go."""
    table = tables.job_logs
    await _hand_over(connection, table, user, erasure.pseudonym, table.c.project.startswith(GROUP_PROJECT))
    if erasure.hand_over_to:
        await _hand_over(connection, table, user, erasure.hand_over_to)
    else:
        await job_logs.drop_owned(connection, user)


async def _hand_over(
    connection: AsyncConnection, table: Table, user: str, heir: str, *which: ColumnElement[bool]
) -> None:
    await _change(connection, table, {"owner": heir}, table.c.owner == user, *which)


async def _stop_sharing(connection: AsyncConnection, table: Table, user: str) -> None:
    """Nothing of others' says any more that it is shared with a user."""
    reader = user_reader(user)
    without = func.array_remove(table.c.readers, reader)
    await _change(connection, table, {"readers": without}, table.c.readers.contains([reader]))


async def _change(
    connection: AsyncConnection, table: Table, values: dict[str, Any], *which: ColumnElement[bool]
) -> None:
    if "revision" in table.c:
        values = values | {"revision": table.c.revision + 1, "update_time": func.now()}
    await connection.execute(update(table).where(*which).values(values))


async def _delete(connection: AsyncConnection, step: str, user: str) -> bool:
    """Deletes some of what a user owns in one table, with its versions or files; whether nothing is left."""
    table, (parts, series) = _OWNED[step], _PARTS[step]
    rows = (await connection.execute(_some(table, user))).all()
    told = []
    for row in rows:
        gone = delete(parts).filter_by(**{"project": row.project, series: row.id})
        keys = (await connection.scalars(gone.returning(parts.c.object_key))).all()
        await garbage.drop(connection, keys)
        await connection.execute(delete(table).filter_by(project=row.project, id=row.id))
        if table is models:
            name = names.MODEL.format(project=row.project, model=row.id)
            told.append(outbox.Announcement(outbox.MODEL_DELETED, {"model": name, "deleted": True}))
    await outbox.enqueue(connection, told)
    return len(rows) < _TOGETHER


def _some(table: Table, user: str) -> Select[Any]:
    return select(table.c.project, table.c.id).where(table.c.owner == user).limit(_TOGETHER).with_for_update()
