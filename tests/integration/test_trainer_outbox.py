"""What is told to the bus, with it there, away, and not wanted at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import nats
import pytest
from nats.aio.subscription import Subscription

from guidehall.contracts.events.v1 import events_pb2
from guidehall.local.backing import BackingServers
from tests.fixtures.trainer import Cast, TrainerSite

_SECONDS = 10


@asynccontextmanager
async def hearing(backing: BackingServers, subject: str) -> AsyncIterator[Subscription]:
    """What passes on the bus under a subject."""
    client = await nats.connect(backing.nats.url, user="admin", password=backing.nats.password("admin"))
    try:
        subscription = await client.subscribe(subject)
        await client.flush()
        yield subscription
    finally:
        await client.close()


async def heard(subscription: Subscription) -> events_pb2.Event:
    return events_pb2.Event.FromString((await subscription.next_msg(_SECONDS)).data)


async def left(site: TrainerSite, *kinds: str) -> int:
    rows = await site.fetch("SELECT count(*) FROM trainer.outbox WHERE kind = ANY($1)", list(kinds))
    return int(rows[0]["count"])


async def emptied(site: TrainerSite, *kinds: str) -> None:
    """Returns when the outbox holds nothing of these kinds."""
    async with asyncio.timeout(_SECONDS):
        # No event tells that a row went: the outbox itself is what is looked at.
        while await left(site, *kinds):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_submission_rings_in_its_pool(cast: Cast, backing: BackingServers) -> None:
    async with hearing(backing, f"jobs.{cast.pool}") as bell:
        await cast.owner().submit()
        event = await heard(bell)
    assert event.doorbell.pool == cast.pool
    assert event.source == "trainer"


async def test_events_of_a_job_are_fanned_out(cast: Cast, backing: BackingServers) -> None:
    owner = cast.owner()
    async with hearing(backing, "events.job.*") as passing:
        job = await owner.submit()
        await owner.cancel(job.name)
        seen: list[int] = []
        while seen != [1, 2]:
            event = await heard(passing)
            seen += [item.seq for item in event.job_events.events if item.job == job.name]


async def test_a_failed_attempt_rings_again_after_its_pause(cast: Cast, backing: BackingServers) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with hearing(backing, f"jobs.{cast.pool}") as bell:
        # Held from before the failure: it gets the job when the pause is over.
        waiting = asyncio.create_task((await cast.worker()).must_lease())
        await worker.finish(lease, "FAILED")
        await heard(bell)
        again = await waiting
    assert (again.job, again.lease_epoch) == (job.name, 2)


async def test_a_lost_doorbell_is_rung_again_for_an_idle_worker(cast: Cast, backing: BackingServers) -> None:
    owner, worker = cast.owner(), await cast.worker()
    async with hearing(backing, f"jobs.{cast.pool}") as bell:
        await owner.submit()
        await heard(bell)
        # Nobody came; the worker idles, as it says now and then by asking for jobs of the wrong kind.
        idle = await cast.worker(pipelines=[])
        ringing = asyncio.create_task(heard(bell))
        while not ringing.done():
            await idle.lease()
            await asyncio.wait({ringing}, timeout=0.2)
        assert (await ringing).doorbell.pool == cast.pool
    assert (await worker.must_lease()).lease_epoch == 1


@pytest.mark.slow
async def test_without_a_bus_nothing_is_left_untold(own_trainer: Callable[..., TrainerSite]) -> None:
    site = own_trainer()
    for name in ("URL", "USER", "PASSWORD"):
        del site.environ[f"GUIDEHALL_TRAINER__NATS__{name}"]
    site.start()
    cast = Cast(site)
    worker = await cast.worker()
    waiting = asyncio.create_task(worker.must_lease())
    await cast.owner().submit()
    assert (await waiting).lease_epoch == 1
    await emptied(site, "doorbell", "events")
    await cast.close()


@pytest.mark.slow
async def test_while_the_bus_is_away_jobs_run_and_it_hears_of_them_later(
    own_trainer: Callable[..., TrainerSite], backing: BackingServers
) -> None:
    site = own_trainer()
    site.start()
    cast = Cast(site)
    owner, worker = cast.owner(), await cast.worker()
    backing.kill("nats")
    try:
        waiting = asyncio.create_task(worker.must_lease())
        job = await owner.submit()
        lease = await waiting
        assert lease.job == job.name
        watch = owner.watch(job.name, after_seq=2)
        assert await worker.finish(lease, "FAILED", "USER_ERROR") == "FAILED"
        assert (await watch.read()).seq == 3
        assert await left(site, "doorbell", "events") > 0
    finally:
        backing.restart("nats")
    await emptied(site, "doorbell", "events")
    await cast.close()
