"""Which job comes next, and how many are before one.

A job's place in its pool is `queue_rank`, the time of its submission moved back by `ageing_seconds` for each
step of priority. So a job of higher priority goes first among those of about its age, and one of lower
priority that has waited longer by `ageing_seconds` goes before it: nothing waits for ever. A job that goes
back into the queue keeps its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer.journal import seconds
from services.trainer.lifecycle import State
from services.trainer.records import Job, Worker
from services.trainer.tables import jobs

# Numbers of JobPriority.
NORMAL_PRIORITY, HIGHEST_PRIORITY = 2, 3

_QUEUED = jobs.c.state == State.QUEUED.value
_PLACE = tuple_(jobs.c.queue_rank, jobs.c.id)
_PLACE_TYPES = (jobs.c.queue_rank.type, jobs.c.id.type)


def queue_rank(priority: int, ageing_seconds: float) -> Any:
    """The place of a job that is submitted now."""
    return func.now() - seconds((priority - NORMAL_PRIORITY) * ageing_seconds)


def moved_rank(before: int, priority: int, ageing_seconds: float) -> Any:
    """The place of a job that waits when its priority is changed: as if it had had it from the start."""
    return jobs.c.queue_rank - seconds((priority - before) * ageing_seconds)


async def next_job(connection: AsyncConnection, worker: Worker) -> Job | None:
    """The first job that `worker` can run, locked; one that another lease is just taking is passed over."""
    memory = worker.capabilities.get("device_memory_bytes") or worker.capabilities.get("memory_bytes") or 0
    conditions = [
        _QUEUED,
        jobs.c.pool == worker.pool,
        or_(jobs.c.not_before.is_(None), jobs.c.not_before <= func.now()),
        tuple_(jobs.c.pipeline, jobs.c.pipeline_version).in_(worker.pipelines),
    ]
    if memory:
        conditions.append(jobs.c.memory_hint_bytes <= memory)
    statement = (
        select(jobs)
        .where(*conditions)
        .order_by(jobs.c.queue_rank, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = (await connection.execute(statement)).mappings().first()
    return None if row is None else Job.of(row)


async def queue_position(connection: AsyncConnection, job: Job) -> int:
    """How many jobs are before this one; -1 when it is not queued."""
    if job.state is not State.QUEUED:
        return -1
    before = select(func.count()).where(
        _QUEUED, jobs.c.pool == job.pool, tuple_(job.queue_rank, job.id, types=_PLACE_TYPES) > _PLACE
    )
    return int((await connection.execute(before)).scalar_one())


async def queue_positions(connection: AsyncConnection, listed: Sequence[Job]) -> Mapping[str, int]:
    """`queue_position` of the queued ones among many jobs, by id."""
    queued = [job for job in listed if job.state is State.QUEUED]
    if not queued:
        return {}
    place = func.row_number().over(partition_by=jobs.c.pool, order_by=(jobs.c.queue_rank, jobs.c.id)) - 1
    pools = {job.pool for job in queued}
    queue = select(jobs.c.id, place.label("place")).where(_QUEUED, jobs.c.pool.in_(pools)).subquery()
    rows = await connection.execute(select(queue).where(queue.c.id.in_([job.id for job in queued])))
    return {row.id: int(row.place) for row in rows}
