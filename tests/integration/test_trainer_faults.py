"""The api when what it stands on goes away, and when it goes away itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.errors import Unavailable
from guidehall.local.backing import BackingServers
from tests.fixtures.trainer import READY, Cast, TrainerSite, log_line, refused

pytestmark = pytest.mark.slow


async def until_health(target: str, status: int) -> None:
    """Returns when the api says so of itself."""
    async with grpc.aio.insecure_channel(target) as channel, asyncio.timeout(30):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=READY))
        async for answer in watch:
            if answer.status == status:
                return


async def test_a_database_that_comes_back_finds_everything_as_it_was(
    own_trainer: Callable[..., TrainerSite], backing: BackingServers
) -> None:
    site = own_trainer(LEASE__SECONDS=60)
    process = site.start()
    cast = Cast(site)
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    watch = owner.watch(job.name, after_seq=2)
    async with worker.session(lease) as session:
        await session.report(1, [log_line("before")])
        assert (await watch.read()).seq == 3
        # In good order: the tests' server does not write what it commits to the disk at once.
        await asyncio.to_thread(backing.kill, "postgres", signal.SIGINT)
        try:
            async with refused(Unavailable) as found:
                await owner.get(job.name)
            assert found[0].retry_after_seconds is not None
            await until_health(process.target, health_pb2.HealthCheckResponse.NOT_SERVING)
            async with grpc.aio.insecure_channel(process.target) as channel:
                alive = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            # The process is well: killing it would not help.
            assert alive.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            await asyncio.to_thread(backing.restart, "postgres")
    await until_health(process.target, health_pb2.HealthCheckResponse.SERVING)
    async with worker.session(lease) as session:
        assert session.stored_number == 1
        await session.report(2, [log_line("after")])
    # Another api's notifications are heard again, too: the listener has reconnected.
    other = site.start()
    elsewhere = await cast.worker(target=other.target)
    following = owner.watch(job.name, after_seq=4)
    reading = asyncio.create_task(following.read())
    elsewhere.metadata = worker.metadata
    assert await elsewhere.finish(lease, "FAILED", "USER_ERROR") == "FAILED"
    async with asyncio.timeout(3):
        assert (await reading).state_change.state == jobs_pb2.JOB_STATE_FAILED
    watch.cancel()
    await cast.close()


async def test_an_api_that_is_killed_loses_nothing(own_trainer: Callable[..., TrainerSite]) -> None:
    site = own_trainer(LEASE__SECONDS=60, RELAY__CLAIM_SECONDS=31)
    doomed = site.start()
    cast = Cast(site)
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        assert await session.report(1, [log_line("one")]) == 1
    await asyncio.to_thread(doomed.stop, signal.SIGKILL)
    site.processes.remove(doomed)
    site.start()
    again = Cast(site)
    again.pool = cast.pool
    credential = worker.metadata[0][1].removeprefix("Bearer ")
    worker = await again.worker(credential=credential, worker=worker.name)
    async with worker.session(lease) as session:
        assert session.stored_number == 1
        assert await session.report(1, [log_line("one"), log_line("two")]) == 2
    assert await worker.finish(lease, "FAILED", "USER_ERROR") == "FAILED"
    events = [event async for event in again.owner().watch(job.name)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.log_line.line for event in events if event.HasField("log_line")] == ["one", "two"]
    await cast.close()
    await again.close()


async def test_many_heartbeats_and_leases_of_one_worker_do_not_block_each_other(
    own_trainer: Callable[..., TrainerSite],
) -> None:
    """Both touch the job and the worker: in one order, or the database would find deadlocks."""
    site = own_trainer()
    site.start()
    cast = Cast(site)
    owner, worker = cast.owner(), await cast.worker()
    for _ in range(5):
        await owner.submit(max_attempts=10)

    async def lease_and_beat() -> None:
        for _ in range(25):
            lease = await worker.lease()
            assert lease is not None
            call = worker.stream()
            hello = workers_pb2.SessionHello(job=lease.job, lease_epoch=lease.lease_epoch)
            await call.write(workers_pb2.SessionRequest(hello=hello))
            # An answer or the news that another of these has taken the job back: no error.
            assert (await call.read()).WhichOneof("message") in ("ack", "lost")
            call.cancel()

    await asyncio.gather(*(lease_and_beat() for _ in range(4)))
    await asyncio.to_thread(site.processes[0].stop)
    assert not [line for line in site.processes[0].log if '"ERROR"' in line or "CONCURRENT_CHANGE" in line]
    site.processes.clear()
    await cast.close()
