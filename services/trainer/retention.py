"""What is kept of the past, and for how long: events of jobs, checkpoints of ended ones, lost workers.

The events of a job that are kept are always the newest, without a gap: `jobs.first_seq` is the first of them.
Of a job that ended long ago the last change of its state stays, so that whoever follows it learns the end.
"""

from __future__ import annotations

from sqlalchemy import func, text

from services.trainer.checkpoints import drop_ended_before
from services.trainer.database import Database
from services.trainer.journal import seconds
from services.trainer.settings import TrainerSettings

# The last events of a job: the change to its final state and, if it succeeded, that its result can be read.
_END = "(last_seq - (result IS NOT NULL)::int)"
_DROP = """
    WITH cut AS (
        UPDATE trainer.jobs SET first_seq = least({first}, first_seq + :step)
        WHERE id IN (SELECT id FROM trainer.jobs WHERE {due} LIMIT :batch FOR UPDATE SKIP LOCKED)
        RETURNING id, first_seq
    ), dropped AS (
        DELETE FROM trainer.job_events USING cut WHERE job_id = cut.id AND seq < cut.first_seq
    )
    SELECT count(*) FROM cut
"""
_DROP_OLD = text(
    _DROP.format(
        first=_END,
        due=f"end_reason IS NOT NULL AND end_time < now() - make_interval(secs => :keep_seconds)"
        f" AND first_seq < {_END}",
    )
)
# Some more than the most are let be, so that not every event of a long job has one dropped.
_DROP_SURPLUS = text(
    _DROP.format(
        first="last_seq - :most + 1",
        due="(end_reason IS NULL OR end_time > now() - interval '1 day')"
        " AND last_seq - first_seq + 1 > :most + :most / 10",
    )
)
# Attempts are kept as long as their jobs, and say who made them. A worker that is heard of again just now is
# locked, or is not lost any more when its row is looked at again.
_DROP_WORKERS = text(
    """
    WITH dropped AS (
        DELETE FROM trainer.workers WHERE id IN (
            SELECT id FROM trainer.workers AS w
            WHERE last_seen_time < now() - make_interval(secs => :keep_seconds)
                AND NOT EXISTS (SELECT FROM trainer.attempts WHERE worker_id = w.id)
                AND NOT EXISTS (SELECT FROM trainer.jobs WHERE worker_id = w.id)
            LIMIT :batch FOR UPDATE SKIP LOCKED)
        RETURNING id
    )
    SELECT count(*) FROM dropped
    """
)
# In one transaction: it must not take long, however many events a job has.
_JOBS_TOGETHER, _EVENTS_TOGETHER, _WORKERS_TOGETHER = 20, 5000, 500


async def drop_old(database: Database, settings: TrainerSettings) -> None:
    """Drops what is due, a part of it in each transaction."""
    watch = settings.watch
    events = {"batch": _JOBS_TOGETHER, "step": _EVENTS_TOGETHER}
    workers = {"batch": _WORKERS_TOGETHER, "keep_seconds": settings.lease.worker_keep_seconds}
    for statement, values in (
        (_DROP_OLD, events | {"keep_seconds": watch.keep_seconds}),
        (_DROP_SURPLUS, events | {"most": watch.max_events}),
        (_DROP_WORKERS, workers),
    ):
        dropped = 1
        while dropped:
            async with database.unit() as unit:
                dropped = (await unit.connection.execute(statement, values)).scalar_one()
    async with database.unit() as unit:
        await drop_ended_before(unit, func.now() - seconds(settings.jobs.checkpoint_keep_seconds))
