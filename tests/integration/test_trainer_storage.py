"""The trainer and a real storage: pinned inputs, the commit of outputs, what is dropped, the audit log."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import audit_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2, staging_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import InvalidArgument, NotFound, PermissionDenied
from guidehall.local.backing import BackingServers
from tests.fixtures.storage import StorageSite, Stubs, eventually, received, storage_site, weights
from tests.fixtures.trainer import Cast, Owner, TrainerSite, guest_at, refused, trainer_site

DOCUMENT = {"model_name": "line", "slope": 2.0}


@dataclass(frozen=True)
class Pair:
    """A trainer with two replicas, and the storage that it tells."""

    trainer: TrainerSite
    storage: StorageSite


@pytest.fixture(scope="module")
def pair(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    # One folder, so one set of keys.
    folder = tmp_path_factory.mktemp("pair")
    storage = storage_site(backing, folder)
    # A port that stays the same when storage is started again.
    storage.start()
    port = storage.target.rpartition(":")[2]
    storage.environ["GUIDEHALL_STORAGE__GRPC__PORT"] = port
    trainer = trainer_site(
        backing,
        folder,
        STORAGE__TARGET=storage.target,
        LEASE__SECONDS=20,
        # Nobody listens there: whom to tell of an end stays in the outbox.
        NOTIFY__MAIL_HOST="127.0.0.1",
        NOTIFY__MAIL_PORT=1,
    )
    try:
        trainer.start()
        trainer.start()
        yield Pair(trainer, storage)
    finally:
        trainer.stop()
        storage.stop()


@pytest.fixture
async def cast(pair: Pair) -> AsyncIterator[Cast]:
    cast = Cast(pair.trainer)
    yield cast
    await cast.close()


@pytest.fixture
async def ada(pair: Pair) -> AsyncIterator[Stubs]:
    """Ada at storage."""
    async with pair.storage.user("ada") as stubs:
        yield stubs


def attempt(pair: Pair, lease: workers_pb2.Lease) -> Stubs:
    """An attempt at storage, with the token of its lease."""
    return Stubs(pair.storage.target, lease.job_token)


def id_of(name: str) -> str:
    return name.rpartition("/")[2]


async def stage(pair: Pair, lease: workers_pb2.Lease, model: str) -> dict[str, Any]:
    """Stages a document, a file and a model; gives what to finish with."""
    job, epoch = id_of(lease.job), lease.lease_epoch
    async with attempt(pair, lease) as token:
        return {
            "result": await token.stage_result(job, epoch, DOCUMENT | {"epoch": epoch}),
            "plot.png": await token.stage(job, epoch, "artifact", "plot.png", b"picture %d" % epoch),
            model: await token.stage(job, epoch, "model", model, weights(fill=epoch)),
        }


async def story(owner: Owner, name: str) -> list[jobs_pb2.JobEvent]:
    """All events of a job, to its end."""
    return [event async for event in owner.watch(name)]


# Inputs -------------------------------------------------------------------------------------------------


async def test_the_newest_version_of_a_dataset_is_pinned(cast: Cast, ada: Stubs) -> None:
    owner, dataset = cast.owner(), f"d-{uuid.uuid4().hex[:8]}"
    latest = f"projects/default/datasets/{dataset}/versions/latest"
    first = await ada.upload(dataset, b"1 2\n")
    request_id = str(uuid.uuid4())
    job = await owner.submit(inputs={"points": latest}, request_id=request_id)
    assert dict(job.inputs) == {"points": first.name}
    second = await ada.upload(dataset, b"3 4\n")
    # A repeat is the first job, whatever "latest" means by now.
    again = await owner.submit(inputs={"points": latest}, request_id=request_id)
    assert (again.name, dict(again.inputs)) == (job.name, {"points": first.name})
    assert dict((await owner.submit(inputs={"points": latest})).inputs) == {"points": second.name}


async def test_all_jobs_of_a_batch_read_the_same_version(pair: Pair, cast: Cast, ada: Stubs) -> None:
    dataset = f"d-{uuid.uuid4().hex[:8]}"
    first = await ada.upload(dataset, b"1 2\n")
    latest = f"projects/default/datasets/{dataset}/versions/latest"
    await cast.credential()
    template = jobs_pb2.SubmitJobRequest(pipeline="toy.line", pool=cast.pool, inputs={"points": latest})
    sweep = jobs_pb2.Sweep(template=template)
    sweep.axes.add(path="steps").values.extend([1, 2, 3])
    request = jobs_pb2.BatchSubmitJobsRequest(sweep=sweep)
    answer = await cast.owner().jobs.BatchSubmitJobs(request, timeout=10)
    assert [dict(job.inputs) for job in answer.jobs] == [{"points": first.name}] * 3
    template.inputs["points"] = latest.replace(dataset, "none-such")
    request = jobs_pb2.BatchSubmitJobsRequest(requests=[template])
    async with refused(InvalidArgument) as found:
        await cast.owner().jobs.BatchSubmitJobs(request, timeout=10)
    assert [item.field for item in found[0].violations] == ["requests[0].inputs.points"]


async def test_a_jobs_token_opens_its_inputs_and_no_others(pair: Pair, cast: Cast, ada: Stubs) -> None:
    owner, worker = cast.owner(), await cast.worker()
    mine, other = [await ada.upload(f"d-{uuid.uuid4().hex[:8]}", b"1 2\n") for _ in range(2)]
    await owner.submit(inputs={"points": mine.name})
    lease = await worker.must_lease()
    async with attempt(pair, lease) as token:
        read = token.datasets.GetDatasetVersion
        found = await read(datasets_pb2.GetDatasetVersionRequest(name=mine.name), timeout=5)
        assert found.object == mine.object
        async with refused(NotFound):
            await read(datasets_pb2.GetDatasetVersionRequest(name=other.name), timeout=5)


@pytest.mark.parametrize("whose", ["nobody", "somebody"])
async def test_a_dataset_that_the_caller_cannot_read_is_refused(cast: Cast, ada: Stubs, whose: str) -> None:
    name = "projects/default/datasets/none/versions/1"
    if whose == "somebody":
        name = (await ada.upload(f"d-{uuid.uuid4().hex[:8]}", b"1 2\n")).name
    async with refused(InvalidArgument) as found:
        await cast.owner("bob").submit(inputs={"points": name})
    assert found[0].violations[0].field == "inputs.points"


# The commit ---------------------------------------------------------------------------------------------


async def test_a_finished_job_is_published_once_and_its_watchers_hear_of_it_last(
    pair: Pair, cast: Cast, ada: Stubs
) -> None:
    owner, worker = cast.owner(), await cast.worker()
    model = f"m-{uuid.uuid4().hex[:8]}"
    job = await owner.submit()
    lease = await worker.must_lease()
    outputs = await stage(pair, lease, model)
    assert await worker.finish(lease, outputs=outputs) == "SUCCEEDED"
    events = await story(owner, job.name)
    published = [event.published for event in events if event.HasField("published")]
    assert published == [events[-1].published]
    assert published[0].result == f"projects/default/results/{id_of(job.name)}"
    assert list(published[0].model_versions) == [f"projects/default/models/{model}/versions/1"]
    assert (await owner.get(job.name)).result == published[0].result
    result = await ada.results.GetResult(results_pb2.GetResultRequest(name=published[0].result), timeout=5)
    assert dict(result.document)["epoch"] == 1


async def test_the_attempt_that_lost_leaves_nothing(pair: Pair, cast: Cast, ada: Stubs) -> None:
    owner, worker = cast.owner(), await cast.worker()
    model = f"m-{uuid.uuid4().hex[:8]}"
    job = await owner.submit()
    loser = await worker.must_lease()
    async with worker.session(loser) as session:
        await session.start()
    await stage(pair, loser, model)
    winner = await worker.must_lease()
    assert winner.lease_epoch == 2
    outputs = await stage(pair, winner, model)
    assert await worker.finish(winner, outputs=outputs) == "SUCCEEDED"
    result = (await story(owner, job.name))[-1].published.result
    found = await ada.results.GetResult(results_pb2.GetResultRequest(name=result), timeout=5)
    assert dict(found.document)["epoch"] == 2
    await pair.storage.without_leaks()


@pytest.mark.slow
async def test_while_storage_is_away_jobs_end_and_they_are_published_when_it_is_back(
    pair: Pair, cast: Cast
) -> None:
    owner = cast.owner()
    jobs = [await owner.submit() for _ in range(3)]
    workers = [await cast.worker() for _ in jobs]
    leases = [await worker.must_lease() for worker in workers]
    outputs = [await stage(pair, lease, f"m-{uuid.uuid4().hex[:8]}") for lease in leases]
    await asyncio.to_thread(pair.storage.stop)
    try:
        for worker, lease, staged in zip(workers, leases, outputs, strict=True):
            assert await worker.finish(lease, outputs=staged) == "SUCCEEDED"
        watching = [asyncio.create_task(story(owner, job.name)) for job in jobs]
        assert (await owner.get(jobs[0].name)).result == ""
    finally:
        await asyncio.to_thread(pair.storage.start)
    for events in await asyncio.gather(*watching):
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.HasField("published") for event in events].count(True) == 1
        assert events[-1].HasField("published")


@pytest.mark.parametrize(
    "when",
    ["while it runs", pytest.param("while storage is away", marks=pytest.mark.slow), "when it is published"],
)
async def test_who_claims_a_guests_job_owns_its_result_and_models(
    pair: Pair, cast: Cast, ada: Stubs, when: str
) -> None:
    guest, owner, worker = guest_at(cast), cast.owner(), await cast.worker()
    job = await guest("SubmitJob", jobs_pb2.SubmitJobRequest(pipeline="toy.line", pool=cast.pool))
    lease = await worker.must_lease()
    outputs = await stage(pair, lease, f"m-{uuid.uuid4().hex[:8]}")

    async def claim() -> None:
        request = jobs_pb2.ClaimJobRequest(name=job.name)
        assert (await owner.jobs.ClaimJob(request, timeout=10)).owner == "ada"

    match when:
        case "while it runs":
            await claim()
            await worker.finish(lease, outputs=outputs)
        case "while storage is away":
            await asyncio.to_thread(pair.storage.stop)
            try:
                await worker.finish(lease, outputs=outputs)
                await claim()
            finally:
                await asyncio.to_thread(pair.storage.start)
        case "when it is published":
            await worker.finish(lease, outputs=outputs)
            await story(cast.owner("olga", Role.OPERATOR), job.name)
            await claim()

            async def told() -> bool:
                return not await pair.trainer.fetch("SELECT FROM trainer.outbox WHERE kind = 'claim'")

            await eventually(told)
    # Whoever hears that the result is there can read it.
    published = (await story(owner, job.name))[-1].published
    result = await ada.results.GetResult(results_pb2.GetResultRequest(name=published.result), timeout=5)
    (name,) = published.model_versions
    version = await ada.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=name), timeout=5)
    assert (result.owner, version.owner) == ("ada", "ada")


# What is dropped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before its end", "after its end"])
async def test_who_claims_a_guests_job_that_failed_reads_its_log_until_it_is_deleted(
    pair: Pair, cast: Cast, ada: Stubs, when: str
) -> None:
    guest, owner, worker = guest_at(cast), cast.owner(), await cast.worker()
    job = await guest("SubmitJob", jobs_pb2.SubmitJobRequest(pipeline="toy.line", pool=cast.pool))
    claim = jobs_pb2.ClaimJobRequest(name=job.name)
    lease = await worker.must_lease()
    async with attempt(pair, lease) as token:
        await token.stage(id_of(lease.job), lease.lease_epoch, "log", "job.log", b"why\n")
    if when == "before its end":
        await owner.jobs.ClaimJob(claim, timeout=10)
    assert await worker.finish(lease, "FAILED", "USER_ERROR") == "FAILED"
    await eventually(lambda: nothing_staged(pair, job))
    await owner.jobs.ClaimJob(claim, timeout=10)

    async def log() -> bytes:
        request = results_pb2.DownloadJobLogRequest(job=job.name)
        return (await received(ada.results.DownloadJobLog(request, timeout=5)))[1]

    async def is_hers() -> bool:
        try:
            return await log() == b"why\n"
        except grpc.aio.AioRpcError:
            return False

    await eventually(is_hers)
    await owner.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=job.name), timeout=10)

    async def is_gone() -> bool:
        return not await is_hers()

    await eventually(is_gone)
    await pair.storage.without_leaks()


async def test_a_cancelled_job_keeps_nothing(pair: Pair, cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    outputs = await stage(pair, lease, f"m-{uuid.uuid4().hex[:8]}")
    await owner.cancel(job.name)
    assert await worker.finish(lease, outputs=outputs) == "CANCELLED"
    assert not any(event.HasField("published") for event in await story(owner, job.name))
    await eventually(lambda: nothing_staged(pair, job))
    await pair.storage.without_leaks()


async def test_a_newer_checkpoint_replaces_the_older_one(pair: Pair, cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with attempt(pair, lease) as token:
        for ordinal in (1, 2, 3):
            staged = await token.stage(id_of(job.name), 1, "checkpoint", str(ordinal), b"state %d" % ordinal)
            checkpoint = workers_pb2.CheckpointRef(ordinal=ordinal, step=ordinal, object=staged)
            request = workers_pb2.CommitCheckpointRequest(job=job.name, lease_epoch=1, checkpoint=checkpoint)
            await worker.call("CommitCheckpoint", request)

    async def only_the_newest() -> bool:
        rows = await staged_rows(pair, job)
        return [(row["kind"], row["object_id"]) for row in rows] == [("checkpoint", "3")]

    await eventually(only_the_newest)
    await owner.cancel(job.name)
    await worker.finish(lease, "CANCELLED")
    await eventually(lambda: nothing_staged(pair, job))


async def test_a_retry_goes_on_from_the_kept_checkpoint_and_its_success_drops_it(
    pair: Pair, cast: Cast
) -> None:
    owner, worker = cast.owner(), await cast.worker()
    leases = []
    for _ in range(2):
        job = await owner.submit(max_attempts=1)
        lease = await worker.must_lease()
        leases.append(lease)
        async with attempt(pair, lease) as token:
            staged = await token.stage(
                id_of(job.name), 1, "checkpoint", "1", b"state of %s" % job.name.encode()
            )
        checkpoint = workers_pb2.CheckpointRef(ordinal=1, step=5, object=staged)
        request = workers_pb2.CommitCheckpointRequest(job=job.name, lease_epoch=1, checkpoint=checkpoint)
        await worker.call("CommitCheckpoint", request)
        assert await worker.finish(lease, "FAILED", "TIMEOUT") == "FAILED"
    first, other = (lease.job for lease in leases)
    retry = await owner.jobs.RetryJob(jobs_pb2.RetryJobRequest(name=first), timeout=10)
    lease = await worker.must_lease()
    assert (lease.job, lease.checkpoint.job) == (retry.name, first)
    async with attempt(pair, lease) as token:
        assert await checkpoint_of(token, first) == b"state of %s" % first.encode()
        async with refused(PermissionDenied):
            await checkpoint_of(token, other)
    outputs = await stage(pair, lease, f"m-{uuid.uuid4().hex[:8]}")
    assert await worker.finish(lease, outputs=outputs) == "SUCCEEDED"
    await eventually(lambda: nothing_staged(pair, jobs_pb2.Job(name=first)))
    assert len(await staged_rows(pair, jobs_pb2.Job(name=other))) == 1
    await owner.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=other), timeout=10)
    await eventually(lambda: nothing_staged(pair, jobs_pb2.Job(name=other)))
    await pair.storage.without_leaks()


async def checkpoint_of(token: Stubs, job: str) -> bytes:
    request = staging_pb2.ReadCheckpointRequest(job=job, lease_epoch=1, ordinal=1)
    return b"".join(
        [message.chunk.data async for message in token.staging.ReadCheckpoint(request, timeout=5)]
    )


async def test_of_a_success_owners_are_told_once_its_result_can_be_read(pair: Pair, cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    target = jobs_pb2.Notification(email_address="ada@example.org")
    job = await owner.submit(notifications=[target, target])
    lease = await worker.must_lease()
    outputs = await stage(pair, lease, f"m-{uuid.uuid4().hex[:8]}")
    await worker.finish(lease, outputs=outputs)
    result = (await story(owner, job.name))[-1].published.result
    # Then it may go, and they are told all the same.
    await owner.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=job.name), timeout=10)
    rows = await pair.trainer.fetch(
        "SELECT payload -> 'event' ->> 'result' AS result FROM trainer.outbox"
        " WHERE kind = 'notify' AND subject LIKE $1",
        f"{id_of(job.name)}/%",
    )
    assert [row["result"] for row in rows] == [result, result]


async def nothing_staged(pair: Pair, job: jobs_pb2.Job) -> bool:
    return not await staged_rows(pair, job)


async def staged_rows(pair: Pair, job: jobs_pb2.Job) -> list[Any]:
    query = "SELECT kind, object_id FROM storage.staged_objects WHERE job = $1"
    return await pair.storage.fetch(query, id_of(job.name))


# The audit log ------------------------------------------------------------------------------------------


async def test_deeds_are_in_the_audit_log_once(pair: Pair, cast: Cast) -> None:
    owner = cast.owner()
    job = await owner.submit()
    await owner.cancel(job.name)
    await owner.cancel(job.name)
    request = audit_pb2.ListAuditEventsRequest(filter=f'resource = "{job.name}"')
    async with pair.storage.user("olga", Role.OPERATOR) as operator:

        async def deeds() -> list[tuple[str, str, str]]:
            events = (await operator.audit.ListAuditEvents(request, timeout=5)).events
            return [(event.method.rpartition("/")[2], event.subject, event.outcome) for event in events]

        async def complete() -> bool:
            return len(await deeds()) == 2

        await eventually(complete)
        assert await deeds() == [("CancelJob", "ada", "OK"), ("SubmitJob", "ada", "OK")]
