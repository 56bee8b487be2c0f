"""What an attempt reports of its job: events, checkpoints, its end. All of it under the epoch's fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from prometheus_client import Counter
from sqlalchemy import delete, insert

from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from guidehall.core.faults import fault_point
from services.trainer.checkpoints import discard, newest_checkpoint
from services.trainer.database import Database, Unit
from services.trainer.documents import Document
from services.trainer.journal import Cause, Journal, Untold, append
from services.trainer.leases import Grant, Held, Leases, find_attempt, given, hold
from services.trainer.lifecycle import (
    REASONS,
    EndReason,
    Event,
    Finished,
    Outcome,
    Released,
    StaleEpoch,
    State,
)
from services.trainer.records import Checkpoint, Job, Note, ObjectRef
from services.trainer.settings import LeaseSettings
from services.trainer.tables import checkpoints
from services.trainer.wakes import Ear

# Name of the output that every successful attempt has: the result's document.
RESULT_OUTPUT = "result"
MOST_OUTPUTS = 1000
_ENDED = Counter("guidehall_attempts_ended", "Attempts that reported their end", ["outcome", "reason"])


@dataclass(frozen=True)
class Rest:
    """What no session was told of an attempt before its end.

    Attributes:
        started_seconds_ago: how long ago the pipeline began; None where a session was told, or it did not.
        first: number that the worker gave to the first of `notes`.
        notes: events.
    """

    started_seconds_ago: float | None = None
    first: int = 1
    notes: Sequence[Note] = ()


NO_REST = Rest()


class Reports:
    """Stores what attempts report."""

    def __init__(self, database: Database, journal: Journal, leases: Leases, settings: LeaseSettings) -> None:
        self._database = database
        self._journal = journal
        self._leases = leases
        self._settings = settings

    async def events(
        self,
        principal: Principal,
        name: str,
        epoch: int,
        first: int,
        notes: Sequence[Note],
        deaf: Ear | None = None,
    ) -> int:
        """Stores a batch of events whose first one the worker numbered `first`; a repeat is passed over.

        `deaf` is the ear of who brings them.

        Returns:
            The number of the newest event stored.

        Raises:
            InvalidArgument: the batch is too large, or leaves a gap after what is stored.
            NotFound, StaleEpoch, Unauthenticated: as `hold`.
        """
        self._check_size(notes)
        async with self._database.unit(deaf) as unit:
            held = await hold(unit, principal, name, epoch)
            stored = held.stored_number
            fresh = _fresh(held, first, notes)
            if fresh:
                await append(unit, held.job, fresh, _newest(fresh))
                stored += len(fresh)
                unit.change_attempt(held.job.id, epoch, {"last_event_number": stored})
                fault_point("trainer.events.stored")
        fault_point("trainer.events.committed")
        return stored

    async def checkpoint(self, principal: Principal, name: str, epoch: int, checkpoint: Checkpoint) -> int:
        """Makes a staged checkpoint the one to go on from; harmless to repeat.

        Returns:
            Ordinal of the one that it replaced; 0 for none.

        Raises:
            InvalidArgument: not newer than the newest.
            NotFound, StaleEpoch, Unauthenticated: as `hold`.
        """
        async with self._database.unit() as unit:
            job = (await hold(unit, principal, name, epoch)).job
            newest = await newest_checkpoint(unit.connection, job.id)
            if newest == checkpoint:
                return 0
            if newest is not None and (newest.epoch, newest.ordinal) >= (
                checkpoint.epoch,
                checkpoint.ordinal,
            ):
                allowed = f"more than {newest.ordinal}, the newest of this attempt"
                raise InvalidArgument.field("checkpoint.ordinal", checkpoint.ordinal, allowed)
            await _replace_checkpoints(unit, job, checkpoint)
            if newest is not None:
                discard(unit, job.name, checkpoint, job_ended=False)
            kept = {"checkpoint_ordinal": checkpoint.ordinal, "checkpoint_step": checkpoint.step}
            unit.change_attempt(job.id, epoch, kept)
            note = Note("checkpoint", {"ordinal": checkpoint.ordinal, "step": checkpoint.step})
            await append(unit, job, [note])
            fault_point("trainer.checkpoint.stored")
        fault_point("trainer.checkpoint.committed")
        return newest.ordinal if newest else 0

    async def finish(
        self,
        principal: Principal,
        name: str,
        epoch: int,
        outcome: Outcome,
        reason: EndReason | None,
        error: Document | None,
        outputs: Mapping[str, ObjectRef],
        lease_next: bool = False,
        rest: Rest = NO_REST,
    ) -> tuple[State, Grant | None]:
        """The end of an attempt: the one commit of its outputs. Harmless to repeat.

        Returns:
            The state that the job is in now, and the next job if it was asked for and one waits.

        Raises:
            InvalidArgument: it succeeded without a result, or has too many outputs, or the rest leaves a gap.
            FailedPrecondition: the lifecycle refuses the outcome.
            NotFound, StaleEpoch, Unauthenticated: as `hold`.
        """
        if outcome is Outcome.SUCCEEDED and RESULT_OUTPUT not in outputs:
            raise InvalidArgument.field(
                "outputs", sorted(outputs), f"an output named {RESULT_OUTPUT!r} among them"
            )
        if len(outputs) > MOST_OUTPUTS:
            raise InvalidArgument.field("outputs", f"{len(outputs)} outputs", f"at most {MOST_OUTPUTS}")
        self._check_size(rest.notes)
        event = Finished(epoch, outcome, reason or REASONS[outcome][0])
        if outcome is Outcome.FAILED and error is None:
            error = {"code": "UNKNOWN", "reason": event.reason.value, "message": "the worker gave no reason"}
        cause = Cause(error=error, reported=True, outputs={key: asdict(ref) for key, ref in outputs.items()})
        ended = await self._end(principal, name, epoch, event, cause, lease_next, rest)
        _ENDED.labels(outcome.value, event.reason.value).inc()
        return ended

    async def release(self, principal: Principal, name: str, epoch: int) -> State:
        """Takes a job back from a worker that leaves. Harmless to repeat.

        Raises:
            NotFound, StaleEpoch, Unauthenticated: as `hold`.
        """
        return (await self._end(principal, name, epoch, Released(epoch), Cause(reported=True), False))[0]

    def _check_size(self, notes: Sequence[Note]) -> None:
        most = self._settings.max_batch_events
        if len(notes) > most:
            raise InvalidArgument.field("events", f"{len(notes)} events", f"at most {most}")

    async def _end(
        self,
        principal: Principal,
        name: str,
        epoch: int,
        event: Event,
        cause: Cause,
        lease_next: bool,
        rest: Rest = NO_REST,
    ) -> tuple[State, Grant | None]:
        async with self._database.unit() as unit:
            found = await find_attempt(unit, principal, name, epoch)
            job = found.job
            if not found.finished:
                if not found.current:
                    raise StaleEpoch(epoch, job.facts())
                job = await self._journal.apply(unit, job, event, cause, _untold(unit, found, rest))
            # A report that comes again may be an old one: what the worker has now must stay its own.
            more = lease_next and not found.finished
            grant = await self._leases.give_next(unit, found) if more else None
            fault_point("trainer.finish.stored")
        fault_point("trainer.finish.committed")
        if grant is not None:
            given(grant)
        return job.state, grant


def _fresh(held: Held, first: int, notes: Sequence[Note]) -> Sequence[Note]:
    """Those events of a batch that are not stored yet.

    Raises:
        InvalidArgument: the batch leaves a gap after what is.
    """
    stored = held.stored_number
    if not 1 <= first <= stored + 1:
        raise InvalidArgument.field("events.first_number", first, f"1 to {stored + 1}: no gaps")
    return notes[stored + 1 - first :]


def _untold(unit: Unit, held: Held, rest: Rest) -> Untold:
    """What an attempt brings along with its end; to be told before that."""
    start_time = None
    if rest.started_seconds_ago is not None:
        # By the database's clock, and not before the attempt had the job.
        start_time = held.time - timedelta(seconds=rest.started_seconds_ago)
        start_time = min(held.time, max(start_time, held.job.update_time))
    fresh = _fresh(held, rest.first, rest.notes) if rest.notes else ()
    if fresh:
        number = held.stored_number + len(fresh)
        unit.change_attempt(held.job.id, held.job.lease_epoch, {"last_event_number": number})
    return Untold(start_time, fresh, _newest(fresh))


async def _replace_checkpoints(unit: Unit, job: Job, checkpoint: Checkpoint) -> None:
    # At once: what a unit forgets goes when it commits, after the new one has come.
    await unit.connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job.id))
    row = {
        "job_id": job.id,
        "epoch": checkpoint.epoch,
        "ordinal": checkpoint.ordinal,
        "step": checkpoint.step,
    }
    await unit.connection.execute(insert(checkpoints).values(row | asdict(checkpoint.object)))


def _newest(notes: Sequence[Note]) -> dict[str, Any]:
    """What a batch changes in the job's row."""
    values: dict[str, Any] = {}
    for note in notes:
        if note.kind == "progress":
            values["progress"] = note.payload
        elif note.kind == "log_line":
            values["last_log_line"] = note.payload["line"]
    return values
