"""A real worker at a real trainer: how attempts end that leave nothing in storage."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import Role
from guidehall.local.backing import BackingServers
from services.trainer.worker.events import TAIL_LINES
from tests.fixtures.trainer import Cast, Owner, TrainerSite, trainer_site
from tests.fixtures.worker import SCIENCE_MODULES, WorkerMaker, running_workers
from tests.processes import Program

pytestmark = pytest.mark.slow

STEADY_POOL = "steady"


@pytest.fixture(scope="module")
def site(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerSite]:
    site = trainer_site(backing, tmp_path_factory.mktemp("trainer"))
    site.environ["GUIDEHALL_SCIENCE_MODULES"] = SCIENCE_MODULES
    try:
        site.start()
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="module")
def steady(site: TrainerSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A worker for all tests that leave it as it was."""
    with running_workers(site, STEADY_POOL, tmp_path_factory.mktemp("steady")) as workers:
        yield workers(LOG__FORMAT="json")


@pytest.fixture
async def owner(site: TrainerSite, steady: Program) -> AsyncIterator[Owner]:
    """Somebody whose jobs the steady worker runs."""
    cast = Cast(site)
    cast.pool = STEADY_POOL
    yield cast.owner()
    await cast.close()


@pytest.fixture
async def lone_owner(site: TrainerSite) -> AsyncIterator[Owner]:
    """Somebody with a pool of his own, without workers at first."""
    cast = Cast(site)
    yield cast.owner()
    await cast.close()


@pytest.fixture
def workers(site: TrainerSite, lone_owner: Owner, make_workers: Callable[..., WorkerMaker]) -> WorkerMaker:
    """Makes workers for the lone owner's pool."""
    return make_workers(site, lone_owner.pool)


async def submit(owner: Owner, pipeline: str, **fields: object) -> str:
    job = await owner.submit(pipeline=f"odd.{pipeline}", **fields)
    return job.name


async def events(owner: Owner, name: str) -> list[jobs_pb2.JobEvent]:
    """All events of a job, to its end."""
    async with asyncio.timeout(60):
        return [event async for event in owner.watch(name)]


def states(told: list[jobs_pb2.JobEvent]) -> list[str]:
    return [
        jobs_pb2.JobState.Name(event.state_change.state).removeprefix("JOB_STATE_")
        for event in told
        if event.HasField("state_change")
    ]


def reason(job: jobs_pb2.Job) -> str:
    return jobs_pb2.EndReason.Name(job.end_reason).removeprefix("END_REASON_")


def lines(told: list[jobs_pb2.JobEvent]) -> list[str]:
    return [event.log_line.line for event in told if event.HasField("log_line")]


async def started(owner: Owner, name: str) -> None:
    """Returns when the pipeline runs and has said something."""
    call = owner.watch(name)
    async for event in call:
        if event.HasField("log_line"):
            call.cancel()
            return
    raise AssertionError("it never said anything")


async def test_a_user_error_fails_the_job_at_once(owner: Owner) -> None:
    name = await submit(owner, "refuse", params={"amount": 3})
    told = await events(owner, name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "FAILED"]
    job = await owner.get(name)
    assert reason(job) == "USER_ERROR"
    (violation,) = job.error.violations
    assert (violation.field, violation.description) == ("amount", "got 3; must be something else")


async def test_an_exception_is_told_by_an_id_that_the_worker_log_explains(
    owner: Owner, steady: Program
) -> None:
    name = await submit(owner, "break_down", max_attempts=2)
    told = await events(owner, name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "QUEUED", "LEASED", "RUNNING", "FAILED"]
    job = await owner.get(name)
    assert (reason(job), job.error.reason) == ("ATTEMPTS_EXHAUSTED", "TRANSIENT_ERROR")
    assert "secret" not in str(told)
    steady.wait_for(job.error.error_id)
    (line,) = [line for line in steady.log if job.error.error_id in line]
    assert "RuntimeError: a secret inside" in line


async def test_what_cannot_be_passed_on_costs_the_job_nothing(owner: Owner) -> None:
    name = await submit(owner, "show_the_unspeakable", max_attempts=1)
    told = await events(owner, name)
    assert reason(await owner.get(name)) == "USER_ERROR"
    assert [line.split(" is left out")[0] for line in lines(told)] == [
        "[a step",
        "[a preview odd.nul",
        "[a preview",
    ]


async def test_a_crash_is_a_failure_in_passing(owner: Owner) -> None:
    name = await submit(owner, "exit_at_once", params={"amount": 7}, max_attempts=1)
    await events(owner, name)
    job = await owner.get(name)
    assert job.error.reason == "TRANSIENT_ERROR"
    assert "exit status 7" in job.error.message


async def test_a_cancel_kills_what_does_not_heed_it(owner: Owner) -> None:
    name = await submit(owner, "sleep_on")
    await started(owner, name)
    await owner.cancel(name)
    told = await events(owner, name)
    assert states(told)[-1] == "CANCELLED"
    assert reason(await owner.get(name)) == "CANCELLED_BY_USER"
    assert lines(told) == ["asleep"]
    # The worker is well and takes the next one.
    other = await submit(owner, "refuse")
    assert states(await events(owner, other))[-1] == "FAILED"


async def test_a_hung_job_is_killed(
    own_trainer: Callable[..., TrainerSite], make_workers: Callable[..., WorkerMaker]
) -> None:
    # Here alone: elsewhere a job may take as long to begin as a busy machine makes it.
    site = own_trainer(LEASE__HANG_SECONDS=3)
    site.environ["GUIDEHALL_SCIENCE_MODULES"] = SCIENCE_MODULES
    site.start()
    cast = Cast(site)
    owner = cast.owner()
    workers = make_workers(site, owner.pool)
    workers()
    name = await submit(owner, "sleep_on", max_attempts=1)
    await events(owner, name)
    job = await owner.get(name)
    assert job.error.reason == "HUNG"
    await cast.close()
    workers.stop()


async def test_a_flood_of_lines_does_not_hold_up_the_heartbeats(
    lone_owner: Owner, workers: WorkerMaker
) -> None:
    workers(LOG_LINES_PER_SECOND=50, MAX_LOG_BYTES=1000)
    # It has nowhere to leave its result; what counts here is what came before.
    name = await submit(lone_owner, "print_much", params={"amount": 300_000}, max_attempts=1)
    call = lone_owner.watch(name)
    told = []
    async for event in call:
        told.append(event)
        if event.HasField("log_line") and "left out here" in event.log_line.line:
            call.cancel()
            break
    await lone_owner.cancel(name)
    told = await events(lone_owner, name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "RUNNING", "CANCELLED"]
    assert lines(told)[:1] == ["from print"]
    assert len(lines(told)) < 2000


async def test_the_last_lines_of_a_failed_job_can_be_read_however_many_there_were(
    lone_owner: Owner, workers: WorkerMaker
) -> None:
    worker = workers(LOG_LINES_PER_SECOND=1, LOG__FORMAT="json")
    name = await submit(lone_owner, "complain_and_break", params={"amount": 1000}, max_attempts=1)
    told = await events(lone_owner, name)
    assert states(told)[-1] == "FAILED"
    assert lines(told)[-TAIL_LINES:] == [f"line {number}" for number in range(1000 - TAIL_LINES, 1000)]
    assert len(lines(told)) < 2 * TAIL_LINES
    assert "secret" not in str(told)
    worker.wait_for("a secret inside")


async def test_a_worker_that_is_stopped_while_storage_is_away_leaves_in_time(
    lone_owner: Owner, workers: WorkerMaker
) -> None:
    worker = workers(DRAIN_SECONDS=2, EXIT_SECONDS=5)
    job = await lone_owner.submit(params={"steps": 10_000, "step_seconds": 0.02}, max_attempts=1)
    # Its checkpoint cannot be brought anywhere.
    worker.wait_for("checkpoint of")
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 2 + 5 + 5
    job = await lone_owner.get(job.name)
    assert (jobs_pb2.JobState.Name(job.state), job.attempt_count) == ("JOB_STATE_QUEUED", 0)


async def test_a_worker_whose_device_fails_its_test_takes_no_job_until_it_is_reinstated(
    site: TrainerSite, lone_owner: Owner, workers: WorkerMaker
) -> None:
    # It believes in a device that is not there, and so no test of it can succeed.
    worker = workers(DEVICE="cuda:0", CALLS__LONGEST_RETRY_SECONDS=0.5)
    name = await submit(lone_owner, "break_the_device", max_attempts=1)
    assert states(await events(lone_owner, name))[-1] == "FAILED"
    assert (await lone_owner.get(name)).error.reason == "TRANSIENT_ERROR"
    worker.wait_for("misbehaves")
    waiting = await submit(lone_owner, "refuse")
    worker.wait_for("out of service")
    cast = Cast(site)
    operator = cast.owner("olga", Role.OPERATOR)
    request = workers_pb2.ListWorkersRequest(pool=lone_owner.pool)
    (known,) = (await operator.pools.ListWorkers(request)).workers
    assert known.state == workers_pb2.WORKER_STATE_QUARANTINED
    assert "an illegal memory access was encountered" in known.quarantine_reason
    assert (await lone_owner.get(waiting)).state == jobs_pb2.JOB_STATE_QUEUED
    await operator.pools.ReinstateWorker(workers_pb2.ReinstateWorkerRequest(name=known.name))
    assert states(await events(lone_owner, waiting))[-1] == "FAILED"
    assert reason(await lone_owner.get(waiting)) == "USER_ERROR"
    await cast.close()


async def test_a_worker_without_room_hands_its_job_back_and_goes_on(
    lone_owner: Owner, workers: WorkerMaker
) -> None:
    worker = workers()
    worker.wait_for("registered")
    (folder,) = workers.temporary.iterdir()
    away = folder.rename(folder.with_name("away"))
    name = await submit(lone_owner, "refuse", max_attempts=1)
    worker.wait_for("without a report")
    away.rename(folder)
    told = await events(lone_owner, name)
    assert states(told)[-1] == "FAILED"
    assert states(told)[:3] == ["QUEUED", "LEASED", "QUEUED"]
    job = await lone_owner.get(name)
    assert (reason(job), job.attempt_count) == ("USER_ERROR", 1)


async def test_a_stopped_worker_hands_its_job_back_uncounted(lone_owner: Owner, workers: WorkerMaker) -> None:
    worker = workers()
    name = await submit(lone_owner, "sleep_on", max_attempts=1)
    await started(lone_owner, name)
    assert worker.stop() == 0
    job = await lone_owner.get(name)
    assert (jobs_pb2.JobState.Name(job.state), job.attempt_count) == ("JOB_STATE_QUEUED", 0)
    # Nothing of it is left: neither files nor processes.
    assert list(workers.temporary.iterdir()) == []


async def test_another_worker_takes_over_from_one_that_was_killed(
    lone_owner: Owner, workers: WorkerMaker
) -> None:
    first = workers()
    name = await submit(lone_owner, "spawn_and_sleep")
    await started(lone_owner, name)
    first.stop(signal.SIGKILL)
    second = workers()
    leased = second.wait_for(", attempt ")
    epoch = int(leased.rpartition(" ")[2])
    # Its first one, unless the machine was so busy that this lease ran out too.
    assert epoch >= 2
    # The second one has swept the first one's files.
    assert len(list(workers.temporary.iterdir())) == 1
    await lone_owner.cancel(name)
    told = await events(lone_owner, name)
    assert states(told)[-1] == "CANCELLED"
    assert (await lone_owner.get(name)).lease_epoch >= epoch


async def test_a_worker_whose_lease_ran_out_ends_its_job_and_goes_on(
    own_trainer: Callable[..., TrainerSite], make_workers: Callable[..., WorkerMaker]
) -> None:
    site = own_trainer()
    site.environ["GUIDEHALL_SCIENCE_MODULES"] = SCIENCE_MODULES
    trainer = site.start()
    cast = Cast(site)
    owner = cast.owner()
    workers = make_workers(site, owner.pool)
    worker = workers()
    name = await submit(owner, "spawn_and_sleep")
    await started(owner, name)
    children = worker.children()
    assert len(children) == 1
    # As if the network were cut: it answers nothing and closes nothing.
    os.kill(trainer.pid, signal.SIGSTOP)
    try:
        worker.wait_for("is lost")
        assert not children & worker.children()
    finally:
        os.kill(trainer.pid, signal.SIGCONT)
    worker.wait_for("attempt 2")
    await owner.cancel(name)
    assert states(await events(owner, name))[-1] == "CANCELLED"
    await cast.close()
    workers.stop()


async def test_a_restarted_trainer_finds_its_worker_at_work(
    own_trainer: Callable[..., TrainerSite], make_workers: Callable[..., WorkerMaker]
) -> None:
    site = own_trainer(LEASE__SECONDS=20, LEASE__HEARTBEAT_SECONDS=1)
    site.environ["GUIDEHALL_SCIENCE_MODULES"] = SCIENCE_MODULES
    port = site.start().target.rpartition(":")[2]
    cast = Cast(site)
    owner = cast.owner()
    workers = make_workers(site, owner.pool)
    worker = workers()
    name = await submit(owner, "sleep_on")
    await started(owner, name)
    site.stop()
    worker.wait_for("connecting again")
    site.start(GRPC__PORT=port)
    await cast.close()
    cast = Cast(site)
    again = cast.owner()
    await again.cancel(name)
    told = await events(again, name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "RUNNING", "CANCELLED"]
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert lines(told) == ["asleep"]
    await cast.close()
    workers.stop()


async def test_a_doorbell_wakes_a_worker_that_would_ask_only_much_later(
    site: TrainerSite,
    lone_owner: Owner,
    make_workers: Callable[..., WorkerMaker],
    backing: BackingServers,
) -> None:
    settings = {
        "NATS__URL": backing.nats.url,
        "NATS__USER": "worker",
        "NATS__PASSWORD": backing.nats.password("worker"),
    }
    workers = make_workers(site, lone_owner.pool)
    worker = workers(**settings)
    worker.wait_for("registered")
    for _ in range(3):
        name = await submit(lone_owner, "refuse")
        told = await events(lone_owner, name)
        waited = told[1].time.ToNanoseconds() - told[0].time.ToNanoseconds()
        assert waited < 0.5e9
    backing.kill("nats")
    try:
        name = await submit(lone_owner, "refuse")
        assert states(await events(lone_owner, name))[-1] == "FAILED"
    finally:
        backing.restart("nats")
    worker.wait_for("bus reconnected")
    name = await submit(lone_owner, "refuse")
    assert states(await events(lone_owner, name))[-1] == "FAILED"


async def test_an_idle_worker_costs_next_to_nothing(owner: Owner, steady: Program) -> None:
    name = await submit(owner, "refuse")
    await events(owner, name)
    before = processor_seconds(steady.pid)
    await asyncio.sleep(5)
    assert processor_seconds(steady.pid) - before < 0.15


def processor_seconds(pid: int) -> float:
    """Used by a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_a_worker_that_has_had_no_job_for_long_ends_where_it_is_told_to(
    lone_owner: Owner, workers: WorkerMaker
) -> None:
    name = await submit(lone_owner, "refuse")
    worker = workers(LEASE_WAIT_SECONDS=0.5, IDLE_EXIT_SECONDS=3)
    assert states(await events(lone_owner, name))[-1] == "FAILED"
    ended = time.monotonic()
    assert await asyncio.to_thread(worker.wait) == 0
    assert time.monotonic() - ended > 2.5
    assert any("no job for" in line for line in worker.log)


async def test_a_worker_without_a_credential_waits_for_one(
    site: TrainerSite, lone_owner: Owner, workers: WorkerMaker, tmp_path: Path
) -> None:
    later = tmp_path / f"later-{uuid.uuid4()}"
    worker = workers(CREDENTIAL_FILE=later, CALLS__LONGEST_RETRY_SECONDS=0.5)
    worker.wait_for("cannot register: UNAUTHENTICATED")
    later.write_text(site.credential(lone_owner.pool))
    worker.wait_for("registered as")


async def test_the_parent_never_imports_torch(owner: Owner, steady: Program) -> None:
    name = await submit(owner, "refuse")
    await events(owner, name)
    assert "torch" not in Path(f"/proc/{steady.pid}/maps").read_text()
