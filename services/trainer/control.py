"""What owners do to their jobs after submission: wishes, changes, deletion, claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, false, func, select

from guidehall.core.access import changed_readers, owner_for, require_project, require_readable
from guidehall.core.auth import Principal
from guidehall.core.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied
from guidehall.core.faults import fault_point
from services.trainer.audit import audit
from services.trainer.checkpoints import discard, newest_checkpoint
from services.trainer.database import Database, Unit
from services.trainer.jobs import conditions, lock_changeable
from services.trainer.journal import Journal, append, lock_job
from services.trainer.leases import job_id_of
from services.trainer.lifecycle import (
    FINAL,
    HELD,
    CancelRequested,
    Event,
    PauseRequested,
    ResumeRequested,
    State,
    StopRequested,
)
from services.trainer.notifications import Target, check_targets
from services.trainer.pools import Pools
from services.trainer.queues import Queues, Seen
from services.trainer.records import Job
from services.trainer.scheduler import NORMAL_PRIORITY, moved_rank
from services.trainer.settings import TrainerSettings
from services.trainer.submissions import check_display_name, check_labels, check_priority
from services.trainer.tables import jobs
from services.trainer.wakes import job_topic

# What each method asks the lifecycle for.
WISHES: Mapping[str, Event] = {
    "CancelJob": CancelRequested(),
    "PauseJob": PauseRequested(),
    "ResumeJob": ResumeRequested(),
    "StopJob": StopRequested(),
}
UPDATABLE = ("display_name", "labels", "priority", "notifications")
_WAITING = frozenset({State.QUEUED, State.PAUSED})
# Deleted in one transaction.
_PURGED_TOGETHER = 100


@dataclass(frozen=True)
class Update:
    """What to change in a job; `paths` says which of it."""

    paths: Sequence[str]
    display_name: str
    labels: Mapping[str, str]
    priority: int
    notifications: Sequence[Target]


@dataclass(frozen=True)
class Purged:
    """How many jobs were, or would be, deleted, and how many were left alone."""

    deleted: int
    skipped_running: int
    skipped_queued: int
    skipped_publishing: int


class Control:
    """Changes to jobs, for owners and operators."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        pools: Pools,
        queues: Queues,
        settings: TrainerSettings,
    ) -> None:
        self._database = database
        self._journal = journal
        self._pools = pools
        self._queues = queues
        self._settings = settings.jobs
        self._notify = settings.notify

    async def wish(self, principal: Principal, method: str, name: str) -> Seen:
        """Asks for what a method of `WISHES` stands for; harmless to repeat.

        Raises:
            NotFound: the caller sees no job of this name.
            PermissionDenied: the caller may only read it.
            FailedPrecondition: the job is not in a state for it.
            ResourceExhausted: it would wait, and its owner has too many that do.
        """
        async with self._database.unit() as unit:
            job = await lock_changeable(unit, principal, name)
            if job.state is State.PAUSED and method == "ResumeJob":
                await self._pools.require_room(unit.connection, principal, job.owner, job.pool)
            after = await self._journal.apply(unit, job, WISHES[method])
            if after is not job:
                audit(unit, principal, method, name, etag_before=job.etag, etag_after=after.etag)
        return (await self._queues.see_stored(self._database, [after]))[0]

    async def update(self, principal: Principal, name: str, etag: str, change: Update) -> Seen:
        """Changes some fields; harmless to repeat.

        Raises:
            InvalidArgument: a path or a value is wrong.
            NotFound: the caller sees no job of this name.
            PermissionDenied: the caller may only read it.
            Aborted: it has changed since the caller saw `etag`.
            FailedPrecondition: another priority for a job that does not wait.
        """
        values = self._changes(change)
        async with self._database.unit() as unit:
            job = await lock_changeable(unit, principal, name)
            _require_etag(etag, job)
            values = {key: value for key, value in values.items() if getattr(job, key) != value}
            if "priority" in values:
                values["queue_rank"] = self._moved(job, values["priority"])
            if values:
                after = await append(unit, job, [], values)
                audit(unit, principal, "UpdateJob", name, etag_before=job.etag, etag_after=after.etag)
                job = after
        return (await self._queues.see_stored(self._database, [job]))[0]

    async def share(self, principal: Principal, name: str, add: Sequence[str], remove: Sequence[str]) -> Seen:
        """Changes who else may read a job; harmless to repeat.

        Raises:
            NotFound: the caller sees no job of this name.
            PermissionDenied: the caller may only read it.
            InvalidArgument: not how readers are named, or too many.
        """
        async with self._database.unit() as unit:
            job = await lock_changeable(unit, principal, name)
            readers = changed_readers(job.readers, add, remove)
            if readers != list(job.readers):
                after = await append(unit, job, [], {"readers": readers})
                audit(unit, principal, "ShareJob", name, etag_before=job.etag, etag_after=after.etag)
                job = after
        return (await self._queues.see_stored(self._database, [job]))[0]

    def _changes(self, change: Update) -> dict[str, Any]:
        """The columns that an update sets, checked."""
        values: dict[str, Any] = {}
        if not change.paths:
            raise InvalidArgument.field("update_mask", "", f"one or more of {', '.join(UPDATABLE)}")
        for path in change.paths:
            match path:
                case "display_name":
                    check_display_name(change.display_name)
                    values[path] = change.display_name
                case "labels":
                    check_labels(change.labels)
                    values[path] = dict(change.labels)
                case "priority":
                    check_priority(change.priority)
                    values[path] = change.priority or NORMAL_PRIORITY
                case "notifications":
                    check_targets(change.notifications, self._notify)
                    values[path] = [dict(target) for target in change.notifications]
                case _:
                    raise InvalidArgument.field("update_mask", path, f"one of {', '.join(UPDATABLE)}")
        return values

    def _moved(self, job: Job, priority: int) -> datetime:
        """The place in the queue that goes with another priority."""
        if job.state not in _WAITING:
            raise FailedPrecondition(
                f"the priority of a job that is {job.state.value} cannot be changed: it does not wait",
                reason="JOB_STATE",
                metadata={"state": job.state.value},
            )
        return moved_rank(job, priority, self._settings.ageing_seconds)

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """Forgets a job that has ended, its events, log and kept checkpoint; its result and models stay.

        Raises:
            NotFound: the caller sees no job of this name, also when it was deleted before.
            PermissionDenied: the caller may only read it.
            Aborted: it has changed since the caller saw `etag`.
            FailedPrecondition: it has not ended, or its result is still being published.
        """
        async with self._database.unit() as unit:
            job = await lock_changeable(unit, principal, name)
            _require_etag(etag, job)
            _require_complete(job)
            await _delete(unit, principal, "DeleteJob", [job])

    async def purge(
        self, principal: Principal, project: str, filter_text: str, *, include_queued: bool, force: bool
    ) -> Purged:
        """Deletes the caller's own jobs that a filter matches; only counts them unless `force`.

        It goes by some at a time. When it is interrupted, what is deleted stays so, and a repeat goes on.

        Raises:
            InvalidArgument: the filter is wrong.
            PermissionDenied: the caller changes nothing in this project.
        """
        owner = owner_for(principal)
        require_project(principal, project)
        # Guests own nothing by name: whose job it is nobody can tell.
        mine = and_(jobs.c.project == project, jobs.c.owner == owner) if owner else false()
        matching = and_(mine, *conditions(filter_text))
        # Who is to be told of a success is told once its result is published.
        publishing = and_(jobs.c.state == State.SUCCEEDED.value, jobs.c.result.is_(None))
        ended = and_(jobs.c.state.in_([state.value for state in FINAL]), ~publishing)
        waiting = jobs.c.state.in_([state.value for state in _WAITING])
        doomed = ended | waiting if include_queued else ended
        async with self._database.statements() as connection:
            counts = select(
                func.count(case((doomed, 1))),
                func.count(case((jobs.c.state.in_([state.value for state in HELD]), 1))),
                func.count(case((waiting & ~doomed, 1))),
                func.count(case((publishing, 1))),
            )
            found = (await connection.execute(counts.select_from(jobs).where(matching))).one()
        deleted = found[0]
        if force:
            deleted = 0
            while some := await self._purge_some(principal, matching & doomed):
                deleted += some
        return Purged(deleted, *found[1:])

    async def _purge_some(self, principal: Principal, doomed: ColumnElement[bool]) -> int:
        """Deletes a number of jobs, in one transaction."""
        async with self._database.unit() as unit:
            statement = (
                select(jobs).where(doomed).order_by(jobs.c.id).limit(_PURGED_TOGETHER).with_for_update()
            )
            rows = (await unit.connection.execute(statement)).mappings().all()
            # Of those that wait, this is the end; of the others nothing changes.
            over = [await self._journal.apply(unit, Job.of(row), CancelRequested()) for row in rows]
            # Before the jobs go that the events belong to.
            await unit.flush()
            await _delete(unit, principal, "PurgeJobs", over)
        return len(over)

    async def claim(self, principal: Principal, name: str) -> Seen:
        """Makes a guest's job the caller's own: whoever knows its name may. One's own stays so.

        Raises:
            NotFound: there is none, or it is another's: nobody learns which.
            FailedPrecondition: it is another's, and the caller may see it.
            PermissionDenied: a guest cannot own a job.
            ResourceExhausted: it waits, and the caller has too many that do.
        """
        owner = owner_for(principal)
        if not owner:
            raise PermissionDenied("a guest cannot own a job: log in first")
        async with self._database.unit() as unit:
            job = await lock_job(unit.connection, job_id_of(name, "name"))
            if job is None or job.name != name or job.owner not in ("", owner):
                require_readable(principal, None if job is None or job.name != name else job, name)
                raise FailedPrecondition(f"{name} has an owner", reason="JOB_OWNED")
            if job.owner == "":
                if job.state is State.QUEUED:
                    await self._pools.require_room(unit.connection, principal, owner, job.pool)
                after = await append(unit, job, [], {"owner": owner})
                if job.result is not None:
                    # What is published later is published for the owner.
                    unit.send("claim", job.id, {"job": job.name, "owner": owner})
                elif job.state in FINAL - {State.SUCCEEDED}:
                    # Its log was kept for nobody, or will be: in whatever order the two arrive.
                    kept = await newest_checkpoint(unit.connection, job.id)
                    discard(unit, job.name, kept, log_owner=owner)
                audit(unit, principal, "ClaimJob", name, etag_before=job.etag, etag_after=after.etag)
                job = after
            fault_point("trainer.claim.stored")
        fault_point("trainer.claim.committed")
        return (await self._queues.see_stored(self._database, [job]))[0]


def _require_etag(given: str, job: Job) -> None:
    if given and given != job.etag:
        raise Aborted(
            f"etag: got {given[:80]!r}, but the job has changed since; read it again",
            reason="ETAG_MISMATCH",
            metadata={"etag": job.etag},
        )


def _require_complete(job: Job) -> None:
    """Raises FailedPrecondition unless nothing can follow in the job any more."""
    if job.complete:
        return
    if job.state is State.SUCCEEDED:
        problem = "a job cannot be deleted while its result is being published: try again later"
    else:
        problem = f"a job that is {job.state.value} cannot be deleted: cancel it first"
    raise FailedPrecondition(problem, reason="JOB_STATE", metadata={"state": job.state.value})


async def _delete(unit: Unit, principal: Principal, method: str, ended: Sequence[Job]) -> None:
    """Deletes jobs that have ended, their logs, and what they kept for a retry."""
    ids = [job.id for job in ended]
    for job in ended:
        audit(unit, principal, method, job.name, etag_before=job.etag)
        if job.state is not State.SUCCEEDED and job.lease_epoch:
            discard(unit, job.name)
        # Its watchers look, and find that it is gone.
        unit.wake(job_topic(job.id))
    await unit.connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
