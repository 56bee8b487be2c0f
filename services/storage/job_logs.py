"""Logs of jobs that have ended: of a success an artifact, of every other what its newest attempt left."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import may_see, reads_all
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, NotFound
from services.storage import garbage
from services.storage.database import Database
from services.storage.downloads import Content
from services.storage.jobs import Job, read_job
from services.storage.tables import artifacts, job_logs, objects, results, staged_objects

# The one name of a log, as an artifact and before.
NAME = "job.log"


class JobLogs:
    """The use cases.

    Args:
        database: of the service.
        max_age_seconds: how long the log of a job is kept that ended without a result.
    """

    def __init__(self, database: Database, max_age_seconds: float) -> None:
        self._database = database
        self._max_age = timedelta(seconds=max_age_seconds)

    async def log(self, principal: Principal, name: str) -> Content:
        """The log of a job.

        Raises:
            NotFound: there is none for the caller: the job is not his, has not ended, or said nothing.
        """
        names.JOB.parse(name, "job")
        missing = NotFound(
            f"there is no log of {name}: one is kept when the job has ended, if it wrote a line",
            metadata={"resource": name},
        )
        try:
            job = read_job(name)
        except InvalidArgument:
            # Of the form of a name, but no job can have it.
            raise missing from None
        of_failure = (
            select(job_logs.c.owner, objects)
            .join(objects, objects.c.key == job_logs.c.object_key)
            .where(_of(job))
        )
        of_success = (
            select(results.c.owner, objects)
            .join(
                artifacts, and_(artifacts.c.project == results.c.project, artifacts.c.result == results.c.id)
            )
            .join(objects, objects.c.key == artifacts.c.object_key)
            .where(results.c.project == job.project, results.c.id == job.id, artifacts.c.id == NAME)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(of_success.union_all(of_failure))).first()
        if row is None or not (may_see(principal, row.owner) or reads_all(principal, job.project)):
            raise missing
        return Content(row.key, row.size_bytes, row.sha256, row.media_type, f"{job.id}.log")

    async def forget(self, connection: AsyncConnection) -> None:
        """Drops logs that were kept long enough."""
        await _drop(connection, job_logs.c.create_time < func.now() - self._max_age)


async def keep_newest(connection: AsyncConnection, job: Job, owner: str) -> None:
    """Makes the log of the newest attempt that left one the job's, for its owner; the others stay staged.

    A guest's log that is kept already becomes the owner's. Whatever else was kept stays as it is.
    """
    newest = (
        select(staged_objects.c.epoch)
        .where(staged(job))
        .order_by(staged_objects.c.epoch.desc())
        .limit(1)
        .scalar_subquery()
    )
    taken = delete(staged_objects).where(staged(job), staged_objects.c.epoch == newest)
    key = await connection.scalar(taken.returning(staged_objects.c.object_key))
    if key is not None:
        row = {"project": job.project, "job": job.id, "owner": owner, "object_key": key}
        await connection.execute(insert(job_logs).values(row))
    else:
        claimed = update(job_logs).where(_of(job), job_logs.c.owner == "")
        await connection.execute(claimed.values(owner=owner))


async def drop_kept(connection: AsyncConnection, job: Job) -> None:
    """Drops the log that was kept of a job."""
    await _drop(connection, _of(job))


async def drop_owned(connection: AsyncConnection, user: str) -> None:
    """Drops every log that was kept for a user."""
    await _drop(connection, job_logs.c.owner == user)


async def _drop(connection: AsyncConnection, condition: ColumnElement[bool]) -> None:
    dropped = delete(job_logs).where(condition).returning(job_logs.c.object_key)
    await garbage.drop(connection, (await connection.scalars(dropped)).all())


def _of(job: Job) -> ColumnElement[bool]:
    return and_(job_logs.c.project == job.project, job_logs.c.job == job.id)


def staged(job: Job) -> ColumnElement[bool]:
    """Logs that attempts have brought and nobody has kept yet."""
    return and_(
        staged_objects.c.project == job.project,
        staged_objects.c.job == job.id,
        staged_objects.c.kind == "log",
    )
