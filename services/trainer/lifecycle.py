"""What may happen to a job: one pure function from a job and an event to the job afterwards and its effects.

The state says where a job is, the desired state what its owner wants. "Pausing" or "stopping" is the two
differing. An attempt is one lease of the job, known by its epoch; every event that comes from an attempt
carries the epoch and is refused when another one is current.

    QUEUED ──lease──► LEASED ──start──► RUNNING ──finish──► SUCCEEDED, FAILED, CANCELLED
      ▲  ▲               └───────┬─────────┘
      │  └── lost, released, ────┤
      │      failed in passing   │
      └───── resume ── PAUSED ◄──┘ paused
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from guidehall.core.errors import Aborted, FailedPrecondition


class State(enum.Enum):
    """Where a job is. The names are those of `JobState`."""

    QUEUED = "QUEUED"
    LEASED = "LEASED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
HELD = frozenset({State.LEASED, State.RUNNING})


class Desired(enum.Enum):
    """What the owner wants. The names are those of `DesiredState`."""

    RUN = "RUN"
    PAUSE = "PAUSE"
    STOP = "STOP"
    CANCEL = "CANCEL"


class EndReason(enum.Enum):
    """Why a job, or one attempt at it, ended. The names are those of `EndReason` on the wire."""

    COMPLETED = "COMPLETED"
    STOPPED_EARLY = "STOPPED_EARLY"
    CANCELLED_BY_USER = "CANCELLED_BY_USER"
    USER_ERROR = "USER_ERROR"
    TRANSIENT_ERROR = "TRANSIENT_ERROR"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMEOUT = "TIMEOUT"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    LEASE_LOST = "LEASE_LOST"
    RELEASED = "RELEASED"
    PAUSED = "PAUSED"
    HUNG = "HUNG"


# Failures that another attempt may not meet again.
RETRYABLE = frozenset({EndReason.TRANSIENT_ERROR, EndReason.OUT_OF_MEMORY, EndReason.HUNG})


class Outcome(enum.Enum):
    """What a worker says of its attempt. The names are those of `Outcome` on the wire."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


# What each outcome may give as its reason, the usual one first.
REASONS: dict[Outcome, tuple[EndReason, ...]] = {
    Outcome.SUCCEEDED: (EndReason.COMPLETED, EndReason.STOPPED_EARLY),
    Outcome.FAILED: (
        EndReason.TRANSIENT_ERROR,
        EndReason.USER_ERROR,
        EndReason.OUT_OF_MEMORY,
        EndReason.TIMEOUT,
        EndReason.HUNG,
    ),
    Outcome.CANCELLED: (EndReason.CANCELLED_BY_USER,),
    Outcome.PAUSED: (EndReason.PAUSED,),
}


@dataclass(frozen=True)
class JobFacts:
    """The part of a job that decides what may happen to it.

    Attributes:
        lease_epoch: leases granted so far; the current or the last one.
        attempt_count: leases that count against `max_attempts`; those handed back do not.
    """

    state: State
    desired: Desired
    end_reason: EndReason | None
    lease_epoch: int
    attempt_count: int
    max_attempts: int


# Events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """The owner handed the job in."""

    max_attempts: int


@dataclass(frozen=True)
class Leased:
    """A worker takes it."""


@dataclass(frozen=True)
class Started:
    """The pipeline's first line is about to run."""

    epoch: int


@dataclass(frozen=True)
class LeaseExpired:
    """Nothing was heard of the worker for as long as its lease lasts."""

    epoch: int


@dataclass(frozen=True)
class TimedOut:
    """The attempt took longer than the job allows."""

    epoch: int


@dataclass(frozen=True)
class Released:
    """The worker hands it back unfinished."""

    epoch: int


@dataclass(frozen=True)
class Finished:
    """The worker says how its attempt ended."""

    epoch: int
    outcome: Outcome
    reason: EndReason


@dataclass(frozen=True)
class CancelRequested:
    """The owner wants it to end and nothing kept."""


@dataclass(frozen=True)
class PauseRequested:
    """The owner wants it to leave its device and keep its place."""


@dataclass(frozen=True)
class ResumeRequested:
    """The owner wants a paused job to go on."""


@dataclass(frozen=True)
class StopRequested:
    """The owner wants it to end early with the best so far."""


Event = (
    Submitted
    | Leased
    | Started
    | LeaseExpired
    | TimedOut
    | Released
    | Finished
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | StopRequested
)


# Effects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AppendEvent:
    """Tell those who watch: the state or the desired state changed."""


@dataclass(frozen=True)
class BeginAttempt:
    """A row for the attempt whose epoch is now current."""


@dataclass(frozen=True)
class StartAttempt:
    """The attempt of this epoch runs its pipeline from now on."""

    epoch: int


@dataclass(frozen=True)
class EndAttempt:
    """The attempt of this epoch is over."""

    epoch: int
    reason: EndReason


@dataclass(frozen=True)
class RingDoorbell:
    """Work waits in the job's pool; after `failures` failures in a row it first waits a while."""

    failures: int = 0


@dataclass(frozen=True)
class PushDesired:
    """The worker that holds the job has to hear of the new desired state."""


@dataclass(frozen=True)
class Promote:
    """Make what the attempt of this epoch staged visible."""

    epoch: int


@dataclass(frozen=True)
class Discard:
    """Drop whatever the job staged, but perhaps for its newest checkpoint: a retry can go on from it."""

    keep_checkpoint: bool = False


Effect = (
    AppendEvent | BeginAttempt | StartAttempt | EndAttempt | RingDoorbell | PushDesired | Promote | Discard
)
Step = tuple[JobFacts, tuple[Effect, ...]]


class StaleEpoch(Aborted):
    """What an attempt reports after it has lost the job."""

    def __init__(self, epoch: int, job: JobFacts) -> None:
        super().__init__(
            f"lease_epoch {epoch} does not hold the job; it is {job.state.value} at epoch {job.lease_epoch}",
            reason="STALE_EPOCH",
            metadata={"lease_epoch": str(epoch), "current_lease_epoch": str(job.lease_epoch)},
        )


def transition(job: JobFacts | None, event: Event) -> Step:
    """The job after `event`, and what has to be done about it.

    No effects and the same facts mean that nothing changed: the event repeated an earlier one.

    Raises:
        StaleEpoch: an attempt reports that does not hold the job.
        FailedPrecondition: the job is not in a state for this event.
    """
    match job, event:
        case None, Submitted(max_attempts):
            return JobFacts(State.QUEUED, Desired.RUN, None, 0, 0, max_attempts), (
                AppendEvent(),
                RingDoorbell(),
            )
        case None, _:
            raise FailedPrecondition("the job has not been submitted", reason="JOB_STATE")
        case JobFacts(), Submitted():
            raise _refused(job, "be submitted again")
        case JobFacts(), Leased():
            return _lease(job)
        case JobFacts(), Started(epoch) | LeaseExpired(epoch) | TimedOut(epoch) | Released(epoch) | Finished(
            epoch
        ):
            if job.state not in HELD or epoch != job.lease_epoch:
                raise StaleEpoch(epoch, job)
            return _report(job, event)
        case JobFacts(), _:
            return _wish(job, event)


def _lease(job: JobFacts) -> Step:
    if job.state is not State.QUEUED:
        raise _refused(job, "be leased")
    after = replace(
        job, state=State.LEASED, lease_epoch=job.lease_epoch + 1, attempt_count=job.attempt_count + 1
    )
    return after, (BeginAttempt(), AppendEvent())


def _report(job: JobFacts, event: Event) -> Step:
    """What the attempt that holds the job reports, or what is found out about it."""
    match event:
        case Started():
            if job.state is State.RUNNING:
                return job, ()
            return replace(job, state=State.RUNNING), (StartAttempt(job.lease_epoch), AppendEvent())
        case LeaseExpired():
            return _leave(job, EndReason.LEASE_LOST)
        case Released():
            return _leave(_uncounted(job), EndReason.RELEASED)
        case TimedOut():
            return _fail(job, EndReason.TIMEOUT)
        case Finished(_, outcome, reason):
            return _finish(job, outcome, reason)
    raise AssertionError(event)


def _finish(job: JobFacts, outcome: Outcome, reason: EndReason) -> Step:
    if reason not in REASONS[outcome]:
        raise FailedPrecondition(f"{reason.value} is no reason for {outcome.value}", reason="END_REASON")
    match outcome:
        case Outcome.SUCCEEDED if job.desired is not Desired.CANCEL:
            return _end(job, State.SUCCEEDED, reason, reason, Promote(job.lease_epoch))
        case Outcome.SUCCEEDED:
            # The owner was promised that nothing is kept.
            return _cancelled(job, reason)
        case Outcome.CANCELLED:
            if job.desired is not Desired.CANCEL:
                raise _refused(job, "end as cancelled: nobody asked for it")
            return _cancelled(job, reason)
        case Outcome.PAUSED:
            return _leave(_uncounted(job), reason)
        case Outcome.FAILED if reason in RETRYABLE:
            return _leave(job, reason, failures=job.attempt_count)
        case Outcome.FAILED:
            return _fail(job, reason)


def _leave(job: JobFacts, reason: EndReason, failures: int = 0) -> Step:
    """An attempt ended without ending the job: where does the job go from here?"""
    if job.desired is Desired.CANCEL:
        return _cancelled(job, reason)
    if job.attempt_count >= job.max_attempts:
        return _end(job, State.FAILED, EndReason.ATTEMPTS_EXHAUSTED, reason, Discard(keep_checkpoint=True))
    ended = EndAttempt(job.lease_epoch, reason)
    if job.desired is Desired.PAUSE:
        return replace(job, state=State.PAUSED), (ended, AppendEvent())
    return replace(job, state=State.QUEUED), (ended, AppendEvent(), RingDoorbell(failures))


def _fail(job: JobFacts, reason: EndReason) -> Step:
    if job.desired is Desired.CANCEL:
        return _cancelled(job, reason)
    # One that merely took too long gets further with more time.
    return _end(job, State.FAILED, reason, reason, Discard(keep_checkpoint=reason is EndReason.TIMEOUT))


def _cancelled(job: JobFacts, attempt_reason: EndReason) -> Step:
    return _end(job, State.CANCELLED, EndReason.CANCELLED_BY_USER, attempt_reason, Discard())


def _end(job: JobFacts, state: State, reason: EndReason, attempt_reason: EndReason, effect: Effect) -> Step:
    """The one way into a final state. A job that nobody held has no attempt to end."""
    attempt = (EndAttempt(job.lease_epoch, attempt_reason),) if job.state in HELD else ()
    return replace(job, state=state, end_reason=reason), (*attempt, AppendEvent(), effect)


def _wish(job: JobFacts, event: Event) -> Step:
    """What the owner asks for."""
    match event:
        case CancelRequested():
            if job.state in FINAL or job.desired is Desired.CANCEL:
                return job, ()
            if job.state in HELD:
                return _push(job, Desired.CANCEL)
            return _cancelled(replace(job, desired=Desired.CANCEL), EndReason.CANCELLED_BY_USER)
        case PauseRequested() if job.state not in FINAL or job.desired is Desired.PAUSE:
            return _pause(job)
        case ResumeRequested() if job.state not in FINAL:
            return _resume(job)
        case StopRequested() if job.state not in FINAL or job.desired is Desired.STOP:
            return _stop(job)
    raise _refused(job, "be paused, resumed or stopped")


def _pause(job: JobFacts) -> Step:
    if job.desired is Desired.PAUSE:
        return job, ()
    if job.desired is not Desired.RUN:
        raise _refused(job, "be paused")
    if job.state in HELD:
        return _push(job, Desired.PAUSE)
    return replace(job, state=State.PAUSED, desired=Desired.PAUSE), (AppendEvent(),)


def _resume(job: JobFacts) -> Step:
    if job.desired is Desired.RUN:
        return job, ()
    if job.desired is not Desired.PAUSE:
        raise _refused(job, "be resumed")
    if job.state in HELD:
        return _push(job, Desired.RUN)
    return replace(job, state=State.QUEUED, desired=Desired.RUN), (AppendEvent(), RingDoorbell())


def _stop(job: JobFacts) -> Step:
    if job.desired is Desired.STOP:
        return job, ()
    if job.desired is Desired.CANCEL:
        raise _refused(job, "be stopped")
    if job.state in HELD:
        return _push(job, Desired.STOP)
    if job.lease_epoch == 0:
        # It never ran: there is no best so far to keep.
        reason = EndReason.STOPPED_EARLY
        return _end(replace(job, desired=Desired.STOP), State.CANCELLED, reason, reason, Discard())
    # A worker has to take it once more, to turn its checkpoint into a result.
    stopping = replace(job, state=State.QUEUED, desired=Desired.STOP)
    return stopping, (AppendEvent(), RingDoorbell())


def _push(job: JobFacts, desired: Desired) -> Step:
    return replace(job, desired=desired), (AppendEvent(), PushDesired())


def _uncounted(job: JobFacts) -> JobFacts:
    """The attempt handed the job back as it should: it does not count."""
    return replace(job, attempt_count=job.attempt_count - 1)


def _refused(job: JobFacts, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"a job that is {job.state.value} with {job.desired.value} desired cannot {what}",
        reason="JOB_STATE",
        metadata={"state": job.state.value, "desired_state": job.desired.value},
    )
