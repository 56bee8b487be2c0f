"""The lifecycle: single steps as the table says, and what holds however steps follow one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core.errors import FailedPrecondition
from services.trainer.lifecycle import (
    FINAL,
    HELD,
    REASONS,
    RETRYABLE,
    AppendEvent,
    BeginAttempt,
    CancelRequested,
    Desired,
    Discard,
    Effect,
    EndAttempt,
    EndReason,
    Event,
    Finished,
    JobFacts,
    Leased,
    LeaseExpired,
    Outcome,
    PauseRequested,
    Promote,
    PushDesired,
    Released,
    ResumeRequested,
    RingDoorbell,
    StaleEpoch,
    StartAttempt,
    Started,
    State,
    StopRequested,
    Submitted,
    TimedOut,
    transition,
)

MAX_ATTEMPTS = 3


def submitted(max_attempts: int = MAX_ATTEMPTS) -> JobFacts:
    return transition(None, Submitted(max_attempts))[0]


def after(job: JobFacts, *events: Event) -> JobFacts:
    for event in events:
        job, _ = transition(job, event)
    return job


def running(desired: Desired = Desired.RUN, attempt: int = 1) -> JobFacts:
    job = JobFacts(State.RUNNING, Desired.RUN, None, attempt, attempt, MAX_ATTEMPTS)
    return replace(job, desired=desired)


def failed(reason: EndReason, epoch: int = 1) -> Finished:
    return Finished(epoch, Outcome.FAILED, reason)


SUCCEEDED = Finished(1, Outcome.SUCCEEDED, EndReason.COMPLETED)
CANCELLED = Finished(1, Outcome.CANCELLED, EndReason.CANCELLED_BY_USER)
PAUSED = Finished(1, Outcome.PAUSED, EndReason.PAUSED)


# Single steps -------------------------------------------------------------------------------------------


def test_a_submitted_job_waits_and_rings() -> None:
    job, effects = transition(None, Submitted(2))
    assert job == JobFacts(State.QUEUED, Desired.RUN, None, 0, 0, 2)
    assert effects == (AppendEvent(), RingDoorbell())


def test_a_lease_begins_an_attempt_of_the_next_epoch() -> None:
    job, effects = transition(submitted(), Leased())
    assert (job.state, job.lease_epoch, job.attempt_count) == (State.LEASED, 1, 1)
    assert effects == (BeginAttempt(), AppendEvent())


def test_starting_twice_changes_nothing() -> None:
    job = after(submitted(), Leased())
    job, effects = transition(job, Started(1))
    assert (job.state, effects) == (State.RUNNING, (StartAttempt(1), AppendEvent()))
    assert transition(job, Started(1)) == (job, ())


def test_success_promotes_the_epoch_that_won() -> None:
    job, effects = transition(running(attempt=2), replace(SUCCEEDED, epoch=2))
    assert (job.state, job.end_reason) == (State.SUCCEEDED, EndReason.COMPLETED)
    assert effects == (EndAttempt(2, EndReason.COMPLETED), AppendEvent(), Promote(2))


def test_a_job_that_was_stopped_early_succeeds_with_that_reason() -> None:
    stop = Finished(1, Outcome.SUCCEEDED, EndReason.STOPPED_EARLY)
    job = after(running(Desired.STOP), stop)
    assert (job.state, job.end_reason) == (State.SUCCEEDED, EndReason.STOPPED_EARLY)


def test_a_user_error_fails_at_once() -> None:
    job, effects = transition(running(), failed(EndReason.USER_ERROR))
    assert (job.state, job.end_reason) == (State.FAILED, EndReason.USER_ERROR)
    assert Discard() in effects


@pytest.mark.parametrize("reason", sorted(RETRYABLE, key=lambda reason: reason.value))
def test_a_passing_failure_is_tried_again_after_a_while(reason: EndReason) -> None:
    job, effects = transition(running(attempt=2), failed(reason, 2))
    assert (job.state, job.attempt_count, job.end_reason) == (State.QUEUED, 2, None)
    assert effects == (EndAttempt(2, reason), AppendEvent(), RingDoorbell(failures=2))


@pytest.mark.parametrize("event", [failed(EndReason.OUT_OF_MEMORY, 3), LeaseExpired(3)])
def test_the_last_permitted_attempt_is_the_last(event: Event) -> None:
    job, effects = transition(running(attempt=MAX_ATTEMPTS), event)
    assert (job.state, job.end_reason) == (State.FAILED, EndReason.ATTEMPTS_EXHAUSTED)
    assert Discard(keep_checkpoint=True) in effects


def test_a_lost_worker_frees_the_job_at_once() -> None:
    job, effects = transition(running(), LeaseExpired(1))
    assert (job.state, job.lease_epoch, job.attempt_count) == (State.QUEUED, 1, 1)
    assert effects == (EndAttempt(1, EndReason.LEASE_LOST), AppendEvent(), RingDoorbell())


def test_handing_back_does_not_count_as_an_attempt() -> None:
    job = running(attempt=MAX_ATTEMPTS)
    job, effects = transition(job, Released(MAX_ATTEMPTS))
    assert (job.state, job.lease_epoch, job.attempt_count) == (State.QUEUED, MAX_ATTEMPTS, MAX_ATTEMPTS - 1)
    assert effects == (EndAttempt(MAX_ATTEMPTS, EndReason.RELEASED), AppendEvent(), RingDoorbell())


def test_taking_too_long_is_not_tried_again() -> None:
    job, effects = transition(running(), TimedOut(1))
    assert (job.state, job.end_reason) == (State.FAILED, EndReason.TIMEOUT)
    assert Discard(keep_checkpoint=True) in effects
    assert transition(running(), failed(EndReason.TIMEOUT)) == (job, effects)


def test_cancelling_a_job_that_waits_ends_it() -> None:
    job, effects = transition(submitted(), CancelRequested())
    assert (job.state, job.end_reason) == (State.CANCELLED, EndReason.CANCELLED_BY_USER)
    assert effects == (AppendEvent(), Discard())


def test_cancelling_a_running_job_asks_its_worker() -> None:
    job, effects = transition(running(), CancelRequested())
    assert (job.state, job.desired) == (State.RUNNING, Desired.CANCEL)
    assert effects == (AppendEvent(), PushDesired())


@pytest.mark.parametrize(
    "event",
    [
        CANCELLED,
        SUCCEEDED,
        PAUSED,
        failed(EndReason.TRANSIENT_ERROR),
        failed(EndReason.USER_ERROR),
        LeaseExpired(1),
        Released(1),
        TimedOut(1),
    ],
    ids=repr,
)
def test_whatever_ends_an_attempt_a_cancelled_job_keeps_nothing(event: Event) -> None:
    job, effects = transition(running(Desired.CANCEL), event)
    assert (job.state, job.end_reason) == (State.CANCELLED, EndReason.CANCELLED_BY_USER)
    assert Discard() in effects
    assert not any(isinstance(effect, Promote) for effect in effects)


@pytest.mark.parametrize("desired", [Desired.RUN, Desired.PAUSE, Desired.STOP])
def test_an_attempt_cannot_cancel_by_itself(desired: Desired) -> None:
    with pytest.raises(FailedPrecondition):
        transition(running(desired), CANCELLED)


def test_an_outcome_takes_only_its_own_reasons() -> None:
    with pytest.raises(FailedPrecondition):
        transition(running(), Finished(1, Outcome.SUCCEEDED, EndReason.USER_ERROR))


def test_a_paused_job_goes_on_where_it_was() -> None:
    job = after(running(), PauseRequested(), PAUSED)
    assert (job.state, job.desired, job.attempt_count) == (State.PAUSED, Desired.PAUSE, 0)
    job, effects = transition(job, ResumeRequested())
    assert (job.state, job.desired) == (State.QUEUED, Desired.RUN)
    assert effects == (AppendEvent(), RingDoorbell())


def test_resuming_before_the_pause_happened_takes_it_back() -> None:
    job, effects = transition(running(Desired.PAUSE), ResumeRequested())
    assert job == running()
    assert PushDesired() in effects


def test_a_pause_that_was_taken_back_in_passing_goes_on_at_once() -> None:
    assert after(running(), PAUSED).state is State.QUEUED


def test_a_lost_worker_does_not_undo_a_pause() -> None:
    assert after(running(Desired.PAUSE), LeaseExpired(1)).state is State.PAUSED


def test_pausing_a_job_that_waits_takes_it_off_the_queue() -> None:
    job = after(submitted(), PauseRequested())
    assert (job.state, job.desired) == (State.PAUSED, Desired.PAUSE)
    with pytest.raises(FailedPrecondition):
        transition(job, Leased())


def test_stopping_a_job_that_never_ran_ends_it_with_nothing() -> None:
    job = after(submitted(), StopRequested())
    assert (job.state, job.end_reason) == (State.CANCELLED, EndReason.STOPPED_EARLY)


def test_stopping_a_job_between_attempts_has_it_finished_by_one_more() -> None:
    waiting = after(running(), LeaseExpired(1))
    job, effects = transition(waiting, StopRequested())
    assert (job.state, job.desired) == (State.QUEUED, Desired.STOP)
    assert RingDoorbell() in effects
    assert after(job, Leased()).desired is Desired.STOP


@pytest.mark.parametrize("event", [PauseRequested(), ResumeRequested(), StopRequested()], ids=repr)
@pytest.mark.parametrize("state", sorted(FINAL, key=lambda state: state.value))
def test_an_ended_job_takes_no_wish_but_cancel(event: Event, state: State) -> None:
    job = JobFacts(state, Desired.RUN, EndReason.COMPLETED, 1, 1, 3)
    with pytest.raises(FailedPrecondition):
        transition(job, event)
    assert transition(job, CancelRequested()) == (job, ())


@pytest.mark.parametrize("event", [PauseRequested(), StopRequested()], ids=repr)
def test_a_wish_that_comes_again_after_the_end_is_harmless(event: Event) -> None:
    ended = after(running(), event, SUCCEEDED)
    assert ended.state is State.SUCCEEDED
    assert transition(ended, event) == (ended, ())


@pytest.mark.parametrize(
    ("desired", "event"),
    [
        (Desired.CANCEL, PauseRequested()),
        (Desired.STOP, PauseRequested()),
        (Desired.CANCEL, ResumeRequested()),
        (Desired.STOP, ResumeRequested()),
        (Desired.CANCEL, StopRequested()),
    ],
    ids=repr,
)
def test_a_stronger_wish_is_not_taken_back_by_a_weaker_one(desired: Desired, event: Event) -> None:
    with pytest.raises(FailedPrecondition):
        transition(running(desired), event)


@pytest.mark.parametrize(
    ("desired", "event"),
    [
        (Desired.PAUSE, PauseRequested()),
        (Desired.RUN, ResumeRequested()),
        (Desired.STOP, StopRequested()),
        (Desired.CANCEL, CancelRequested()),
    ],
    ids=repr,
)
def test_a_wish_repeated_changes_nothing(desired: Desired, event: Event) -> None:
    assert transition(running(desired), event) == (running(desired), ())


def test_only_a_new_job_is_submitted_and_only_then() -> None:
    with pytest.raises(FailedPrecondition):
        transition(submitted(), Submitted(1))
    with pytest.raises(FailedPrecondition):
        transition(None, Leased())


# However steps follow one another -----------------------------------------------------------------------

_EPOCHS = st.integers(0, 6)
_EVENTS = st.one_of(
    st.sampled_from(
        [
            Leased(),
            Leased(),
            Leased(),
            CancelRequested(),
            PauseRequested(),
            ResumeRequested(),
            StopRequested(),
        ]
    ),
    st.builds(Started, _EPOCHS),
    st.builds(LeaseExpired, _EPOCHS),
    st.builds(TimedOut, _EPOCHS),
    st.builds(Released, _EPOCHS),
    st.builds(Finished, _EPOCHS, st.sampled_from(list(Outcome)), st.sampled_from(list(EndReason))),
)


_HISTORIES = st.lists(_EVENTS, max_size=25)


def steps(
    events: list[Event], max_attempts: int
) -> list[tuple[JobFacts, Event, JobFacts, tuple[Effect, ...]]]:
    """(before, event, after, effects) of each event that is not refused; epochs are made to fit at times."""
    job = submitted(max_attempts)
    taken = []
    for place, event in enumerate(events):
        if place % 3 and hasattr(event, "epoch"):
            event = replace(event, epoch=job.lease_epoch)
        if isinstance(event, Finished) and place % 2:
            event = replace(event, reason=REASONS[event.outcome][0])
        try:
            now, effects = transition(job, event)
        except FailedPrecondition:
            continue
        except StaleEpoch:
            assert job.state not in HELD or event.epoch != job.lease_epoch  # type: ignore[union-attr]
            continue
        taken.append((job, event, now, effects))
        job = now
    return taken


@given(_HISTORIES, st.integers(1, 4))
def test_a_final_state_is_final(events: list[Event], max_attempts: int) -> None:
    for before, _, now, effects in steps(events, max_attempts):
        if before.state in FINAL:
            assert (now, effects) == (before, ())


@given(_HISTORIES, st.integers(1, 4))
def test_a_job_ends_once_and_tells_storage_once(events: list[Event], max_attempts: int) -> None:
    taken = steps(events, max_attempts)
    ends = [now for before, _, now, _ in taken if now.state in FINAL and before.state not in FINAL]
    told = [item for *_, effects in taken for item in effects if isinstance(item, (Promote, Discard))]
    assert len(ends) <= 1
    assert len(told) == len(ends)
    if ends:
        assert isinstance(told[0], Promote) == (ends[0].state is State.SUCCEEDED)
        assert ends[0].end_reason is not None


@given(_HISTORIES, st.integers(1, 4))
def test_only_a_job_that_may_get_further_keeps_its_checkpoint(events: list[Event], max_attempts: int) -> None:
    for before, _, now, effects in steps(events, max_attempts):
        ended = now.state in FINAL and before.state not in FINAL
        further = now.end_reason in (EndReason.TIMEOUT, EndReason.ATTEMPTS_EXHAUSTED)
        assert (Discard(keep_checkpoint=True) in effects) == (ended and further)


@given(_HISTORIES, st.integers(1, 4))
def test_epochs_count_up_with_each_lease_and_never_down(events: list[Event], max_attempts: int) -> None:
    for before, event, now, _ in steps(events, max_attempts):
        assert now.lease_epoch - before.lease_epoch == (1 if isinstance(event, Leased) else 0)
        assert 0 <= now.attempt_count <= max_attempts
        assert now.attempt_count <= now.lease_epoch


@given(_HISTORIES, st.integers(1, 4))
def test_every_attempt_that_begins_ends_once_and_before_the_next(
    events: list[Event], max_attempts: int
) -> None:
    open_epoch = None
    for _, _, now, effects in steps(events, max_attempts):
        for effect in effects:
            if isinstance(effect, BeginAttempt):
                assert open_epoch is None
                open_epoch = now.lease_epoch
            if isinstance(effect, EndAttempt):
                assert effect.epoch == open_epoch
                open_epoch = None
        assert (now.state in HELD) == (open_epoch is not None)


@given(_HISTORIES, st.integers(1, 4))
def test_what_changed_is_told_and_what_waits_is_rung_for(events: list[Event], max_attempts: int) -> None:
    for before, _, now, effects in steps(events, max_attempts):
        if now.state is not before.state or now.desired is not before.desired:
            assert AppendEvent() in effects
        else:
            assert effects == ()
        if now.state is State.QUEUED and before.state is not State.QUEUED:
            assert any(isinstance(effect, RingDoorbell) for effect in effects)
        if now.state in HELD and before.state in HELD and now.desired is not before.desired:
            assert PushDesired() in effects


@given(_HISTORIES, st.integers(1, 4))
def test_a_cancelled_job_never_publishes(events: list[Event], max_attempts: int) -> None:
    cancelled = False
    for _, event, now, effects in steps(events, max_attempts):
        cancelled = cancelled or (isinstance(event, CancelRequested) and now.desired is Desired.CANCEL)
        assert not (cancelled and any(isinstance(effect, Promote) for effect in effects))


@given(_HISTORIES, st.integers(1, 4))
def test_repeating_a_cancel_changes_nothing(events: list[Event], max_attempts: int) -> None:
    for *_, now, _ in steps(events, max_attempts):
        once = after(now, CancelRequested())
        assert transition(once, CancelRequested()) == (once, ())


@given(_HISTORIES, _EPOCHS, st.integers(1, 4))
def test_no_attempt_but_the_current_one_is_heard(events: list[Event], epoch: int, max_attempts: int) -> None:
    for *_, now, _ in steps(events, max_attempts):
        if now.state in HELD and epoch == now.lease_epoch:
            continue
        for event in (Started(epoch), LeaseExpired(epoch), TimedOut(epoch), Released(epoch)):
            with pytest.raises(StaleEpoch):
                transition(now, event)
        for outcome in Outcome:
            with pytest.raises(StaleEpoch):
                transition(now, Finished(epoch, outcome, REASONS[outcome][0]))
