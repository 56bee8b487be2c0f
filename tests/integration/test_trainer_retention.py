"""What is kept of the past, how whoever comes too late is told, and how a client copes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from guidehall.client import AsyncClient
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import NotFound, OutOfRange
from tests.fixtures.storage import eventually
from tests.fixtures.trainer import Cast, Owner, TalkingWorker, TrainerSite, log_line, refused

_MOST = 20


@pytest.fixture
async def cast(own_trainer: Callable[..., TrainerSite]) -> AsyncIterator[Cast]:
    """At a trainer that keeps 20 events of a job that runs."""
    site = own_trainer(WATCH__MAX_EVENTS=_MOST, LEASE__SECONDS=60)
    site.start()
    cast = Cast(site)
    yield cast
    await cast.close()


async def first_seq(cast: Cast, job: str, wanted: int) -> None:
    """Returns when the sweeper has dropped what comes before."""
    query = "SELECT first_seq FROM trainer.jobs WHERE id = $1"

    async def dropped() -> bool:
        (row,) = await cast.site.fetch(query, job.rpartition("/")[2])
        return row["first_seq"] == wanted

    await eventually(dropped)


async def kept(cast: Cast, job: str) -> list[int]:
    query = "SELECT seq FROM trainer.job_events WHERE job_id = $1 ORDER BY seq"
    return [row["seq"] for row in await cast.site.fetch(query, job.rpartition("/")[2])]


async def long_job(cast: Cast, owner: Owner, worker: TalkingWorker) -> tuple[jobs_pb2.Job, int]:
    """A job that runs and has more events than are kept; and its last number."""
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        await session.report(1, [log_line(str(number)) for number in range(57)])
    last = (await owner.get(job.name)).last_seq
    assert last == 60
    await first_seq(cast, job.name, last - _MOST + 1)
    return job, last


async def test_a_long_job_keeps_its_newest_events_and_late_readers_are_told(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job, last = await long_job(cast, owner, worker)
    first = last - _MOST + 1
    assert await kept(cast, job.name) == list(range(first, last + 1))
    for after_seq in (0, 1, first - 2):
        async with refused(OutOfRange) as found:
            await owner.watch(job.name, after_seq).read()
        assert (found[0].reason, found[0].metadata) == ("EVENTS_DROPPED", {"first_seq": str(first)})
    call = owner.watch(job.name, first - 1)
    assert [(await call.read()).seq for _ in range(_MOST)] == list(range(first, last + 1))
    call.cancel()

    await owner.cancel(job.name)
    (lease,) = await cast.site.fetch("SELECT lease_epoch FROM trainer.jobs WHERE pool = $1", cast.pool)
    assert lease["lease_epoch"] == 1
    async with AsyncClient({"trainer": cast.site.target}, cast.site.token("ada")) as client:
        following = client.watch(job.name)
        seen = [(await anext(following)).seq for _ in range(_MOST + 1)]
        await following.aclose()  # type: ignore[attr-defined]
    assert seen == list(range(first, last + 2))


async def test_of_a_job_that_ended_long_ago_the_end_is_kept(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    await worker.finish(lease, "FAILED", "USER_ERROR")
    waiting = await owner.submit()
    last = (await owner.get(job.name)).last_seq
    await cast.site.fetch(
        "UPDATE trainer.jobs SET end_time = now() - interval '31 days' WHERE id = $1",
        job.name.rpartition("/")[2],
    )
    await first_seq(cast, job.name, last)
    assert await kept(cast, job.name) == [last]
    assert await kept(cast, waiting.name) == [1]
    async with refused(OutOfRange):
        await owner.watch(job.name).read()
    async with AsyncClient({"trainer": cast.site.target}, cast.site.token("ada")) as client:
        events = [event async for event in client.watch(job.name)]
        assert [event.seq for event in events] == [last]
        assert events[0].last
        assert (await client.wait(job.name, timeout=10)).end_reason == "USER_ERROR"


async def test_a_kept_checkpoint_is_dropped_in_the_end_unless_a_retry_needs_it(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()

    async def failed() -> jobs_pb2.Job:
        job = await owner.submit(max_attempts=1)
        lease = await worker.must_lease()
        await worker.commit(lease, 1, step=3)
        await worker.finish(lease, "FAILED")
        return job

    forgotten, retried = await failed(), await failed()
    await owner.jobs.RetryJob(jobs_pb2.RetryJobRequest(name=retried.name), timeout=10)
    await cast.site.fetch("UPDATE trainer.jobs SET end_time = end_time - interval '8 days'")

    async def dropped() -> bool:
        return not (await owner.get(forgotten.name)).HasField("checkpoint")

    await eventually(dropped)
    assert (await owner.get(retried.name)).HasField("checkpoint")
    lease = await worker.must_lease()
    assert lease.checkpoint.job == retried.name
    assert await worker.finish(lease) == "SUCCEEDED"
    assert not (await owner.get(retried.name)).HasField("checkpoint")


async def test_workers_that_nothing_names_are_dropped_in_the_end(
    own_trainer: Callable[..., TrainerSite],
) -> None:
    site = own_trainer(LEASE__SECONDS=60)
    for _ in range(2):
        site.start()
    cast = Cast(site)
    owner = cast.owner()
    idle, busy, live = [await cast.worker() for _ in range(3)]
    jobs = [await owner.submit() for _ in range(2)]
    for job in jobs:
        lease = await busy.must_lease()
        assert lease.job == job.name
        await busy.finish(lease, "FAILED", "USER_ERROR")

    async def known() -> set[str]:
        return {str(row["id"]) for row in await site.fetch("SELECT id FROM trainer.workers")}

    ids = [worker.name.rpartition("/")[2] for worker in (idle, busy, live)]
    assert await known() == set(ids)
    # More than go at a time, and all but one unheard of for as long as a worker is kept.
    await site.fetch(
        "INSERT INTO trainer.workers (id, pool, credential_id, hostname, capabilities, pipelines, software)"
        " SELECT gen_random_uuid(), pool, credential_id, hostname, capabilities, pipelines, software"
        " FROM trainer.workers, generate_series(1, 1200) WHERE id = $1",
        ids[0],
    )
    await site.fetch(
        "UPDATE trainer.workers SET last_seen_time = now() - interval '31 days' WHERE id <> $1", ids[2]
    )

    async def only(*kept: str) -> None:
        async def dropped() -> bool:
            return await known() == set(kept)

        await eventually(dropped)

    await only(ids[1], ids[2])
    await owner.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=jobs[0].name), timeout=10)
    attempts = await owner.jobs.ListAttempts(jobs_pb2.ListAttemptsRequest(parent=jobs[1].name), timeout=10)
    assert [attempt.worker for attempt in attempts.attempts] == [busy.name]
    assert await known() == {ids[1], ids[2]}
    await owner.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=jobs[1].name), timeout=10)
    await only(ids[2])
    # Whoever was only away, registers anew.
    async with refused(NotFound) as found:
        await busy.lease()
    assert found[0].reason == "WORKER_UNKNOWN"
    await cast.close()
