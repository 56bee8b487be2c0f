"""The api on its database does what the pure lifecycle says, whatever owner and workers do in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.errors import FailedPrecondition, from_rpc_error
from services.trainer.lifecycle import (
    FINAL,
    HELD,
    REASONS,
    CancelRequested,
    Event,
    Finished,
    JobFacts,
    Leased,
    LeaseExpired,
    Outcome,
    Released,
    StaleEpoch,
    Started,
    State,
    Submitted,
    transition,
)
from services.trainer.records import Job
from tests.fixtures.trainer import Cast, Owner, TalkingWorker, TrainerSite, log_line

pytestmark = [pytest.mark.slow]

_WORKERS = st.integers(0, 1)
# Which of its leases a worker speaks for: the newest, or one that it may have lost.
_BEHIND = st.integers(0, 2)
# A refusal that an attempt gets which does not hold its job.
_STALE = "STALE_EPOCH"


class ApiMachine(RuleBasedStateMachine):
    """One job, its owner and two workers that talk; the pure function says what has to come of it."""

    site: TrainerSite

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.facts: JobFacts
        self.name = ""
        # With the worker that got it.
        self.leases: list[tuple[TalkingWorker, workers_pb2.Lease]] = []
        # Epochs whose worker reported the end itself: to repeat that is harmless.
        self.reported: set[int] = set()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        if self.name:
            self.do(self.cast.close())
        self.runner.close()

    @initialize(max_attempts=st.integers(1, 4))
    def submit(self, max_attempts: int) -> None:
        async def submit() -> None:
            self.cast = Cast(self.site)
            self.owner: Owner = self.cast.owner()
            self.workers = [await self.cast.worker(), await self.cast.worker()]
            self.name = (await self.owner.submit(max_attempts=max_attempts)).name

        self.do(submit())
        self.facts, _ = transition(None, Submitted(max_attempts))

    # What may happen --------------------------------------------------------------------------------------

    @rule(number=_WORKERS)
    def lease(self, number: int) -> None:
        worker = self.workers[number]
        holder, lease = self.leases[-1] if self.leases else (None, None)
        if holder is worker and lease is not None and self._holds(lease):
            # It asks, so it has none.
            event = Released if self.facts.state is State.LEASED else LeaseExpired
            self._expect(event(lease.lease_epoch))
        # After a failure it is not there at once.
        got = self.do(worker.lease(1.0 if self.facts.state is State.QUEUED else 0.0))
        assert (got is not None) == (self.facts.state is State.QUEUED)
        if got is not None:
            self._expect(Leased())
            assert got.lease_epoch == self.facts.lease_epoch
            self.leases.append((worker, got))

    @precondition(lambda self: self.leases)
    @rule(behind=_BEHIND)
    def start_and_tell(self, behind: int) -> None:
        worker, lease = self._lease(behind)

        async def talk() -> bool:
            call = worker.stream()
            hello = workers_pb2.SessionHello(job=lease.job, lease_epoch=lease.lease_epoch)
            batch = workers_pb2.EventBatch(first_number=1, events=[log_line("once")])
            await call.write(workers_pb2.SessionRequest(hello=hello))
            await call.write(workers_pb2.SessionRequest(started=workers_pb2.Started()))
            # The same each time: it is stored once.
            await call.write(workers_pb2.SessionRequest(events=batch))
            acknowledged = 0
            async with asyncio.timeout(10):
                while acknowledged < 3:
                    answer = await call.read()
                    if answer is grpc.aio.EOF or answer.HasField("lost"):
                        return False
                    acknowledged += answer.HasField("ack")
            call.cancel()
            return True

        assert self.do(talk()) == self._holds(lease)
        if self._holds(lease):
            self._expect(Started(lease.lease_epoch))

    @precondition(lambda self: self.leases)
    @rule(behind=_BEHIND)
    def commit_checkpoint(self, behind: int) -> None:
        worker, lease = self._lease(behind)
        # The same again is harmless.
        assert self._refused(worker.commit(lease, 1, step=7)) == (not self._holds(lease))

    @precondition(lambda self: self.leases)
    @rule(behind=_BEHIND, outcome=st.sampled_from(Outcome), data=st.data())
    def finish(self, behind: int, outcome: Outcome, data: st.DataObject) -> None:
        worker, lease = self._lease(behind)
        reason = data.draw(st.sampled_from(REASONS[outcome]))
        work = worker.finish(lease, outcome.value, reason.value)
        self._report(lease, Finished(lease.lease_epoch, outcome, reason), work)

    @precondition(lambda self: self.leases)
    @rule(behind=_BEHIND)
    def release(self, behind: int) -> None:
        worker, lease = self._lease(behind)
        self._report(lease, Released(lease.lease_epoch), worker.release(lease))

    @precondition(lambda self: self.leases and self.facts.state in HELD)
    @rule()
    def fall_silent(self) -> None:
        epoch = self.facts.lease_epoch

        async def expire() -> None:
            past = "UPDATE trainer.jobs SET lease_until = now() - interval '1 s' WHERE id = $1"
            await self.site.fetch(past, self._id)
            over = "SELECT end_time FROM trainer.attempts WHERE job_id = $1 AND epoch = $2"
            async with asyncio.timeout(10):
                while (await self.site.fetch(over, self._id, epoch))[0]["end_time"] is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        self.do(expire())
        self._expect(LeaseExpired(epoch))

    @rule()
    def cancel(self) -> None:
        self.do(self.owner.cancel(self.name))
        self._expect(CancelRequested())

    # What has to be so ------------------------------------------------------------------------------------

    @invariant()
    def the_tables_say_what_the_function_says(self) -> None:
        if not self.name:
            return
        job, attempts, events, told = self.do(self._look())
        assert job.facts() == self.facts
        assert (job.worker_id is not None) == (self.facts.state in HELD)
        assert [attempt["epoch"] for attempt in attempts] == list(range(1, self.facts.lease_epoch + 1))
        still_open = [attempt["epoch"] for attempt in attempts if attempt["end_time"] is None]
        assert still_open == ([self.facts.lease_epoch] if self.facts.state in HELD else [])
        assert [event["seq"] for event in events] == list(range(1, job.last_seq + 1))
        ends = [event for event in events if event["state"] in {state.value for state in FINAL}]
        assert len(ends) == (self.facts.state in FINAL)
        assert not ends or ends == events[-1:]
        lines = sum(event["kind"] == "log_line" for event in events)
        assert lines == sum(attempt["last_event_number"] for attempt in attempts)
        # Storage is away here: what it has to be told stays.
        assert told.count("promote") == (self.facts.state is State.SUCCEEDED)
        assert told.count("discard") == (self.facts.state in FINAL - {State.SUCCEEDED}) + self._replaced(
            events
        )

    async def _look(self) -> tuple[Job, list[Any], list[Any], list[str]]:
        fetch = self.site.fetch
        (row,) = await fetch("SELECT * FROM trainer.jobs WHERE id = $1", self._id)
        attempts = await fetch("SELECT * FROM trainer.attempts WHERE job_id = $1 ORDER BY epoch", self._id)
        events = await fetch(
            "SELECT seq, kind, payload ->> 'state' AS state FROM trainer.job_events WHERE job_id = $1 "
            "ORDER BY seq",
            self._id,
        )
        told = await fetch("SELECT kind FROM trainer.outbox WHERE subject = $1", self._id)
        return Job.of(row), attempts, events, [message["kind"] for message in told]

    @staticmethod
    def _replaced(events: list[Any]) -> int:
        """Checkpoints that took the place of another one."""
        return max(0, sum(event["kind"] == "checkpoint" for event in events) - 1)

    # How it is done ---------------------------------------------------------------------------------------

    @property
    def _id(self) -> str:
        return self.name.rpartition("/")[2]

    def _lease(self, behind: int) -> tuple[TalkingWorker, workers_pb2.Lease]:
        return self.leases[max(0, len(self.leases) - 1 - behind)]

    def _holds(self, lease: workers_pb2.Lease) -> bool:
        return self.facts.state in HELD and lease.lease_epoch == self.facts.lease_epoch

    def _expect(self, event: Event) -> None:
        self.facts, _ = transition(self.facts, event)

    def _refused(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Whether a report was refused because the attempt does not hold the job."""
        try:
            self.do(work)
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason != _STALE:
                raise
            return True
        return False

    def _report(self, lease: workers_pb2.Lease, event: Event, work: Coroutine[Any, Any, str]) -> None:
        """An end that the worker reports: taken once, refused from a stale attempt, harmless again."""
        try:
            after, _ = transition(self.facts, event)
        except StaleEpoch:
            repeated = lease.lease_epoch in self.reported
            assert self._refused(work) == (not repeated)
            return
        except FailedPrecondition:
            with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION"):
                self.do(work)
            return
        assert self.do(work) == after.state.value
        self.facts = after
        self.reported.add(lease.lease_epoch)


@pytest.mark.timeout(300)
def test_the_api_does_what_the_lifecycle_says(own_trainer: Callable[..., TrainerSite]) -> None:
    # No lease runs out by itself, however slow the machine.
    site = own_trainer(LEASE__SECONDS=120)
    site.start()

    class Machine(ApiMachine):
        pass

    Machine.site = site
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
