"""Pools at a real api: who gets how much, who is out of service, who may work there."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import KeyPair, Role, TokenIssuer
from guidehall.core.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from guidehall.local.backing import BackingServers
from services.trainer.pools import Pools
from services.trainer.scheduler import NEXT_JOB
from services.trainer.settings import TrainerSettings
from services.trainer.workers import Workers
from tests.fixtures.trainer import Cast, Owner, TalkingWorker, TrainerSite, progress, refused, trainer_site

_POOLS = {
    "capped": {"max_running_per_owner": 2, "max_running": {"vip": 0}},
    "grouped": {"max_running_per_group": 1},
    "small": {"max_queued_per_owner": 2, "max_queued": {"role:operator": 3}},
    "h200": {},
    "t4": {"default_timeout_seconds": "30m"},
}


@pytest.fixture(scope="module")
def site(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerSite]:
    """Two replicas with pools by configuration."""
    # What is leased here stays so, however slow the machine is.
    site = trainer_site(
        backing, tmp_path_factory.mktemp("pools"), POOLS=json.dumps(_POOLS), LEASE__SECONDS=30
    )
    try:
        site.start()
        site.start()
        yield site
    finally:
        site.stop()


@pytest.fixture
async def cast(site: TrainerSite) -> AsyncIterator[Cast]:
    """Owners and workers, in a pool of their own unless a test chooses one."""
    cast = Cast(site)
    yield cast
    await cast.close()


def member(cast: Cast, subject: str, *groups: str) -> Owner:
    """An owner who belongs to groups."""
    issuer = TokenIssuer("storage", KeyPair.load(cast.site.identity.key_file("storage")))
    token = issuer.mint(subject, "user", roles=(Role.SCIENTIST,), groups=groups, ttl_seconds=600)
    owner = cast.owner(subject)
    channel = cast.channel(token)
    owner.jobs = jobs_pb2_grpc.JobsServiceStub(channel)
    return owner


async def drained(cast: Cast, worker: TalkingWorker, **fields: Any) -> workers_pb2.Worker:
    """Takes a worker out of service, as an operator."""
    operator = cast.owner("olga", Role.OPERATOR)
    return await operator.pools.DrainWorker(
        workers_pb2.DrainWorkerRequest(name=worker.name, **fields), timeout=10
    )


# Shares -------------------------------------------------------------------------------------------------


async def test_whoever_runs_less_goes_first_and_positions_say_so(cast: Cast) -> None:
    ada, bo, worker = cast.owner("ada"), cast.owner("bo"), await cast.worker()
    busy = await ada.submit()
    assert (await worker.must_lease()).job == busy.name
    second, third = await ada.submit(), await ada.submit()
    other = await bo.submit()
    assert [(await ada.get(job.name)).queue_position for job in (second, third)] == [1, 2]
    assert other.queue_position == 0
    order = [(await (await cast.worker()).must_lease()).job for _ in range(3)]
    assert order == [other.name, second.name, third.name]


async def test_concurrent_leases_at_two_replicas_keep_to_the_cap(cast: Cast) -> None:
    cast.pool = "capped"
    owner, vip = cast.owner(f"ada-{uuid.uuid4().hex}"), cast.owner("vip")
    for _ in range(8):
        await owner.submit()
    targets = [process.target for process in cast.site.processes]
    workers = [await cast.worker(target=targets[place % 2]) for place in range(8)]
    leases = await asyncio.gather(*(worker.lease() for worker in workers))
    taken = [(worker, lease) for worker, lease in zip(workers, leases, strict=True) if lease]
    assert Counter(lease.owner for _, lease in taken) == {taken[0][1].owner: 2}
    # One that ends makes room for one.
    worker, lease = taken[0]
    await worker.finish(lease)
    leases = await asyncio.gather(*(worker.lease() for worker in workers if worker is not taken[1][0]))
    assert sum(lease is not None for lease in leases) == 1
    # Who has a number of its own is held to that; here to none.
    for _ in range(3):
        await vip.submit()
    spare = [await cast.worker() for _ in range(3)]
    assert all(await asyncio.gather(*(worker.lease(1.0) for worker in spare)))


async def test_a_group_has_its_cap_whoever_submits(cast: Cast) -> None:
    cast.pool = "grouped"
    group = f"film-{uuid.uuid4().hex[:8]}"
    ada, bo = member(cast, f"ada-{group}", group), member(cast, f"bo-{group}", group, "other")
    first, second = await ada.submit(group=group), await bo.submit(group=group)
    free = await bo.submit()
    assert (first.group, free.group) == (group, "")
    worker = await cast.worker()
    lease = await worker.must_lease()
    assert lease.job == first.name
    other = await cast.worker()
    assert (await other.must_lease()).job == free.name
    assert await (await cast.worker()).lease() is None
    await worker.finish(lease)
    assert (await worker.must_lease()).job == second.name
    async with refused(InvalidArgument) as refusal:
        await ada.submit(group="other")
    assert refusal[0].violations[0].field == "group"


async def test_more_than_the_quota_may_not_wait(cast: Cast) -> None:
    cast.pool = "small"
    owner = cast.owner(f"ada-{uuid.uuid4().hex}")
    await owner.submit()
    await owner.submit()
    async with refused(ResourceExhausted) as refusal:
        await owner.submit()
    assert refusal[0].reason == "QUEUE_QUOTA"
    assert refusal[0].metadata["limit"] == "2"
    assert refusal[0].violations[0].field.startswith("owner:ada-")
    async with refused(ResourceExhausted):
        await owner.submit(validate_only=True)
    operator = cast.owner(f"olga-{uuid.uuid4().hex}", Role.OPERATOR)
    for _ in range(3):
        await operator.submit()
    async with refused(ResourceExhausted):
        await operator.submit()


async def test_submissions_at_the_same_time_keep_to_the_quota_together(cast: Cast) -> None:
    cast.pool = "small"
    owner = cast.owner(f"ada-{uuid.uuid4().hex}")
    answers = await asyncio.gather(*(owner.submit() for _ in range(8)), return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, jobs_pb2.Job)]
    assert len(made) == 2
    # What is paused does not wait; when it would again, it counts.
    await owner.jobs.PauseJob(jobs_pb2.PauseJobRequest(name=made[0].name))
    await owner.submit()
    async with refused(ResourceExhausted):
        await owner.jobs.ResumeJob(jobs_pb2.ResumeJobRequest(name=made[0].name))


async def test_the_next_job_is_found_among_ten_thousand_without_reading_them(site: TrainerSite) -> None:
    pool = f"long-{uuid.uuid4().hex[:8]}"
    await site.fetch(
        """
        INSERT INTO trainer.jobs (id, project, owner, display_name, labels, pipeline, pipeline_version,
            params, params_digest, seed, inputs, pool, priority, memory_hint_bytes, max_attempts,
            timeout_seconds, state, desired, lease_epoch, attempt_count, queue_rank)
        SELECT gen_random_uuid(), 'default', 'owner-' || n % 5, '', '{}', 'toy.line', '1', '{}', '', 1, '{}',
            $1, 2, 0, 3, 0, 'QUEUED', 'RUN', 0, 0, now() - make_interval(secs => n)
        FROM generate_series(1, 10000) AS n
        """,
        pool,
    )
    await site.fetch("ANALYZE trainer.jobs")
    values = {
        "pool": pool,
        "offers": ["toy.line 1"],
        "memory": 0,
        "share_seconds": 3600.0,
        "owner_cap": 3,
        "group_cap": 0,
        "caps": {},
    }
    explained = text("EXPLAIN (ANALYZE, FORMAT JSON) " + NEXT_JOB.element.text).bindparams(
        *NEXT_JOB.element._bindparams.values()
    )
    async with site.connect() as database, database.rehearsal() as connection:
        (plan,) = (await connection.execute(explained, values)).scalar_one()
    await site.fetch("DELETE FROM trainer.jobs WHERE pool = $1", pool)
    scans = [node for node in nodes(plan["Plan"]) if node.get("Relation Name") == "jobs"]
    assert scans
    assert not [node for node in scans if node["Node Type"] == "Seq Scan"]
    read = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans)
    # Each of five owners, and two jobs of each.
    assert 1 <= read < 50


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


# Device classes -----------------------------------------------------------------------------------------


async def test_a_device_class_steps_down_to_where_workers_are(cast: Cast) -> None:
    cast.pool = "t4"
    owner = cast.owner(f"ada-{uuid.uuid4().hex}")
    await cast.worker()
    job = await owner.submit(pool="", device_class="h200")
    assert (job.pool, job.device_class, job.timeout_seconds) == ("t4", "H200", 1800)
    assert (await owner.submit(timeout_seconds=60)).timeout_seconds == 60
    cast.pool, cast._credential = "h200", ""
    await cast.worker()
    assert (await owner.submit(pool="", device_class="H200")).pool == "h200"
    assert (await owner.submit(pool="", device_class="cpu")).pool == "cpu"
    for wrong in ({"device_class": "V100", "pool": ""}, {"device_class": "T4", "pool": "t4"}):
        async with refused(InvalidArgument) as refusal:
            await owner.submit(**wrong)
        assert refusal[0].violations[0].field == "device_class"


async def test_where_no_pool_can_stand_in_the_pools_that_there_are_are_named(trainer: TrainerSite) -> None:
    settings = TrainerSettings.load(trainer.environ)
    async with trainer.connect() as database:
        pools = Pools(database, Workers(database, settings.lease), settings)
        assert await pools.choose("", "T4", gpu_only=False) == ("cpu", "T4")
        with pytest.raises(FailedPrecondition, match=r"T4 .* with a GPU; .*cpu \(cpu\)") as refusal:
            await pools.choose("", "T4", gpu_only=True)
    assert refusal.value.reason == "NO_POOL"


async def test_pools_tell_how_they_are_configured(cast: Cast) -> None:
    pools = cast.owner().pools
    pool = await pools.GetPool(workers_pb2.GetPoolRequest(name="pools/small"), timeout=5)
    assert (pool.name, pool.device_class, pool.launcher.kind) == ("pools/small", "", "none")
    listed = (await pools.ListPools(workers_pb2.ListPoolsRequest(page_size=100), timeout=5)).pools
    found = {pool.name: pool for pool in listed}
    assert found["pools/h200"].device_class == "H200"
    assert found["pools/t4"].default_timeout_seconds == 1800
    assert "pools/cpu" in found
    async with refused(NotFound):
        await pools.GetPool(workers_pb2.GetPoolRequest(name="pools/none"), timeout=5)


# Out of service -----------------------------------------------------------------------------------------


async def test_a_drained_worker_gets_nothing_until_it_is_reinstated(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    for _ in range(2):
        answer = await drained(cast, worker)
        assert answer.state == workers_pb2.WORKER_STATE_DRAINING
    job = await owner.submit()
    request = workers_pb2.LeaseRequest(worker=worker.name)
    answer = await worker.call("Lease", request)
    assert (answer.out_of_service, answer.HasField("lease")) == (True, False)
    name = workers_pb2.GetPoolRequest(name=f"pools/{cast.pool}")
    pool = await owner.pools.GetPool(name, timeout=5)
    assert (pool.live_workers, pool.idle_workers, pool.queued_jobs) == (0, 0, 1)

    held = asyncio.create_task(worker.lease(2.0))
    done, _ = await asyncio.wait({held}, timeout=0.3)
    assert not done
    operator = cast.owner("olga", Role.OPERATOR)
    back = workers_pb2.ReinstateWorkerRequest(name=worker.name)
    assert (await operator.pools.ReinstateWorker(back, timeout=5)).state == workers_pb2.WORKER_STATE_IDLE
    lease = await held
    assert lease is not None
    assert lease.job == job.name
    rows = await cast.site.fetch(
        "SELECT payload ->> 'method' AS method FROM trainer.outbox"
        " WHERE kind = 'audit' AND payload ->> 'resource' = $1 ORDER BY id",
        worker.name,
    )
    methods = [row["method"].rpartition("/")[2] for row in rows]
    assert methods == ["DrainWorker", "DrainWorker", "ReinstateWorker"]


async def test_a_worker_that_is_drained_at_once_hands_its_job_to_another(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        await worker.commit(lease, 1, step=7)
        assert (await drained(cast, worker)).job == job.name
        assert (await drained(cast, worker, release_job=True)).state == workers_pb2.WORKER_STATE_DRAINING
        assert (await session.receive("desired")).desired_state == jobs_pb2.DESIRED_STATE_PAUSE
        assert (await owner.get(job.name)).desired_state == jobs_pb2.DESIRED_STATE_RUN
    # A worker that connects again is told the same.
    async with worker.session(lease) as session:
        assert session.desired == jobs_pb2.DESIRED_STATE_PAUSE
    assert await worker.finish(lease, "PAUSED") == "QUEUED"
    next_lease = await (await cast.worker()).must_lease()
    assert (next_lease.job, next_lease.attempt, next_lease.checkpoint.step) == (job.name, 1, 7)
    assert next_lease.desired_state == jobs_pb2.DESIRED_STATE_RUN


async def test_a_worker_quarantines_itself_and_says_why(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    await owner.submit()
    for reason in ("CUDA error 719 on cuda:0", "again"):
        await worker.call("Quarantine", workers_pb2.QuarantineRequest(worker=worker.name, reason=reason))
    assert await worker.lease() is None
    operator = cast.owner("olga", Role.OPERATOR)
    request = workers_pb2.ListWorkersRequest(pool=cast.pool)
    (shown,) = (await operator.pools.ListWorkers(request, timeout=5)).workers
    assert shown.state == workers_pb2.WORKER_STATE_QUARANTINED
    assert shown.quarantine_reason == "CUDA error 719 on cuda:0"
    async with refused(InvalidArgument):
        await worker.call("Quarantine", workers_pb2.QuarantineRequest(worker=worker.name, reason=" "))
    back = workers_pb2.ReinstateWorkerRequest(name=worker.name)
    assert (await operator.pools.ReinstateWorker(back, timeout=5)).quarantine_reason == ""
    await worker.must_lease()


async def test_only_operators_take_workers_out_of_service(cast: Cast) -> None:
    worker = await cast.worker()
    pools = cast.owner().pools
    for method, request in (
        ("DrainWorker", workers_pb2.DrainWorkerRequest(name=worker.name)),
        ("ReinstateWorker", workers_pb2.ReinstateWorkerRequest(name=worker.name)),
        ("CreateWorkerCredential", workers_pb2.CreateWorkerCredentialRequest(parent="pools/cpu")),
        ("ListWorkerCredentials", workers_pb2.ListWorkerCredentialsRequest()),
        ("RevokeWorkerCredential", workers_pb2.RevokeWorkerCredentialRequest(name="pools/cpu/credentials/x")),
    ):
        async with refused(PermissionDenied):
            await getattr(pools, method)(request, timeout=5)
    operator = cast.owner("olga", Role.OPERATOR).pools
    for name in (f"pools/{cast.pool}/workers/x", f"pools/{cast.pool}/workers/{uuid.uuid4()}"):
        async with refused(NotFound):
            await operator.DrainWorker(workers_pb2.DrainWorkerRequest(name=name), timeout=5)


# Credentials --------------------------------------------------------------------------------------------


async def test_a_credential_lets_workers_in_until_it_is_revoked(cast: Cast) -> None:
    operator = cast.owner("olga", Role.OPERATOR).pools
    parent = f"pools/{cast.pool}"
    request = workers_pb2.CreateWorkerCredentialRequest(parent=parent, note="beamline", ttl_seconds=3600)
    made = await operator.CreateWorkerCredential(request, timeout=5)
    await operator.CreateWorkerCredential(request, timeout=5)
    assert made.credential.note == "beamline"
    assert made.credential.expire_time.seconds - made.credential.create_time.seconds == 3600
    worker = await cast.worker(credential=made.token)

    listing = workers_pb2.ListWorkerCredentialsRequest(parent=parent, page_size=1)
    first = await operator.ListWorkerCredentials(listing, timeout=5)
    listing.page_token = first.next_page_token
    second = await operator.ListWorkerCredentials(listing, timeout=5)
    names = [*first.credentials, *second.credentials]
    assert len({item.name for item in names}) == 2
    assert second.next_page_token == ""
    assert made.token not in str(names)

    revocation = workers_pb2.RevokeWorkerCredentialRequest(name=made.credential.name)
    revoked = await operator.RevokeWorkerCredential(revocation, timeout=5)
    assert await operator.RevokeWorkerCredential(revocation, timeout=5) == revoked
    assert revoked.HasField("revoke_time")
    async with refused(Unauthenticated):
        await worker.lease()
    for wrong in ("x", str(uuid.uuid4())):
        async with refused(NotFound):
            await operator.RevokeWorkerCredential(
                workers_pb2.RevokeWorkerCredentialRequest(name=f"{parent}/credentials/{wrong}"), timeout=5
            )
    for field, value in (("ttl_seconds", -1), ("note", "x" * 201), ("parent", "pools/No")):
        bad = workers_pb2.CreateWorkerCredentialRequest(**{"parent": parent, field: value})
        async with refused(InvalidArgument) as refusal:
            await operator.CreateWorkerCredential(bad, timeout=5)
        assert refusal[0].violations[0].field == field


# Estimates ----------------------------------------------------------------------------------------------


async def test_jobs_tell_when_they_will_start_and_end_once_something_is_known(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    for _ in range(3):
        job = await owner.submit()
        lease = await worker.must_lease()
        async with worker.session(lease) as session:
            await session.start()
        await worker.finish(lease)
    running, waiting = await owner.submit(), await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        await session.report(1, [progress(50)])
        # What was finished is looked at every few seconds.
        async with asyncio.timeout(30):
            while not (await owner.get(waiting.name)).HasField("start_estimate"):
                await session.send(heartbeat=workers_pb2.Heartbeat())
                await session.receive("ack")
                await asyncio.sleep(0.2)
        listed = (await owner.jobs.ListJobs(jobs_pb2.ListJobsRequest(filter=f"pool = {cast.pool}"))).jobs
        found = {item.name: item for item in listed}
    start, end = found[waiting.name].start_estimate, found[waiting.name].end_estimate
    assert start.earliest_time.ToNanoseconds() <= start.time.ToNanoseconds()
    assert start.time.ToNanoseconds() <= start.latest_time.ToNanoseconds() < end.latest_time.ToNanoseconds()
    assert not found[running.name].HasField("start_estimate")
    assert found[running.name].HasField("end_estimate")
    assert not found[job.name].HasField("end_estimate")
    await worker.finish(lease)
