"""Writes to a job: the lifecycle's effects, and events numbered without gaps, under the job's row lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from prometheus_client import Counter
from sqlalchemy import Interval, bindparam, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from guidehall.core.telemetry import trace_headers
from services.trainer.checkpoints import (
    discard,
    drop_predecessors,
    newest_checkpoint,
    with_kept,
)
from services.trainer.database import NOW, Unit
from services.trainer.documents import Document
from services.trainer.lifecycle import (
    FINAL,
    HELD,
    AppendEvent,
    BeginAttempt,
    Discard,
    Effect,
    EndAttempt,
    Event,
    JobFacts,
    Promote,
    PushDesired,
    RingDoorbell,
    StartAttempt,
    Started,
    State,
    Submitted,
    transition,
)
from services.trainer.notifications import notify
from services.trainer.records import Checkpoint, Job, Note, worker_name
from services.trainer.settings import LeaseSettings
from services.trainer.tables import jobs
from services.trainer.wakes import job_topic, pool_topic

# With reason ATTEMPTS_EXHAUSTED: jobs that were given up, each attempt having failed or lost its worker.
_ENDED = Counter("guidehall_jobs_ended", "Jobs that have ended", ["pool", "state", "reason"])


@dataclass(frozen=True)
class Cause:
    """What an event brings along besides itself.

    Attributes:
        worker_id: who takes the job.
        error: why it failed.
        reported: whether the worker itself ended its attempt.
        outputs: what a finished attempt staged.
        kept: the checkpoint that a job which fails leaves for a retry.
    """

    worker_id: str | None = None
    error: Document | None = None
    reported: bool = False
    outputs: Document | None = None
    kept: Checkpoint | None = None


NOTHING = Cause()


@dataclass(frozen=True)
class Untold:
    """What came before an event and is told together with it.

    Attributes:
        start_time: when the pipeline began, if it did and that is news.
        notes: events since then.
        values: what these change in the row of the job.
    """

    start_time: datetime | None = None
    notes: Sequence[Note] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


NOTHING_UNTOLD = Untold()


@dataclass(frozen=True)
class FromNow:
    """So long after the transaction's time, as the new value of a column."""

    seconds: float = 0.0


async def lock_job(connection: AsyncConnection, job_id: str) -> Job | None:
    """The job, held against other writers until the transaction ends."""
    row = (await connection.execute(_LOCK, {"job_id": job_id})).mappings().first()
    return None if row is None else Job.of(row)


class Journal:
    """Applies the lifecycle to rows."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._settings = settings

    async def submit(self, unit: Unit, new: Sequence[tuple[dict[str, Any], int]]) -> list[Job]:
        """Stores new jobs.

        Args:
            unit: the transaction.
            new: of each the columns that the lifecycle does not set, with its `head_start` in the queue, and
                how often it may be tried.
        """
        made = []
        traceparent = trace_headers().get("traceparent", "")
        for values, max_attempts in new:
            facts, effects = transition(None, Submitted(max_attempts))
            row = values | {
                "state": facts.state.value,
                "desired": facts.desired.value,
                "lease_epoch": facts.lease_epoch,
                "attempt_count": facts.attempt_count,
                "max_attempts": facts.max_attempts,
                "last_seq": 1,
                "traceparent": traceparent,
            }
            job = Job.of((await unit.connection.execute(_INSERT, row)).mappings().one())
            unit.append_events(job.id, 0, [_state_note(job, facts, NOTHING)])
            for effect in effects:
                await self._carry_out(unit, job, effect, NOTHING)
            made.append(job)
        return made

    async def apply(
        self, unit: Unit, job: Job, event: Event, cause: Cause = NOTHING, untold: Untold = NOTHING_UNTOLD
    ) -> Job:
        """Carries out what `event` does to a job that the transaction has locked.

        Returns:
            The job afterwards; the same when nothing changed.

        Raises:
            StaleEpoch, FailedPrecondition: the lifecycle refuses the event.
        """
        before = job.facts()
        begun: tuple[Effect, ...] = ()
        if untold.start_time is not None and job.state is State.LEASED:
            before, begun = transition(before, Started(job.lease_epoch))
        facts, effects = transition(before, event)
        if not effects and facts == job.facts():
            return job
        if Discard(keep_checkpoint=True) in effects:
            kept = await newest_checkpoint(unit.connection, job.id)
            if kept is not None:
                cause = replace(cause, kept=kept, error=with_kept(cause.error, kept))
        notes = list(untold.notes)
        values = dict(untold.values)
        if begun:
            notes.insert(0, _state_note(job, before, NOTHING, untold.start_time))
            values["start_time"] = job.start_time or untold.start_time
        if AppendEvent() in effects:
            notes.append(_state_note(job, facts, cause))
        after = await append(unit, job, notes, values | self._columns(job, facts, effects, cause))
        for effect in (*begun, *effects):
            await self._carry_out(unit, after, effect, cause, untold)
        if facts.end_reason is not None and job.end_reason is None:
            _ENDED.labels(job.pool, facts.state.value, facts.end_reason.value).inc()
        return after

    def _columns(self, job: Job, facts: JobFacts, effects: Sequence[Effect], cause: Cause) -> dict[str, Any]:
        """What changes in the row of the job besides its events."""
        values: dict[str, Any] = {
            "state": facts.state.value,
            "desired": facts.desired.value,
            "end_reason": facts.end_reason.value if facts.end_reason else None,
            "lease_epoch": facts.lease_epoch,
            "attempt_count": facts.attempt_count,
        }
        if facts.state is State.LEASED and job.state is not State.LEASED:
            # One lease longer: the worker itself ends an attempt that takes too long, and reports it.
            timeout = job.timeout_seconds + self._settings.seconds if job.timeout_seconds else None
            values |= {
                "worker_id": cause.worker_id,
                "lease_until": FromNow(self._settings.seconds),
                "timeout_at": FromNow(timeout) if timeout else None,
                "not_before": None,
            }
        if facts.state is State.RUNNING and job.start_time is None:
            values["start_time"] = FromNow()
        if job.state in HELD and facts.state not in HELD:
            values |= {"worker_id": None, "lease_until": None, "timeout_at": None}
        if facts.state in FINAL:
            values |= {"end_time": FromNow(), "error": cause.error if facts.state is State.FAILED else None}
        if facts.state is State.SUCCEEDED:
            values["outputs"] = cause.outputs
        for effect in effects:
            if isinstance(effect, RingDoorbell) and effect.failures:
                values["not_before"] = FromNow(self._retry_seconds(effect.failures))
        return values

    def _retry_seconds(self, failures: int) -> float:
        settings = self._settings
        return min(settings.retry_first_seconds * 2.0 ** (failures - 1), settings.retry_longest_seconds)

    async def _carry_out(
        self, unit: Unit, job: Job, effect: Effect, cause: Cause, untold: Untold = NOTHING_UNTOLD
    ) -> None:
        match effect:
            case BeginAttempt():
                unit.begin_attempt(job.id, job.lease_epoch, job.attempt_count, cause.worker_id)
            case StartAttempt(epoch):
                time = untold.start_time.isoformat() if untold.start_time else NOW
                unit.change_attempt(job.id, epoch, {"start_time": time})
            case EndAttempt(epoch, reason):
                ended = {"end_time": NOW, "end_reason": reason.value, "error": cause.error}
                unit.change_attempt(job.id, epoch, ended | {"finished": cause.reported})
            case RingDoorbell(failures):
                delay = self._retry_seconds(failures) if failures else 0.0
                ring(unit, job.pool, delay)
            case Promote(epoch):
                unit.send(
                    "promote",
                    job.id,
                    {"job": job.name, "lease_epoch": epoch, "owner": job.owner, "outputs": cause.outputs},
                )
                unit.forget_checkpoints(job.id)
                await drop_predecessors(unit, job)
            case Discard():
                discard(unit, job.name, cause.kept, log_owner=job.owner)
                if cause.kept is None:
                    unit.forget_checkpoints(job.id)
            case AppendEvent() | PushDesired():
                # Appending wakes the sessions and the watchers of the job.
                pass


async def append(unit: Unit, job: Job, notes: Sequence[Note], values: dict[str, Any] | None = None) -> Job:
    """Changes a locked job and appends events to it; whom it tells when it has ended is told then.

    Returns:
        The job afterwards.
    """
    changes = (values or {}) | {
        "last_seq": job.last_seq + len(notes),
        "version": job.version + 1,
        "update_time": FromNow(),
    }
    statement = _change(tuple((name, isinstance(value, FromNow)) for name, value in changes.items()))
    new = {
        f"new_{name}": timedelta(seconds=value.seconds) if isinstance(value, FromNow) else value
        for name, value in changes.items()
    }
    now = (await unit.connection.execute(statement, {"job_id": job.id, **new})).scalar_one()
    after = job.changed(
        {
            name: now + timedelta(seconds=value.seconds) if isinstance(value, FromNow) else value
            for name, value in changes.items()
        }
    )
    unit.append_events(job.id, job.last_seq, notes)
    unit.wake(job_topic(job.id))
    if after.complete and not job.complete:
        notify(unit, after)
    return after


# Made once, of which kind there are a few: making such a statement takes longer than its execution.
_LOCK = select(jobs).where(jobs.c.id == bindparam("job_id")).with_for_update()


@lru_cache(maxsize=64)
def _change(columns: tuple[tuple[str, bool], ...]) -> ReturningUpdate[Any]:
    """Sets columns of a job, given by their names and whether each is set to a time from now."""
    values: dict[str, Any] = {}
    for name, from_now in columns:
        if from_now:
            values[name] = func.now() + bindparam(f"new_{name}", type_=Interval)
        else:
            values[name] = bindparam(f"new_{name}", type_=jobs.c[name].type)
    return update(jobs).where(jobs.c.id == bindparam("job_id")).values(values).returning(func.now())


_INSERT = (
    insert(jobs).values(queue_rank=func.now() - bindparam("head_start", type_=Interval)).returning(*jobs.c)
)


def ring(unit: Unit, pool: str, delay_seconds: float = 0.0) -> None:
    """Says that work waits in a pool, now or after a while; once in a transaction is enough for now."""
    if not delay_seconds and pool_topic(pool) in unit.topics:
        return
    unit.send("doorbell", pool, {"wake": bool(delay_seconds)}, delay_seconds)
    if not delay_seconds:
        unit.wake(pool_topic(pool))


def unring(unit: Unit, pool: str) -> None:
    """Takes that back: what waited is in somebody's hands before the transaction commits."""
    unit.unsend("doorbell", pool)
    unit.topics.discard(pool_topic(pool))


def _state_note(job: Job, facts: JobFacts, cause: Cause, time: datetime | None = None) -> Note:
    payload: Document = {
        "state": facts.state.value,
        "desired_state": facts.desired.value,
        "end_reason": facts.end_reason.value if facts.end_reason else None,
        "error": cause.error,
        "lease_epoch": facts.lease_epoch,
        "worker": worker_name(job.pool, cause.worker_id or job.worker_id),
    }
    return Note("state_change", payload, time)


def seconds(count: float) -> Any:
    """An interval, to add to the database's time."""
    return literal(timedelta(seconds=count), Interval)
