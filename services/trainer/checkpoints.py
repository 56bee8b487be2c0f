"""Committed checkpoints: the newest of a job, to go on from, and what an ended job leaves for a retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from services.trainer.database import Unit
from services.trainer.documents import Document
from services.trainer.records import Checkpoint, Job, ObjectRef
from services.trainer.tables import checkpoints, jobs


async def newest_checkpoint(connection: AsyncConnection, job_id: str) -> Checkpoint | None:
    """Where the next attempt goes on from."""
    return (await newest_checkpoints(connection, [job_id])).get(job_id)


async def newest_checkpoints(connection: AsyncConnection, job_ids: Sequence[str]) -> Mapping[str, Checkpoint]:
    """`newest_checkpoint` of many jobs, by id; those without one are left out."""
    if not job_ids:
        return {}
    statement = (
        select(checkpoints)
        .distinct(checkpoints.c.job_id)
        .where(checkpoints.c.job_id.in_(job_ids))
        .order_by(checkpoints.c.job_id, checkpoints.c.epoch.desc(), checkpoints.c.ordinal.desc())
    )
    return {row.job_id: _checkpoint(row) for row in await connection.execute(statement)}


def _checkpoint(row: Any) -> Checkpoint:
    content = ObjectRef(row.sha256, row.size_bytes, row.media_type)
    return Checkpoint(row.ordinal, row.step, row.epoch, content)


async def starting_point(connection: AsyncConnection, job: Job) -> tuple[Checkpoint | None, str]:
    """What an attempt at a job goes on from: its own newest checkpoint, else that of the job that it retries.

    Returns:
        The checkpoint, and the id of the job that made it.
    """
    # A job that was never leased, or is just being leased for the first time, has none.
    own = await newest_checkpoint(connection, job.id) if job.lease_epoch > 1 or job.end_reason else None
    if own is None and job.checkpoint_from is not None:
        return await newest_checkpoint(connection, job.checkpoint_from), job.checkpoint_from
    return own, job.id


def with_kept(error: Document | None, kept: Checkpoint) -> Document:
    """Why a job failed, and that a retry need not begin anew."""
    told = error or {"code": "UNKNOWN", "reason": "FAILED", "message": "the job failed"}
    hint = f"the checkpoint at step {kept.step} is kept: retry goes on from it"
    return told | {"message": f"{told['message']}; {hint}"}


def discard(
    unit: Unit,
    job_name: str,
    keep: Checkpoint | None = None,
    *,
    job_ended: bool = True,
    log_owner: str | None = None,
) -> None:
    """Has storage drop what a job staged: all of it, or, while it goes on, what is older than `keep`.

    The log of a job that has ended stays for `log_owner`, unless that is None.
    """
    payload = {
        "job": job_name,
        "keep_epoch": keep.epoch if keep else 0,
        "keep_ordinal": keep.ordinal if keep else 0,
        "job_ended": job_ended,
        "log_owner": log_owner,
    }
    unit.send("discard", names.JOB.parse(job_name)["job"], payload)


_PREDECESSORS = text(
    """
    WITH RECURSIVE chain AS (
        SELECT retried_from AS id FROM trainer.jobs WHERE id = :job_id
        UNION SELECT j.retried_from FROM chain JOIN trainer.jobs j ON j.id = chain.id
    )
    SELECT id::text FROM chain WHERE id IS NOT NULL
    """
)


async def drop_predecessors(unit: Unit, job: Job) -> None:
    """A retry has succeeded: drops what the jobs before it had kept for one."""
    if job.retried_from is not None:
        found = await unit.connection.execute(_PREDECESSORS, {"job_id": job.id})
        await _drop_kept(unit, jobs.c.id.in_([row.id for row in found]))


async def drop_ended_before(unit: Unit, time: ColumnElement[datetime]) -> None:
    """Drops what jobs that ended before a time have kept."""
    await _drop_kept(unit, jobs.c.end_time < time)


async def _drop_kept(unit: Unit, condition: ColumnElement[bool]) -> None:
    """Drops the checkpoints of some jobs that have ended, unless a retry that has not may still need one."""
    retry = jobs.alias()
    needed = exists().where(retry.c.checkpoint_from == jobs.c.id, retry.c.end_reason.is_(None))
    kept = and_(checkpoints.c.job_id == jobs.c.id, jobs.c.end_reason.is_not(None), ~needed)
    statement = delete(checkpoints).where(kept, condition).returning(jobs.c.project, jobs.c.id, jobs.c.owner)
    for row in set(await unit.connection.execute(statement)):
        discard(unit, names.JOB.format(project=row.project, job=row.id), log_owner=row.owner)
