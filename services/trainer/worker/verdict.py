"""What an attempt comes to: a pure function of how its child ended and what was asked of it."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from guidehall.core.errors import Code
from guidehall.science.pipeline import Desired
from services.trainer.worker.messages import Broke, End, Left, OutOfMemory, Refused, Succeeded


class Outcome(enum.Enum):
    """The names are those of `Outcome` on the wire."""

    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()
    PAUSED = enum.auto()


class Reason(enum.Enum):
    """The names are those of `EndReason` on the wire."""

    COMPLETED = enum.auto()
    STOPPED_EARLY = enum.auto()
    CANCELLED_BY_USER = enum.auto()
    USER_ERROR = enum.auto()
    TRANSIENT_ERROR = enum.auto()
    OUT_OF_MEMORY = enum.auto()
    TIMEOUT = enum.auto()
    PAUSED = enum.auto()
    HUNG = enum.auto()


class Kill(enum.Enum):
    """Why the worker ended a child itself."""

    DISOBEYED_CANCEL = enum.auto()
    DRAINED = enum.auto()
    HUNG = enum.auto()
    TIMEOUT = enum.auto()


@dataclass(frozen=True)
class Fault:
    """Why something failed, as its owner may read it."""

    code: Code
    reason: str
    message: str
    violations: tuple[tuple[str, str], ...] = ()
    # Finds the full report in the worker's log.
    error_id: str = ""


@dataclass(frozen=True)
class Finish:
    """The attempt ended the job, or failed."""

    outcome: Outcome
    reason: Reason
    error: Fault | None = None


@dataclass(frozen=True)
class HandBack:
    """The job goes back to the queue: the worker leaves."""

    why: str = "the worker is shutting down"


@dataclass(frozen=True)
class Died:
    """The child ended without a word."""

    # Exit status; negative for a signal.
    status: int
    # Whether the kernel ended processes for lack of memory meanwhile.
    out_of_memory: bool = False


CANCELLED = Finish(Outcome.CANCELLED, Reason.CANCELLED_BY_USER)
_PAUSED = Finish(Outcome.PAUSED, Reason.PAUSED)


def failed(reason: Reason, code: Code, message: str, error_id: str = "") -> Finish:
    """A failure whose program-readable reason is the end reason."""
    return Finish(Outcome.FAILED, reason, Fault(code, reason.name, message, error_id=error_id))


def refused(field: str, description: str) -> Finish:
    """A failure that another attempt would meet again, blamed on `field`."""
    fault = Fault(
        Code.INVALID_ARGUMENT, "USER_ERROR", f"{field}: {description}", violations=((field, description),)
    )
    return Finish(Outcome.FAILED, Reason.USER_ERROR, fault)


def conclude(
    end: End | Died,
    kill: Kill | None,
    desired: Desired,
    *,
    was_to_pause: bool,
    draining: bool,
    error_id: str,
) -> Finish | HandBack:
    """What to report.

    Args:
        end: the child's last word, or its death.
        kill: why the worker ended it, if it did.
        desired: what the job's owner wanted last.
        was_to_pause: whether he wanted a pause at some time: saving takes so long that he may want the job
            to go on, or to stop, by the time that it has paused.
        draining: whether the worker is asked to end.
        error_id: under which the worker's log has the details.
    """
    if desired is Desired.CANCEL:
        return CANCELLED
    match end:
        case Succeeded():
            reason = Reason.STOPPED_EARLY if desired is Desired.STOP else Reason.COMPLETED
            return Finish(Outcome.SUCCEEDED, reason)
        case Refused(field=field, description=description):
            return refused(field, description)
        case OutOfMemory():
            return _out_of_memory()
        case Left(because="paused") if was_to_pause:
            return _PAUSED
        case Left() if draining:
            return HandBack()
        case Left(because=because):
            return _broke(f"the pipeline left as {because} though nobody asked for it", error_id)
        case Broke():
            return _broke("the pipeline failed unexpectedly", error_id)
        case Died():
            return _death(end, kill, error_id)


def _death(died: Died, kill: Kill | None, error_id: str) -> Finish | HandBack:
    match kill:
        case Kill.DRAINED:
            return HandBack()
        case Kill.HUNG:
            return failed(
                Reason.HUNG, Code.DEADLINE_EXCEEDED, "no progress for longer than is allowed", error_id
            )
        case Kill.TIMEOUT:
            return failed(
                Reason.TIMEOUT, Code.DEADLINE_EXCEEDED, "the attempt took longer than is allowed", error_id
            )
    if died.out_of_memory:
        return _out_of_memory()
    if died.status == -signal.SIGXCPU:
        return failed(
            Reason.TIMEOUT, Code.DEADLINE_EXCEEDED, "the processor time of a job is used up", error_id
        )
    return _broke(f"the process of the pipeline ended unexpectedly ({_ending(died.status)})", error_id)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _broke(message: str, error_id: str) -> Finish:
    return failed(Reason.TRANSIENT_ERROR, Code.INTERNAL, message, error_id)


def _out_of_memory() -> Finish:
    return failed(Reason.OUT_OF_MEMORY, Code.RESOURCE_EXHAUSTED, "there was not enough memory for the job")
