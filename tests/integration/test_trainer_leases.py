"""Leases at a real api: who gets a job, how it is lost, and that only its holder is heard."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import grpc
import httpx
import jwt
import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from tests.fixtures.trainer import (
    LEASE_SECONDS,
    RETRY_FIRST_SECONDS,
    Cast,
    TalkingWorker,
    TrainerSite,
    object_ref,
    refused,
)

# Choosing -----------------------------------------------------------------------------------------------


async def test_jobs_go_out_by_priority_and_then_by_age(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    first = await owner.submit()
    low = await owner.submit(priority=jobs_pb2.JOB_PRIORITY_LOW)
    high = await owner.submit(priority=jobs_pb2.JOB_PRIORITY_HIGH)
    second = await owner.submit()
    order = []
    for _ in range(4):
        lease = await worker.must_lease()
        order.append(lease.job)
        await worker.finish(lease)
    assert order == [high.name, first.name, second.name, low.name]


async def test_a_job_that_has_waited_long_goes_before_a_fresh_one_of_higher_priority(
    own_trainer: Callable[..., TrainerSite],
) -> None:
    site = own_trainer(JOBS__AGEING_SECONDS=0.05)
    site.start()
    cast = Cast(site)
    owner, worker = cast.owner(), await cast.worker()
    low = await owner.submit(priority=jobs_pb2.JOB_PRIORITY_LOW)
    await asyncio.sleep(0.2)
    high = await owner.submit(priority=jobs_pb2.JOB_PRIORITY_HIGH)
    lease = await worker.must_lease()
    assert lease.job == low.name
    await worker.finish(lease)
    assert (await worker.must_lease()).job == high.name
    await cast.close()


async def test_a_worker_gets_only_what_it_offers_and_has_memory_for(cast: Cast) -> None:
    owner = cast.owner()
    small = workers_pb2.Capabilities(device_memory_bytes=1000)
    other = workers_pb2.OfferedPipeline(name="toy.line", version="0")
    old, narrow, none = (
        await cast.worker(pipelines=[other]),
        await cast.worker(capabilities=small),
        await cast.worker(pipelines=[]),
    )
    large = await owner.submit(memory_hint_bytes=2000)
    assert [await worker.lease() for worker in (old, narrow, none)] == [None, None, None]
    fits = await owner.submit(memory_hint_bytes=1000)
    assert (await narrow.must_lease()).job == fits.name
    assert (await (await cast.worker()).must_lease()).job == large.name


async def test_a_request_that_is_held_gets_a_job_as_soon_as_there_is_one(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    waiting = asyncio.create_task(worker.lease(2.0))
    # Held: it does not answer by itself.
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    began = time.monotonic()
    job = await owner.submit()
    lease = await waiting
    assert lease is not None
    assert lease.job == job.name
    assert time.monotonic() - began < 1.0


async def test_a_submission_gives_who_waits_the_job_whose_turn_it_is(cast: Cast) -> None:
    owner = cast.owner()
    narrow = await cast.worker(capabilities=workers_pb2.Capabilities(device_memory_bytes=1000))
    waiting = asyncio.create_task(narrow.lease(5.0))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    # Not for this worker, which goes on waiting.
    await owner.submit(memory_hint_bytes=2000)
    fits = await owner.submit(memory_hint_bytes=1000)
    lease = await waiting
    assert lease is not None
    assert lease.job == fits.name
    events = await owner.watch_until(fits.name, "state_change", 2)
    assert [event.seq for event in events] == [1, 2]


async def test_a_submission_gives_nothing_to_a_worker_that_has_gone(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    waiting = asyncio.create_task(worker.lease(5.0))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    waiting.cancel()
    await worker.call("Lease", workers_pb2.LeaseRequest(worker=worker.name, leaving=True))
    job = await owner.submit()
    assert (await owner.get(job.name)).state == jobs_pb2.JOB_STATE_QUEUED


async def test_a_request_without_a_job_is_answered_when_its_time_is_over(cast: Cast) -> None:
    worker = await cast.worker()
    began = time.monotonic()
    assert await worker.lease(0.5) is None
    assert 0.4 < time.monotonic() - began < 2.0
    request = workers_pb2.LeaseRequest(worker=worker.name, wait_seconds=-1)
    async with refused(InvalidArgument):
        await worker.call("Lease", request)


@pytest.mark.slow
async def test_two_replicas_never_give_one_job_twice(own_trainer: Callable[..., TrainerSite]) -> None:
    site = own_trainer()
    targets = [site.start().target, site.start().target]
    cast = Cast(site)
    owner = cast.owner(target=targets[0])
    workers = [await cast.worker(target=targets[place % 2]) for place in range(6)]
    made = {(await owner.submit()).name for _ in range(30)}

    async def work(worker: TalkingWorker) -> list[str]:
        got = []
        while (lease := await worker.lease()) is not None:
            assert lease.lease_epoch == 1
            got.append(lease.job)
            assert await worker.finish(lease) == "SUCCEEDED"
        return got

    shares = await asyncio.gather(*(work(worker) for worker in workers))
    given = [name for share in shares for name in share]
    assert len(given) == 30
    assert set(given) == made
    await cast.close()


# Losing -------------------------------------------------------------------------------------------------


async def test_a_silent_worker_loses_its_job_and_is_not_heard_any_more(cast: Cast) -> None:
    owner, silent, other = cast.owner(), await cast.worker(), await cast.worker()
    job = await owner.submit()
    stale = await silent.must_lease()
    fresh = await other.lease(LEASE_SECONDS)
    while fresh is None:
        fresh = await other.lease(LEASE_SECONDS)
    assert (fresh.job, fresh.lease_epoch, fresh.attempt) == (job.name, 2, 2)

    for call in (
        lambda: silent.finish(stale),
        lambda: silent.commit(stale, 1),
        lambda: silent.release(stale),
    ):
        async with refused(Aborted) as found:
            await call()
        assert found[0].reason == "STALE_EPOCH"
    call = silent.stream()
    hello = workers_pb2.SessionHello(job=stale.job, lease_epoch=stale.lease_epoch)
    await call.write(workers_pb2.SessionRequest(hello=hello))
    assert (await call.read()).WhichOneof("message") == "lost"

    assert await other.finish(fresh) == "SUCCEEDED"
    rows = await cast.site.fetch(
        "SELECT epoch, number, end_reason FROM trainer.attempts WHERE job_id = $1 ORDER BY epoch",
        job.name.rpartition("/")[2],
    )
    assert [tuple(row) for row in rows] == [(1, 1, "LEASE_LOST"), (2, 2, "COMPLETED")]


async def test_heartbeats_keep_a_job_for_longer_than_a_lease(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    began = time.monotonic()
    async with worker.session(lease) as session:
        while time.monotonic() - began < 1.5 * LEASE_SECONDS:
            await session.send(heartbeat=workers_pb2.Heartbeat())
            ack = await session.receive("ack")
            assert 0 < ack.lease_remaining_seconds <= LEASE_SECONDS
            await asyncio.sleep(lease.heartbeat_seconds / 2)
    assert (await owner.get(job.name)).lease_epoch == 1
    assert await worker.finish(lease) == "SUCCEEDED"


async def test_a_worker_that_comes_back_for_a_job_gives_up_the_one_it_had(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    # The answer got lost: that is nobody's failure.
    await worker.must_lease()
    unheard = await worker.must_lease()
    assert (unheard.job, unheard.lease_epoch, unheard.attempt) == (job.name, 2, 1)
    # It died while it ran: that was an attempt.
    async with worker.session(unheard) as session:
        await session.start()
    again = await worker.must_lease()
    assert (again.job, again.lease_epoch, again.attempt) == (job.name, 3, 2)


async def test_of_two_requests_of_one_worker_one_is_answered_and_the_job_stays_its_own(cast: Cast) -> None:
    """The connection of the first may be broken at the worker's side alone: the server still holds it."""
    owner, worker = cast.owner(), await cast.worker()
    asking = [asyncio.create_task(worker.lease(5.0)) for _ in range(2)]
    done, _ = await asyncio.wait(asking, timeout=0.3)
    assert not done
    job = await owner.submit()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    (lease,) = [answer for answer in answers if isinstance(answer, workers_pb2.Lease)]
    (refusal,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert refusal.code() is grpc.StatusCode.ABORTED
    assert (lease.job, lease.lease_epoch) == (job.name, 1)
    assert await worker.finish(lease) == "SUCCEEDED"


async def test_a_worker_that_leaves_gives_back_what_it_was_given_unheard(cast: Cast) -> None:
    owner, leaving, other = cast.owner(), await cast.worker(), await cast.worker()
    job = await owner.submit()
    await leaving.must_lease()
    answer = await leaving.call("Lease", workers_pb2.LeaseRequest(worker=leaving.name, leaving=True))
    assert answer == workers_pb2.LeaseResponse()
    lease = await other.lease()
    assert lease is not None
    assert (lease.job, lease.lease_epoch, lease.attempt) == (job.name, 2, 1)


async def test_a_worker_may_take_its_registration_up_again(cast: Cast) -> None:
    worker = await cast.worker()
    again = await cast.worker(worker=worker.name)
    assert again.name == worker.name
    stranger = await cast.worker(worker=worker.name, credential=(await cast.site.enrol(cast.pool)).token)
    assert stranger.name != worker.name


async def test_a_lost_job_fails_after_the_last_permitted_attempt(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(max_attempts=1)
    await worker.must_lease()
    failed = await owner.wait(job.name, "FAILED")
    assert failed.end_reason == jobs_pb2.END_REASON_ATTEMPTS_EXHAUSTED
    assert (failed.error.reason, failed.worker) == ("LEASE_LOST", "")
    labels = f'pool="{cast.pool}",reason="ATTEMPTS_EXHAUSTED",state="FAILED"'
    assert f"guidehall_jobs_ended_total{{{labels}}} 1.0" in metrics(cast.site)


def metrics(site: TrainerSite) -> str:
    """What operators see of all the site's processes."""
    told = [json.loads(process.wait_for("ops_port")) for process in site.processes]
    urls = [f"http://127.0.0.1:{line['ops_port']}/metrics" for line in told]
    return "".join(httpx.get(url).text for url in urls)


async def test_an_attempt_that_takes_too_long_is_ended(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(timeout_seconds=1)
    lease = await worker.must_lease()
    assert lease.timeout_seconds == 1
    async with worker.session(lease) as session:
        await session.start()
        beats = asyncio.create_task(beat(session))
        lost = await session.receive("lost")
        beats.cancel()
    assert lost.reason
    failed = await owner.get(job.name)
    assert failed.end_reason == jobs_pb2.END_REASON_TIMEOUT
    assert failed.error.reason == "TIMEOUT"


async def beat(session: object) -> None:
    while True:
        await session.send(heartbeat=workers_pb2.Heartbeat())  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)


# Handing back, failing, finishing -----------------------------------------------------------------------


async def test_a_job_that_is_handed_back_waits_again_and_lost_nothing(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(max_attempts=1)
    lease = await worker.must_lease()
    await worker.commit(lease, 1, step=40)
    assert await worker.release(lease) == "QUEUED"
    assert await worker.release(lease) == "QUEUED"
    again = await worker.must_lease()
    assert (again.job, again.lease_epoch, again.attempt) == (job.name, 2, 1)
    assert (again.checkpoint.ordinal, again.checkpoint.step, again.checkpoint.lease_epoch) == (1, 40, 1)
    assert again.checkpoint.object == object_ref()


async def test_a_passing_failure_is_tried_again_after_a_while(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(max_attempts=2)
    first = await worker.must_lease()
    failed_at = time.monotonic()
    assert await worker.finish(first, "FAILED", "TRANSIENT_ERROR") == "QUEUED"
    second = await worker.must_lease()
    assert time.monotonic() - failed_at >= RETRY_FIRST_SECONDS
    assert second.attempt == 2
    error = {"code": "INTERNAL", "reason": "BROKEN", "message": "out of\x00luck"}
    assert await worker.finish(second, "FAILED", "OUT_OF_MEMORY", error=error) == "FAILED"
    failed = await owner.get(job.name)
    assert failed.end_reason == jobs_pb2.END_REASON_ATTEMPTS_EXHAUSTED
    assert (failed.error.reason, failed.error.message) == ("BROKEN", "out of\N{REPLACEMENT CHARACTER}luck")


async def test_a_user_error_ends_the_job_and_names_the_field(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    violation = {"field": "params.noise", "description": "too large"}
    error = {"code": "INVALID_ARGUMENT", "reason": "USER_ERROR", "message": "x", "violations": [violation]}
    assert await worker.finish(lease, "FAILED", "USER_ERROR", error=error) == "FAILED"
    failed = await owner.get(job.name)
    assert failed.end_reason == jobs_pb2.END_REASON_USER_ERROR
    assert failed.error.violations[0].field == "params.noise"


async def test_finishing_twice_is_harmless_and_the_first_end_counts(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    assert await worker.finish(lease) == "SUCCEEDED"
    assert await worker.finish(lease) == "SUCCEEDED"
    assert await worker.finish(lease, "FAILED") == "SUCCEEDED"
    rows = await cast.site.fetch(
        "SELECT 1 FROM trainer.outbox WHERE kind = 'promote' AND subject = $1", job.name.rpartition("/")[2]
    )
    assert len(rows) == 1


async def test_a_failure_reported_twice_counts_once(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(max_attempts=2)
    lease = await worker.must_lease()
    assert await worker.finish(lease, "FAILED") == "QUEUED"
    assert await worker.finish(lease, "FAILED") == "QUEUED"
    assert (await owner.get(job.name)).attempt_count == 1


@pytest.mark.parametrize(
    ("outputs", "blamed"),
    [
        ({}, "outputs"),
        ({"plot.png": object_ref()}, "outputs"),
        ({"result": {"sha256": "zz", "size_bytes": 1}}, "outputs.result.sha256"),
        ({"result": {"sha256": "0" * 64, "size_bytes": -1}}, "outputs.result.size_bytes"),
    ],
    ids=str,
)
async def test_success_needs_a_result(cast: Cast, outputs: dict[str, object], blamed: str) -> None:
    owner, worker = cast.owner(), await cast.worker()
    await owner.submit()
    lease = await worker.must_lease()
    async with refused(InvalidArgument) as found:
        await worker.finish(lease, outputs=outputs)
    assert found[0].violations[0].field == blamed
    assert await worker.finish(lease) == "SUCCEEDED"


async def test_an_outcome_must_make_sense(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    await owner.submit()
    lease = await worker.must_lease()
    async with refused(InvalidArgument):
        await worker.finish(lease, "UNSPECIFIED")
    async with refused(FailedPrecondition):
        await worker.finish(lease, "SUCCEEDED", "USER_ERROR")
    async with refused(FailedPrecondition):
        await worker.finish(lease, "CANCELLED")


# Cancelling what runs -----------------------------------------------------------------------------------


async def test_a_cancel_reaches_the_worker_at_once_and_its_finish_ends_the_job(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        assert session.desired == jobs_pb2.DESIRED_STATE_RUN
        began = time.monotonic()
        asked = await owner.cancel(job.name)
        assert (asked.state, asked.desired_state) == (
            jobs_pb2.JOB_STATE_RUNNING,
            jobs_pb2.DESIRED_STATE_CANCEL,
        )
        assert (await session.receive("desired")).desired_state == jobs_pb2.DESIRED_STATE_CANCEL
        assert time.monotonic() - began < 1.0
    assert (await owner.cancel(job.name)).etag == asked.etag
    assert await worker.finish(lease, "CANCELLED") == "CANCELLED"
    assert await worker.finish(lease, "CANCELLED") == "CANCELLED"


async def test_a_wish_that_nobody_was_rung_for_comes_with_the_next_heartbeat(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        # As a caller leaves it who hangs up after the commit.
        await cast.site.fetch(
            "UPDATE trainer.jobs SET desired = 'CANCEL' WHERE id = $1", job.name.rpartition("/")[2]
        )
        await session.send(heartbeat=workers_pb2.Heartbeat())
        assert (await session.receive("desired")).desired_state == jobs_pb2.DESIRED_STATE_CANCEL


async def test_what_finished_while_it_was_being_cancelled_keeps_nothing(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    await owner.cancel(job.name)
    assert await worker.finish(lease) == "CANCELLED"
    kinds = await outbox_kinds(cast, job)
    assert "discard" in kinds
    assert "promote" not in kinds


async def test_a_worker_that_dies_after_the_cancel_ends_the_job(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    await worker.must_lease()
    await owner.cancel(job.name)
    cancelled = await owner.wait(job.name, "CANCELLED")
    assert cancelled.end_reason == jobs_pb2.END_REASON_CANCELLED_BY_USER


async def test_a_session_begins_with_what_is_wanted_now(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    await owner.cancel(job.name)
    async with worker.session(lease) as session:
        assert session.desired == jobs_pb2.DESIRED_STATE_CANCEL


# Credentials --------------------------------------------------------------------------------------------


async def test_a_revoked_credential_opens_nothing_any_more(cast: Cast) -> None:
    owner = cast.owner()
    credential = await cast.site.enrol(cast.pool)
    worker = await cast.worker(credential=credential.token)
    await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await cast.site.revoke(credential)
        await cast.site.revoke(credential)
        await session.send(heartbeat=workers_pb2.Heartbeat())
        async with refused(Unauthenticated) as found:
            await session.receive("ack")
    assert found[0].reason == "CREDENTIAL_REVOKED"
    for call in (worker.lease, lambda: worker.finish(lease), lambda: worker.commit(lease, 1)):
        async with refused(Unauthenticated):
            await call()
    async with refused(Unauthenticated):
        await cast.worker(credential=credential.token)


@pytest.mark.slow
async def test_enrolment_writes_a_file_for_its_owner_alone(cast: Cast) -> None:
    path = cast.site.folder / "mode"
    done = cast.site.run("enrol", "--pool", cast.pool, "--out", str(path))
    assert done.returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() not in done.stdout + done.stderr
    piped = cast.site.run("enrol", "--pool", cast.pool, "--out", "-")
    assert piped.returncode == 0
    assert f"credential {_credential_id(piped.stdout.strip())} for pool {cast.pool}" in piped.stderr
    assert cast.site.run("enrol", "--pool", "Not A Pool", "--out", str(path)).returncode == 2
    assert cast.site.run("revoke", "00000000-0000-4000-8000-000000000000").returncode == 1


def _credential_id(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["jti"])


async def test_workers_of_another_pool_are_not_heard(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    stranger = await Cast(cast.site).worker()
    await owner.submit()
    assert await stranger.lease() is None
    lease = await worker.must_lease()
    async with refused(NotFound):
        await stranger.finish(lease)
    async with refused(NotFound) as found:
        await stranger.call("Lease", workers_pb2.LeaseRequest(worker=worker.name))
    assert found[0].reason == "WORKER_UNKNOWN"


async def test_another_worker_of_the_pool_cannot_speak_for_the_holder(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    thief = await cast.worker(credential=(await cast.site.enrol(cast.pool)).token)
    await owner.submit()
    lease = await worker.must_lease()
    async with refused(Aborted):
        await thief.finish(lease)
    assert await worker.finish(lease) == "SUCCEEDED"


# Checkpoints --------------------------------------------------------------------------------------------


async def test_the_newest_checkpoint_counts_and_older_ones_are_refused(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    assert await worker.commit(lease, 1, step=10) == 0
    assert await worker.commit(lease, 2, step=20) == 1
    # A repeat of the newest is the answer that got lost.
    await worker.commit(lease, 2, step=20)
    async with refused(InvalidArgument):
        await worker.commit(lease, 1, step=10)
    await worker.release(lease)
    again = await worker.must_lease()
    assert again.checkpoint.ordinal == 2
    # The next attempt may number from 1 again: its epoch is higher.
    assert await worker.commit(again, 1, step=30) == 2
    events = await owner.watch_until(job.name, "checkpoint", 3)
    assert [(event.checkpoint.ordinal, event.checkpoint.step) for event in events] == [
        (1, 10),
        (2, 20),
        (1, 30),
    ]


async def outbox_kinds(cast: Cast, job: jobs_pb2.Job) -> set[str]:
    rows = await cast.site.fetch(
        "SELECT DISTINCT kind FROM trainer.outbox WHERE subject = $1", job.name.rpartition("/")[2]
    )
    return {row["kind"] for row in rows}
