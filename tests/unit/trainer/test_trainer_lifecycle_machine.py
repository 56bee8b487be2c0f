"""The lifecycle as a machine that hypothesis drives: whatever comes in whatever order, a job ends once."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guidehall.core.errors import FailedPrecondition
from services.trainer.lifecycle import (
    FINAL,
    HELD,
    REASONS,
    AppendEvent,
    BeginAttempt,
    CancelRequested,
    Desired,
    Discard,
    Effect,
    EndAttempt,
    Event,
    Finished,
    JobFacts,
    Leased,
    LeaseExpired,
    Outcome,
    PauseRequested,
    Promote,
    Released,
    ResumeRequested,
    RingDoorbell,
    StaleEpoch,
    Started,
    State,
    StopRequested,
    Submitted,
    TimedOut,
    transition,
)

_WISHES = (CancelRequested(), PauseRequested(), ResumeRequested(), StopRequested())
_UNFINISHED = (Started, LeaseExpired, TimedOut, Released)


class JobMachine(RuleBasedStateMachine):
    """One job; old attempts go on reporting."""

    job: JobFacts

    def __init__(self) -> None:
        super().__init__()
        # Begun and not ended, by epoch; all that ever began.
        self.open: list[int] = []
        self.begun = 0
        self.ends: list[State] = []
        self.promoted: list[int] = []
        self.discarded = 0
        self.bells = 0
        self.cancel_was_promised = False

    @initialize(max_attempts=st.integers(1, 4))
    def submit(self, max_attempts: int) -> None:
        self.job, effects = transition(None, Submitted(max_attempts))
        self._carry_out(effects)

    @precondition(lambda self: self.job.state is State.QUEUED)
    @rule()
    def lease(self) -> None:
        # Nobody asks for a job without having heard a bell since the last one went out.
        assert self.bells > 0
        self.bells = 0
        self._apply(Leased())

    @precondition(lambda self: self.job.lease_epoch > 0)
    @rule(kind=st.sampled_from(_UNFINISHED), behind=st.integers(0, 2))
    def report(self, kind: type[Started], behind: int) -> None:
        self._report(kind(max(1, self.job.lease_epoch - behind)))

    @precondition(lambda self: self.job.lease_epoch > 0)
    @rule(outcome=st.sampled_from(Outcome), behind=st.integers(0, 2), data=st.data())
    def finish(self, outcome: Outcome, behind: int, data: st.DataObject) -> None:
        reason = data.draw(st.sampled_from(REASONS[outcome]))
        self._report(Finished(max(1, self.job.lease_epoch - behind), outcome, reason))

    @rule(wish=st.sampled_from(_WISHES))
    def want(self, wish: Event) -> None:
        was_over = self.job.state in FINAL
        self._apply(wish)
        if isinstance(wish, CancelRequested) and not was_over:
            self.cancel_was_promised = True

    def _report(self, event: Started | LeaseExpired | TimedOut | Released | Finished) -> None:
        holds = self.job.state in HELD and event.epoch == self.job.lease_epoch
        try:
            self._apply(event)
        except StaleEpoch:
            assert not holds
        else:
            assert holds, "a stale attempt was heard"

    def _apply(self, event: Event) -> None:
        before = self.job
        try:
            self.job, effects = transition(before, event)
        except FailedPrecondition:
            return
        if before.state in FINAL:
            assert (self.job, effects) == (before, ())
        if self.job.state in FINAL and before.state not in FINAL:
            self.ends.append(self.job.state)
        assert (AppendEvent() in effects) == (
            (self.job.state, self.job.desired) != (before.state, before.desired)
        )
        self._carry_out(effects)

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case BeginAttempt():
                    self.begun += 1
                    self.open.append(self.job.lease_epoch)
                case EndAttempt(epoch):
                    self.open.remove(epoch)
                case Promote(epoch):
                    self.promoted.append(epoch)
                case Discard():
                    self.discarded += 1
                case RingDoorbell():
                    self.bells += 1

    @invariant()
    def one_end_and_one_promotion_at_most(self) -> None:
        if not hasattr(self, "job"):
            return
        assert len(self.ends) == (self.job.state in FINAL)
        assert self.promoted == ([self.job.lease_epoch] if self.job.state is State.SUCCEEDED else [])
        assert self.discarded == (self.job.state in FINAL - {State.SUCCEEDED})
        assert (self.job.end_reason is not None) == (self.job.state in FINAL)

    @invariant()
    def attempts_follow_each_other(self) -> None:
        if not hasattr(self, "job"):
            return
        assert self.begun == self.job.lease_epoch
        assert self.open == ([self.job.lease_epoch] if self.job.state in HELD else [])
        assert 0 <= self.job.attempt_count <= min(self.job.max_attempts, self.job.lease_epoch)

    @invariant()
    def what_was_promised_is_kept(self) -> None:
        if self.cancel_was_promised:
            assert self.job.desired is Desired.CANCEL
            assert self.job.state in HELD or self.job.state is State.CANCELLED


TestJobMachine = JobMachine.TestCase
