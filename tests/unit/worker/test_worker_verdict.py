from __future__ import annotations

import itertools
import signal

import pytest

from guidehall.core.errors import Code
from guidehall.science.pipeline import Desired
from services.trainer.worker.messages import Broke, Left, OutOfMemory, Refused, Succeeded
from services.trainer.worker.verdict import (
    CANCELLED,
    Died,
    Finish,
    HandBack,
    Kill,
    Outcome,
    Reason,
    conclude,
)

DONE = Succeeded(document={})
ENDS = [
    DONE,
    Left(because="cancelled"),
    Left(because="paused"),
    Refused(field="a", description="b"),
    OutOfMemory(),
    Broke(traceback="at line 1"),
    Died(-9),
    Died(1),
]


def reason_of(end: object, **facts: object) -> Reason | None:
    verdict = verdict_on(end, **facts)
    return verdict.reason if isinstance(verdict, Finish) else None


def verdict_on(end: object, **facts: object) -> Finish | HandBack:
    given = {"kill": None, "desired": Desired.RUN, "was_to_pause": False, "draining": False, "error_id": "e1"}
    return conclude(end, **given | facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("end", "draining"), list(itertools.product(ENDS, [False, True])))
def test_a_cancelled_job_ends_cancelled_however_it_ended(end: object, draining: bool) -> None:
    for kill in (None, *Kill):
        assert verdict_on(end, kill=kill, desired=Desired.CANCEL, draining=draining) == CANCELLED


def test_success() -> None:
    assert reason_of(DONE) is Reason.COMPLETED
    assert reason_of(DONE, desired=Desired.STOP) is Reason.STOPPED_EARLY
    assert reason_of(DONE, desired=Desired.PAUSE) is Reason.COMPLETED
    assert reason_of(DONE, draining=True) is Reason.COMPLETED


def test_leaving_is_right_only_when_it_was_asked_for() -> None:
    paused, left = Left(because="paused"), Left(because="cancelled")
    assert reason_of(paused, desired=Desired.PAUSE, was_to_pause=True) is Reason.PAUSED
    assert reason_of(paused, desired=Desired.PAUSE, was_to_pause=True, draining=True) is Reason.PAUSED
    assert verdict_on(paused, draining=True) == HandBack()
    assert verdict_on(left, draining=True) == HandBack()
    assert reason_of(paused) is Reason.TRANSIENT_ERROR
    assert reason_of(left) is Reason.TRANSIENT_ERROR
    assert reason_of(left, desired=Desired.PAUSE, was_to_pause=True) is Reason.TRANSIENT_ERROR


@pytest.mark.parametrize("desired", [Desired.RUN, Desired.STOP])
def test_a_pause_that_is_taken_back_while_the_state_is_saved_is_no_failure(desired: Desired) -> None:
    assert reason_of(Left(because="paused"), desired=desired, was_to_pause=True) is Reason.PAUSED
    assert reason_of(DONE, was_to_pause=True) is Reason.COMPLETED


def test_failures() -> None:
    verdict = verdict_on(Refused(field="a[1]", description="got 2; odd"))
    assert isinstance(verdict, Finish)
    assert verdict.error is not None
    assert verdict.error.violations == (("a[1]", "got 2; odd"),)
    assert verdict.error.code is Code.INVALID_ARGUMENT
    assert reason_of(OutOfMemory()) is Reason.OUT_OF_MEMORY
    assert reason_of(Died(-9, out_of_memory=True)) is Reason.OUT_OF_MEMORY
    assert reason_of(Died(-9), kill=Kill.HUNG) is Reason.HUNG
    assert reason_of(Died(-9), kill=Kill.TIMEOUT) is Reason.TIMEOUT
    assert reason_of(Died(-signal.SIGXCPU)) is Reason.TIMEOUT
    assert verdict_on(Died(-9), kill=Kill.DRAINED, draining=True) == HandBack()


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (Died(3), "exit status 3"),
        (Died(-11), "SIGSEGV"),
        (Died(-99), "signal 99"),
        (Broke(traceback="x"), "failed"),
    ],
)
def test_an_unexpected_end_gives_an_id_and_no_traceback(end: object, word: str) -> None:
    verdict = verdict_on(end)
    assert isinstance(verdict, Finish)
    assert (verdict.outcome, verdict.reason) == (Outcome.FAILED, Reason.TRANSIENT_ERROR)
    assert verdict.error is not None
    assert verdict.error.error_id == "e1"
    assert word in verdict.error.message
