"""Jobs from their submission to their result: a real trainer, a real storage, real workers."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.local.backing import BackingServers
from tests.fixtures.storage import Stubs, eventually, received, storage_site
from tests.fixtures.trainer import Cast, Owner
from tests.fixtures.worker import SCIENCE_MODULES, Sites, WorkerMaker, running_workers
from tests.processes import Program

pytestmark = pytest.mark.slow

STEADY_POOL = "steady"


@pytest.fixture(scope="module")
def steady(sites: Sites, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A worker for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("steady")
    with running_workers(sites.trainer, STEADY_POOL, folder, sites.storage.target) as workers:
        yield workers(MAX_ARTIFACT_BYTES=2 << 20, MAX_RESULT_BYTES=1 << 20)


@pytest.fixture
async def owner(sites: Sites, steady: Program) -> AsyncIterator[Owner]:
    """Somebody whose jobs the steady worker runs."""
    cast = Cast(sites.trainer)
    cast.pool = STEADY_POOL
    yield cast.owner()
    await cast.close()


@pytest.fixture
async def lone_owner(sites: Sites) -> AsyncIterator[Owner]:
    """The same one in a pool of his own, without workers at first."""
    cast = Cast(sites.trainer)
    yield cast.owner()
    await cast.close()


@pytest.fixture
async def stubs(sites: Sites) -> AsyncIterator[Stubs]:
    """What the owner sees of storage."""
    async with sites.storage.user("ada") as stubs:
        yield stubs


@pytest.fixture
def workers(sites: Sites, lone_owner: Owner, make_workers: Callable[..., WorkerMaker]) -> WorkerMaker:
    """Makes workers for the lone owner's pool."""
    return make_workers(sites.trainer, lone_owner.pool, sites.storage.target)


async def events(owner: Owner, name: str) -> list[jobs_pb2.JobEvent]:
    """All events of a job, to its end."""
    async with asyncio.timeout(90):
        return [event async for event in owner.watch(name)]


def states(told: list[jobs_pb2.JobEvent]) -> list[str]:
    return [
        jobs_pb2.JobState.Name(event.state_change.state).removeprefix("JOB_STATE_")
        for event in told
        if event.HasField("state_change")
    ]


async def until(owner: Owner, name: str, kind: str, count: int = 1) -> None:
    """Returns when the job has had so many events of a kind."""
    call = owner.watch(name)
    async for event in call:
        count -= event.WhichOneof("payload") == kind
        if count == 0:
            call.cancel()
            return
    raise AssertionError(f"it ended before it had another {kind}")


async def result_of(stubs: Stubs, job: jobs_pb2.Job) -> results_pb2.Result:
    request = results_pb2.GetResultRequest(name=job.result)
    return await stubs.results.GetResult(request, timeout=10)


async def artifact(stubs: Stubs, result: results_pb2.Result, filename: str) -> bytes:
    request = results_pb2.DownloadArtifactRequest(name=f"{result.name}/artifacts/{filename}")
    return (await received(stubs.results.DownloadArtifact(request, timeout=10)))[1]


def numbers(result: results_pb2.Result) -> dict[str, Any]:
    return json_format.MessageToDict(result.document)


async def test_a_job_becomes_a_result_with_files_and_a_model(owner: Owner, stubs: Stubs) -> None:
    model = f"line-{uuid.uuid4().hex[:8]}"
    job = await owner.submit(params={"model_name": model, "steps": 50}, seed=11)
    told = await events(owner, job.name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert told[-1].HasField("published")
    job = await owner.get(job.name)
    assert job.end_reason == jobs_pb2.END_REASON_COMPLETED
    assert (job.progress.step, job.progress.total) == (50, 50)
    assert job.last_log_line.startswith("slope")
    result = await result_of(stubs, job)
    assert numbers(result)["slope"] == pytest.approx(2.0, abs=0.2)
    assert sorted(item.filename for item in result.artifacts) == ["job.log", "points.npy"]
    points = np.load(io.BytesIO(await artifact(stubs, result, "points.npy")), allow_pickle=False)
    assert points.shape == (200, 2)
    assert (await artifact(stubs, result, "job.log")).decode().splitlines() == [job.last_log_line]
    (version,) = result.model_versions
    assert version == f"projects/default/models/{model}/versions/1"
    published = await stubs.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version))
    manifest = json_format.MessageToDict(published.manifest)
    assert manifest["provenance"]["job"] == job.name
    assert manifest["provenance"]["seed"] == 11


async def test_whoever_watches_sees_previews_and_the_newest_in_the_end(owner: Owner) -> None:
    job = await owner.submit(params={"steps": 50, "step_seconds": 0.005})
    shown = [event.preview for event in await events(owner, job.name) if event.HasField("preview")]
    assert {preview.kind for preview in shown} == {"toy.line"}
    documents = [json_format.MessageToDict(preview.document) for preview in shown]
    assert documents[0]["step"] == 1
    assert documents[-1]["step"] == 50
    assert documents[-1]["slope"] == pytest.approx(2.0, abs=0.3)
    # At most one in five seconds, and the last.
    assert len(documents) < 10


async def test_a_job_that_lacks_memory_goes_on_with_less_where_it_can(
    lone_owner: Owner, stubs: Stubs, workers: WorkerMaker
) -> None:
    workers(CHILD__MEMORY_BYTES=3 << 29)
    job = await lone_owner.submit(pipeline="odd.need_less_memory", params={"amount": 4}, max_attempts=1)
    told = await events(lone_owner, job.name)
    assert states(told)[-1] == "SUCCEEDED"
    assert [event.log_line.line for event in told if event.HasField("log_line")] == [
        "[not enough memory: tried again with amount = 2]",
        "[not enough memory: tried again with amount = 1]",
    ]
    job = await lone_owner.get(job.name)
    result = await result_of(stubs, job)
    # It went on from what it had saved, and left what the last try left.
    assert numbers(result)["told"] == {"bytes": 1 << 30, "saved": "half-way"}
    assert sorted(item.filename for item in result.artifacts) == ["job.log", "of-1"]
    job = await lone_owner.submit(pipeline="odd.use_memory", params={"amount": 4 << 30}, max_attempts=1)
    await events(lone_owner, job.name)
    assert (await lone_owner.get(job.name)).error.reason == "OUT_OF_MEMORY"


async def test_the_same_seed_gives_the_same_numbers_in_one_process_or_two(
    owner: Owner, lone_owner: Owner, stubs: Stubs, workers: WorkerMaker
) -> None:
    workers(CHILD__JOBS=1)
    found = []
    for submitter in (owner, lone_owner, owner, lone_owner):
        job = await submitter.submit(params={"steps": 30}, seed=12)
        await events(submitter, job.name)
        found.append(numbers(await result_of(stubs, await submitter.get(job.name))))
    assert all(other == found[0] for other in found)


async def test_a_dataset_reaches_the_pipeline(owner: Owner, stubs: Stubs) -> None:
    x = np.linspace(0, 1, 100_000)
    buffer = io.BytesIO()
    np.save(buffer, np.stack([x, 5 * x + 3], axis=1), allow_pickle=False)
    version = await stubs.upload(f"points-{uuid.uuid4().hex[:8]}", buffer.getvalue(), filename="points.npy")
    job = await owner.submit(params={"from_dataset": True, "steps": 200}, inputs={"points": version.name})
    assert states(await events(owner, job.name))[-1] == "SUCCEEDED"
    result = numbers(await result_of(stubs, await owner.get(job.name)))
    assert result["slope"] == pytest.approx(5.0, abs=0.01)
    assert result["intercept"] == pytest.approx(3.0, abs=0.01)


async def test_a_worker_killed_half_way_is_followed_by_one_that_goes_on_from_the_checkpoint(
    sites: Sites, lone_owner: Owner, stubs: Stubs, workers: WorkerMaker
) -> None:
    params = {"steps": 60, "step_seconds": 0.05, "checkpoint_every": 10, "model_name": "taken-over"}
    alone = await lone_owner.submit(params=params | {"step_seconds": 0.0}, seed=13)
    first = workers()
    await events(lone_owner, alone.name)
    job = await lone_owner.submit(params=params, seed=13)
    await until(lone_owner, job.name, "checkpoint", 2)
    first.stop(signal.SIGKILL)
    workers()
    told = await events(lone_owner, job.name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]
    job = await lone_owner.get(job.name)
    assert job.lease_epoch == 2
    (resumed,) = [
        line.log_line.line for line in told if line.HasField("log_line") and "goes on" in line.log_line.line
    ]
    committed = max(event.checkpoint.step for event in told if event.HasField("checkpoint"))
    assert 20 <= int(resumed.rsplit(" ", 1)[1]) <= committed
    result, reference = await result_of(stubs, job), await result_of(stubs, await lone_owner.get(alone.name))
    assert numbers(result) == numbers(reference)
    # One of each job: what the first attempt would have published is nowhere.
    assert result.model_versions == ["projects/default/models/taken-over/versions/2"]
    await sites.storage.without_leaks()


async def test_a_worker_that_comes_back_from_the_dead_changes_nothing(
    sites: Sites, lone_owner: Owner, stubs: Stubs, workers: WorkerMaker
) -> None:
    first = workers()
    params = {"steps": 60, "step_seconds": 0.05, "model_name": "frozen"}
    job = await lone_owner.submit(params=params, seed=14)
    await until(lone_owner, job.name, "checkpoint", 1)
    # Its child runs on: only the one who reports is frozen.
    os.kill(first.pid, signal.SIGSTOP)
    try:
        workers()
        told = await events(lone_owner, job.name)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]
    first.wait_for("is lost")
    job = await lone_owner.get(job.name)
    assert (await result_of(stubs, job)).model_versions == ["projects/default/models/frozen/versions/1"]
    assert await events(lone_owner, job.name) == told
    await sites.storage.without_leaks()


async def test_a_cancel_ends_a_step_at_once_and_keeps_nothing(sites: Sites, owner: Owner) -> None:
    params = {"steps": 10_000, "step_seconds": 0.02, "checkpoint_every": 5}
    job = await owner.submit(params=params)
    await until(owner, job.name, "checkpoint", 1)
    await owner.cancel(job.name)
    told = await events(owner, job.name)
    assert states(told)[-1] == "CANCELLED"
    (asked, done) = [event.time.ToNanoseconds() for event in told if event.HasField("state_change")][-2:]
    # Well within the grace after which it would have been killed.
    assert (done - asked) / 1e9 < 0.8

    async def nothing_is_staged() -> bool:
        return not await sites.storage.fetch("SELECT 1 FROM storage.staged_objects")

    await eventually(nothing_is_staged)
    await sites.storage.without_leaks()


@pytest.mark.parametrize("end", ["FAILED", "TIMEOUT", "CANCELLED"])
async def test_the_whole_log_of_a_job_without_a_result_can_be_read(
    sites: Sites, lone_owner: Owner, stubs: Stubs, workers: WorkerMaker, end: str
) -> None:
    workers(LOG_LINES_PER_SECOND=1)
    if end == "FAILED":
        # The first attempt too leaves one, which the second replaces.
        job = await lone_owner.submit(
            pipeline="odd.complain_and_break", params={"amount": 1000}, max_attempts=2
        )
        expected = [f"line {number}" for number in range(1000)]
    else:
        job = await lone_owner.submit(
            # Long enough for a child to begin on a machine that has much to do.
            pipeline="odd.sleep_on",
            max_attempts=1,
            timeout_seconds=8 if end == "TIMEOUT" else 0,
        )
        expected = ["asleep"]
        if end == "CANCELLED":
            await until(lone_owner, job.name, "log_line")
            await lone_owner.cancel(job.name)
    told = await events(lone_owner, job.name)
    assert states(told)[-1] == ("CANCELLED" if end == "CANCELLED" else "FAILED")

    async def is_kept() -> bool:
        return bool(await sites.storage.fetch("SELECT FROM storage.job_logs WHERE job = $1", job.name[-36:]))

    await eventually(is_kept)
    request = results_pb2.DownloadJobLogRequest(job=job.name)
    content = (await received(stubs.results.DownloadJobLog(request, timeout=10)))[1]
    assert content.decode().splitlines() == expected
    # Events need not have the last lines once more.
    assert not any("all of them" in event.log_line.line for event in told)
    await sites.storage.without_leaks()


async def test_a_stopped_worker_saves_its_state_for_the_next(
    lone_owner: Owner, stubs: Stubs, workers: WorkerMaker
) -> None:
    first = workers(DRAIN_SECONDS=10)
    params = {"steps": 100, "step_seconds": 0.03, "checkpoint_every": 1000}
    job = await lone_owner.submit(params=params, max_attempts=1)
    await until(lone_owner, job.name, "progress", 3)
    assert first.stop() == 0
    second = workers()
    told = await events(lone_owner, job.name)
    assert states(told)[-1] == "SUCCEEDED"
    assert any("goes on at step" in line.log_line.line for line in told if line.HasField("log_line"))
    # Its own checkpoint was the only one.
    assert sum(event.HasField("checkpoint") for event in told) == 1
    assert second.stop() == 0


async def test_a_retry_of_a_job_that_took_too_long_goes_on_from_its_checkpoint_to_the_same_numbers(
    sites: Sites, lone_owner: Owner, stubs: Stubs, workers: WorkerMaker
) -> None:
    workers()
    params = {"steps": 200, "step_seconds": 0.05, "checkpoint_every": 5, "model_name": "retried"}
    alone = await lone_owner.submit(params=params | {"step_seconds": 0.0}, seed=15)
    await events(lone_owner, alone.name)
    job = await lone_owner.submit(params=params, seed=15, timeout_seconds=5)
    told = await events(lone_owner, job.name)
    assert states(told)[-1] == "FAILED"
    failed = await lone_owner.get(job.name)
    assert failed.end_reason == jobs_pb2.END_REASON_TIMEOUT
    assert failed.checkpoint.step >= 5
    assert f"the checkpoint at step {failed.checkpoint.step} is kept" in failed.error.message
    request = jobs_pb2.RetryJobRequest(name=job.name, timeout_seconds=60)
    retry = await lone_owner.jobs.RetryJob(request, timeout=10)
    told = await events(lone_owner, retry.name)
    assert states(told)[-1] == "SUCCEEDED"
    lines = [event.log_line.line for event in told if event.HasField("log_line")]
    assert f"goes on at step {failed.checkpoint.step}" in lines
    result = await result_of(stubs, await lone_owner.get(retry.name))
    reference = await result_of(stubs, await lone_owner.get(alone.name))
    assert numbers(result) == numbers(reference)

    async def nothing_is_kept() -> bool:
        return not await sites.storage.fetch("SELECT 1 FROM storage.staged_objects")

    await eventually(nothing_is_kept)
    await sites.storage.without_leaks()


async def test_storage_may_be_away_for_a_while(
    backing: BackingServers, tmp_path: Path, own_trainer: Any, make_workers: Callable[..., WorkerMaker]
) -> None:
    storage = storage_site(backing, tmp_path)
    port = storage.start().target.rpartition(":")[2]
    site = own_trainer(STORAGE__TARGET=storage.target)
    site.environ["GUIDEHALL_SCIENCE_MODULES"] = SCIENCE_MODULES
    site.start()
    cast = Cast(site)
    owner = cast.owner()
    workers = make_workers(site, owner.pool, storage.target)
    worker = workers(CALLS__LONGEST_RETRY_SECONDS=0.5)
    worker.wait_for("registered")
    storage.stop()
    job = await owner.submit(params={"steps": 5})
    worker.wait_for("staging")
    storage.start(GRPC__PORT=port)
    told = await events(owner, job.name)
    assert states(told) == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"]
    await cast.close()
    workers.stop()
    storage.stop()


@pytest.mark.parametrize(
    ("pipeline", "params", "field"),
    [
        ("odd.fill_a_file", {"amount": 3 << 20}, "artifacts.large.bin"),
        ("odd.return_too_much", {"amount": 3 << 20}, "outputs"),
        ("odd.fill_a_folder", {"amount": 30}, "outputs"),
    ],
)
async def test_outputs_beyond_the_limits_fail_the_job_with_a_reason(
    owner: Owner, pipeline: str, params: dict[str, int], field: str
) -> None:
    job = await owner.submit(pipeline=pipeline, params=params)
    assert states(await events(owner, job.name))[-1] == "FAILED"
    job = await owner.get(job.name)
    assert job.end_reason == jobs_pb2.END_REASON_USER_ERROR
    assert [violation.field for violation in job.error.violations] == [field]


async def test_a_job_reads_only_its_owners_inputs(sites: Sites, owner: Owner) -> None:
    async with sites.storage.user("bob") as other:
        version = await other.upload(f"private-{uuid.uuid4().hex[:8]}", b"1 2\n3 4\n")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await owner.submit(params={"from_dataset": True}, inputs={"points": version.name})
    assert refusal.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


async def test_jobs_of_one_owner_share_a_process_and_those_of_two_do_not(
    sites: Sites, owner: Owner, stubs: Stubs
) -> None:
    cast = Cast(sites.trainer)
    cast.pool = STEADY_POOL
    other = cast.owner("bob")
    processes = []
    async with sites.storage.user("bob") as others:
        for submitter, reader in ((owner, stubs), (owner, stubs), (other, others), (owner, stubs)):
            job = await submitter.submit(pipeline="odd.litter")
            await events(submitter, job.name)
            told = numbers(await result_of(reader, await submitter.get(job.name)))["told"]
            assert told["found"] == []
            processes.append(told["process"])
    await cast.close()
    assert processes[0] == processes[1]
    assert len(set(processes)) == 3
