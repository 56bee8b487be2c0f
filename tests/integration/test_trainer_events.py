"""Events: stored once, numbered without gaps, and seen by every watcher just once, whatever is restarted."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable

import grpc
import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.errors import InvalidArgument, NotFound, OutOfRange
from tests.fixtures.trainer import Cast, TrainerSite, log_line, progress, refused

# What a worker reports ----------------------------------------------------------------------------------


async def test_events_are_stored_in_order_and_show_in_the_job(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        stored = await session.report(
            1, [log_line("begins"), progress(1, train_loss=0.5), log_line("goes on")]
        )
        assert stored == 3
        assert await session.report(4, [progress(2, train_loss=0.25)]) == 4
    shown = await owner.get(job.name)
    assert (shown.progress.step, shown.progress.total) == (2, 100)
    assert dict(shown.progress.metrics) == {"train_loss": 0.25}
    assert shown.last_log_line == "goes on"
    await worker.finish(lease, "FAILED", "USER_ERROR")

    events = [event async for event in owner.watch(job.name)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("payload") for event in events]
    state, line = "state_change", "log_line"
    assert kinds == [state, state, state, line, "progress", line, "progress", state]
    states = [event.state_change.state for event in events if event.HasField("state_change")]
    assert states == [
        jobs_pb2.JOB_STATE_QUEUED,
        jobs_pb2.JOB_STATE_LEASED,
        jobs_pb2.JOB_STATE_RUNNING,
        jobs_pb2.JOB_STATE_FAILED,
    ]
    assert events[1].state_change.worker == worker.name
    assert {event.job for event in events} == {job.name}


async def test_an_end_brings_the_start_and_the_events_that_no_session_was_told(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    rest = workers_pb2.EventBatch(first_number=1, events=[log_line("begins"), progress(1, train_loss=0.5)])
    ending = {"started_seconds_ago": 0.01, "events": rest}
    assert await worker.finish(lease, "FAILED", "USER_ERROR", **ending) == "FAILED"
    # It did not hear the answer.
    assert await worker.finish(lease, "FAILED", "USER_ERROR", **ending) == "FAILED"

    events = [event async for event in owner.watch(job.name)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("payload") for event in events]
    state = "state_change"
    assert kinds == [state, state, state, "log_line", "progress", state]
    assert events[2].state_change.state == jobs_pb2.JOB_STATE_RUNNING
    shown = await owner.get(job.name)
    assert shown.progress.step == 1
    assert shown.last_log_line == "begins"
    times = (shown.create_time, shown.start_time, shown.end_time)
    assert sorted(time.ToNanoseconds() for time in times) == [time.ToNanoseconds() for time in times]
    assert events[2].time == shown.start_time
    request = jobs_pb2.ListAttemptsRequest(parent=job.name)
    attempt = (await owner.jobs.ListAttempts(request, timeout=10)).attempts[0]
    assert attempt.start_time == shown.start_time


async def test_an_end_tells_nothing_twice_that_a_session_was_told(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    lines = [log_line(str(number)) for number in range(1, 4)]
    async with worker.session(lease) as session:
        await session.start()
        assert await session.report(1, lines[:2]) == 2
    rest = workers_pb2.EventBatch(first_number=1, events=lines)
    await worker.finish(lease, "FAILED", "USER_ERROR", started_seconds_ago=1e6, events=rest)
    events = [event async for event in owner.watch(job.name)]
    assert [event.log_line.line for event in events if event.HasField("log_line")] == ["1", "2", "3"]
    assert len(events) == 4 + 3


async def test_an_end_that_leaves_a_gap_is_refused(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    gap = workers_pb2.EventBatch(first_number=2, events=[log_line("x")])
    async with refused(InvalidArgument) as found:
        await worker.finish(lease, "FAILED", "USER_ERROR", events=gap)
    assert found[0].violations[0].field == "events.first_number"
    async with refused(InvalidArgument) as found:
        await worker.finish(lease, "FAILED", "USER_ERROR", started_seconds_ago=float("nan"))
    assert found[0].violations[0].field == "started_seconds_ago"
    assert (await owner.get(job.name)).last_seq == 2


async def test_a_batch_that_comes_again_is_stored_once(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    lines = [log_line(str(number)) for number in range(1, 6)]
    async with worker.session(lease) as session:
        assert await session.report(1, lines[:3]) == 3
        assert await session.report(1, lines[:3]) == 3
        # It overlaps what is stored, as after a reconnect.
        assert await session.report(2, lines[1:]) == 5
    async with worker.session(lease) as session:
        assert session.stored_number == 5
    events = await owner.watch_until(job.name, "log_line", 5)
    assert [event.log_line.line for event in events] == ["1", "2", "3", "4", "5"]
    assert (await owner.get(job.name)).last_seq == 2 + 5


async def test_a_gap_is_refused_and_nothing_is_stored(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    for first in (0, 2):
        async with worker.session(lease) as session:
            async with refused(InvalidArgument) as found:
                await session.report(first, [log_line("x")])
            assert found[0].violations[0].field == "events.first_number"
    assert (await owner.get(job.name)).last_seq == 2


async def test_the_next_attempt_numbers_its_events_anew(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    for attempt in ("first", "second"):
        lease = await worker.must_lease()
        async with worker.session(lease) as session:
            assert session.stored_number == 0
            assert await session.report(1, [log_line(attempt)]) == 1
        await worker.release(lease)
    events = await owner.watch_until(job.name, "log_line", 2)
    assert [event.log_line.line for event in events] == ["first", "second"]


async def test_what_a_database_cannot_hold_is_made_to_fit(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    preview = jobs_pb2.Preview(kind="curve")
    preview.document.update({"q": [0.01, 0.02]})
    events = [
        log_line("a\x00b"),
        log_line("x" * 100_000),
        progress(1, loss=math.nan, bound=math.inf),
        workers_pb2.WorkerEvent(preview=preview),
    ]
    async with worker.session(lease) as session:
        assert await session.report(1, events) == 4
    call = owner.watch(job.name, after_seq=2)
    seen = [await call.read() for _ in events]
    call.cancel()
    assert seen[0].log_line.line == "a\N{REPLACEMENT CHARACTER}b"
    assert len(seen[1].log_line.line) == 4000
    assert seen[1].log_line.line.endswith("…")
    assert math.isnan(seen[2].progress.metrics["loss"])
    assert seen[2].progress.metrics["bound"] == math.inf
    assert seen[3].preview == preview


@pytest.mark.parametrize(
    "event",
    [
        workers_pb2.WorkerEvent(),
        workers_pb2.WorkerEvent(log_line=jobs_pb2.LogLine(line="x"), time={"seconds": 10**18}),
        progress(1, **{f"m{number}": 1.0 for number in range(101)}),
    ],
    ids=["empty", "time", "metrics"],
)
async def test_events_that_make_no_sense_are_refused(cast: Cast, event: workers_pb2.WorkerEvent) -> None:
    owner, worker = cast.owner(), await cast.worker()
    await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session, refused(InvalidArgument):
        await session.report(1, [event])


async def test_a_batch_has_a_largest_size(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session, refused(InvalidArgument):
        await session.report(1, [log_line("x")] * 1001)


async def test_a_session_begins_with_one_hello(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    await owner.submit()
    lease = await worker.must_lease()
    call = worker.stream()
    await call.write(workers_pb2.SessionRequest(heartbeat=workers_pb2.Heartbeat()))
    async with refused(InvalidArgument):
        await call.read()
    hello = workers_pb2.SessionHello(job=lease.job, lease_epoch=lease.lease_epoch)
    async with worker.session(lease) as session, refused(InvalidArgument):
        await session.send(hello=hello)
        await session.receive("lost")
    call = worker.stream()
    missing = "projects/default/jobs/00000000-0000-4000-8000-000000000000"
    await call.write(workers_pb2.SessionRequest(hello=workers_pb2.SessionHello(job=missing, lease_epoch=1)))
    async with refused(NotFound):
        await call.read()


# Watching -----------------------------------------------------------------------------------------------


async def test_a_watcher_sees_an_event_as_soon_as_it_is_stored(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    call = owner.watch(job.name, after_seq=2)
    reading = asyncio.create_task(call.read())
    async with worker.session(lease) as session:
        await session.report(1, [log_line("one")])
        began = time.monotonic()
        assert (await reading).seq == 3
        # The watcher looks by itself only every few seconds.
        assert time.monotonic() - began < 1.0
    call.cancel()


async def test_watching_begins_after_the_number_given(cast: Cast) -> None:
    owner = cast.owner()
    job = await owner.submit()
    await owner.cancel(job.name)
    assert [event.seq async for event in owner.watch(job.name)] == [1, 2]
    assert [event.seq async for event in owner.watch(job.name, 1)] == [2]
    assert [event.seq async for event in owner.watch(job.name, 2)] == []
    for wrong in (3, -1):
        async with refused(OutOfRange):
            await owner.watch(job.name, wrong).read()


@pytest.mark.slow
async def test_watchers_that_come_and_go_see_every_event_once(
    own_trainer: Callable[..., TrainerSite],
) -> None:
    """Two replicas, one of which is killed in the middle; watchers go on from the last number they saw."""
    site = own_trainer(WATCH__PAGE=7, LEASE__SECONDS=60)
    doomed, other = site.start(), site.start()
    cast = Cast(site)
    owner, worker = cast.owner(target=other.target), await cast.worker(target=other.target)
    job = await owner.submit()
    lease = await worker.must_lease()
    last = 200

    async def follow(patience: int) -> list[int]:
        owners = [cast.owner(target=doomed.target), cast.owner(target=other.target)]
        seen: list[int] = []
        turn = 0
        while True:
            call = owners[turn % 2].watch(job.name, seen[-1] if seen else 0)
            turn += 1
            try:
                async for event in call:
                    seen.append(event.seq)
                    if len(seen) % patience == 0:
                        break
                else:
                    return seen
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
            call.cancel()

    async with asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(follow(patience)) for patience in (1000, 13, 5)]
        async with worker.session(lease) as session:
            await session.start()
            for number in range(1, last + 1, 4):
                await session.report(number, [log_line(str(n)) for n in range(number, number + 4)])
                if number == 101:
                    await asyncio.to_thread(doomed.stop, signal.SIGKILL)
        await worker.finish(lease, "FAILED", "USER_ERROR")
    total = (await owner.get(job.name)).last_seq
    assert total == 4 + last
    for watcher in watchers:
        assert watcher.result() == list(range(1, total + 1))
    await cast.close()


async def test_a_server_that_stops_ends_its_streams_at_once_and_says_so(
    own_trainer: Callable[..., TrainerSite],
) -> None:
    site = own_trainer(GRPC__DRAIN_SECONDS=20)
    process = site.start()
    cast = Cast(site)
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    idle = await cast.worker()
    waiting = asyncio.create_task(idle.lease(2.0))
    call = owner.watch(job.name, 2)
    async with worker.session(lease) as session:
        reading = asyncio.create_task(call.read())
        began = time.monotonic()
        status = await asyncio.to_thread(process.stop)
        assert status == 0
        assert time.monotonic() - began < 10
        for ended in (reading, asyncio.create_task(session.call.read())):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await ended
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await waiting is None
    await cast.close()
