"""Jobs as their owners see them, at a real api with a real database."""

from __future__ import annotations

import asyncio
import math
import uuid

import pytest
from google.protobuf.json_format import MessageToDict

from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core import pages
from guidehall.core.auth import Role
from guidehall.core.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from tests.fixtures.trainer import Cast, Owner, refused


async def test_a_job_is_submitted_leased_run_and_finished(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(params={"steps": 3}, display_name="my film", labels={"film": "a"})
    assert job.state == jobs_pb2.JOB_STATE_QUEUED
    assert (job.owner, job.queue_position, job.last_seq) == ("ada", 0, 1)

    lease = await worker.must_lease()
    assert (lease.job, lease.lease_epoch, lease.attempt) == (job.name, 1, 1)
    assert lease.params == job.params
    assert lease.seed == job.seed
    async with worker.session(lease) as session:
        await session.start()
        held = await owner.get(job.name)
        assert held.state == jobs_pb2.JOB_STATE_RUNNING
        assert held.worker == worker.name
        assert held.HasField("start_time")

    assert await worker.finish(lease) == "SUCCEEDED"
    done = await owner.get(job.name)
    assert done.state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert done.end_reason == jobs_pb2.END_REASON_COMPLETED
    assert done.HasField("end_time")
    assert (done.worker, done.queue_position) == ("", -1)
    assert done.etag != job.etag


# Submission ---------------------------------------------------------------------------------------------


async def test_defaults_are_filled_in_and_the_digest_is_of_what_the_job_runs_with(cast: Cast) -> None:
    owner = cast.owner()
    short = await owner.submit(params={"steps": 3})
    full = await owner.submit(params=MessageToDict(short.params))
    assert MessageToDict(short.params)["slope"] == 2.0
    assert short.params == full.params
    assert short.params_digest == full.params_digest
    assert len(short.params_digest) == 64
    other = await owner.submit(params={"steps": 4})
    assert other.params_digest != short.params_digest


async def test_the_server_chooses_a_seed_and_keeps_a_given_one(cast: Cast) -> None:
    owner = cast.owner()
    assert (await owner.submit(seed=7)).seed == 7
    first, second = await owner.submit(), await owner.submit()
    assert first.seed > 0
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        ({"steps": 0}, ["params.steps"]),
        ({"steps": "many", "noise": -1}, ["params.noise", "params.steps"]),
        ({"first_x": 1, "last_x": 0}, ["params.last_x"]),
        ({"colour": "red"}, ["params.colour"]),
        ({"steps": 2**53}, ["params.steps"]),
        ({"model_name": "a\x00b"}, ["params.model_name"]),
    ],
    ids=str,
)
async def test_wrong_parameters_are_refused_by_their_path(
    cast: Cast, params: dict[str, object], fields: list[str]
) -> None:
    async with refused(InvalidArgument) as found:
        await cast.owner().submit(params=params)
    assert sorted(item.field for item in found[0].violations) == fields


@pytest.mark.parametrize("number", [math.nan, math.inf])
async def test_a_number_that_json_has_not_is_refused(cast: Cast, number: float) -> None:
    async with refused(InvalidArgument) as found:
        await cast.owner().submit(params={"noise": number})
    assert found[0].violations[0].field == "params.noise"


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"pipeline": "toy.circle"}, "pipeline"),
        ({"display_name": "x" * 81}, "display_name"),
        ({"display_name": "two\nlines"}, "display_name"),
        ({"labels": {"Upper": "x"}}, "labels"),
        ({"labels": {"film": "x" * 300}}, "labels.film"),
        ({"pool": "no such/pool"}, "pool"),
        ({"pool": "not-enrolled"}, "pool"),
        ({"seed": -1}, "seed"),
        ({"max_attempts": 1000}, "max_attempts"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
        ({"inputs": {"curves": "projects/default/datasets/d/versions/1"}}, "inputs"),
        ({"inputs": {"points": "projects/default/datasets/d"}}, "inputs.points"),
        ({"params": {"from_dataset": True}}, "inputs.points"),
        ({"params": {"from_dataset": True}, "validate_only": True}, "inputs.points"),
        ({"request_id": "not a uuid"}, "request_id"),
        ({"parent": "somewhere"}, "parent"),
    ],
    ids=str,
)
async def test_wrong_fields_are_refused_by_their_name(
    cast: Cast, fields: dict[str, object], blamed: str
) -> None:
    async with refused(InvalidArgument) as found:
        await cast.owner().submit(**fields)
    assert [item.field for item in found[0].violations] == [blamed]


async def test_inputs_need_storage(cast: Cast) -> None:
    async with refused(Unavailable):
        await cast.owner().submit(inputs={"points": "projects/default/datasets/d/versions/1"})


async def test_parameters_that_are_too_large_are_refused(cast: Cast) -> None:
    async with refused(InvalidArgument) as found:
        await cast.owner().submit(params={f"x{i}": "y" * 60_000 for i in range(5)})
    assert found[0].violations[0].field == "params"


async def test_what_a_client_keeps_with_a_job_is_given_back_also_with_a_retry(cast: Cast) -> None:
    owner = cast.owner()
    kept = {"request": {"epochs": 10, "layers": [{"name": "silicon"}], "name": None}}
    job = await owner.submit(annotations=kept)
    assert MessageToDict((await owner.get(job.name)).annotations) == kept
    await owner.cancel(job.name)
    retry = await owner.jobs.RetryJob(jobs_pb2.RetryJobRequest(name=job.name), timeout=10)
    assert retry.annotations == job.annotations
    async with refused(InvalidArgument) as found:
        await owner.submit(annotations={"much": "x" * (64 << 10)})
    assert [item.field for item in found[0].violations] == ["annotations"]


async def test_a_repeated_request_gives_the_first_job(cast: Cast) -> None:
    owner, request_id = cast.owner(), str(uuid.uuid4())
    first = await owner.submit(params={"steps": 5}, request_id=request_id)
    again = await owner.submit(params={"steps": 5}, request_id=request_id)
    assert again.name == first.name
    async with refused(InvalidArgument) as found:
        await owner.submit(params={"steps": 6}, request_id=request_id)
    assert found[0].violations[0].field == "request_id"
    # The id is the caller's own: somebody else's means another request.
    other = await cast.owner("bob").submit(params={"steps": 6}, request_id=request_id)
    assert other.name != first.name


async def test_requests_that_come_twice_at_a_time_make_one_job(cast: Cast) -> None:
    owner, request_id = cast.owner(), str(uuid.uuid4())
    answers = await asyncio.gather(*(owner.submit(request_id=request_id) for _ in range(10)))
    assert len({answer.name for answer in answers}) == 1
    rows = await cast.site.fetch("SELECT 1 FROM trainer.jobs WHERE pool = $1", cast.pool)
    assert len(rows) == 1


async def test_validating_only_checks_everything_and_stores_nothing(cast: Cast) -> None:
    owner, request_id = cast.owner(), str(uuid.uuid4())
    checked = await owner.submit(params={"steps": 5}, validate_only=True, request_id=request_id)
    assert checked.name == ""
    assert checked.params["slope"] == 2.0
    async with refused(InvalidArgument):
        await owner.submit(params={"steps": 0}, validate_only=True)
    assert await cast.site.fetch("SELECT 1 FROM trainer.jobs WHERE pool = $1", cast.pool) == []
    assert await cast.site.fetch("SELECT 1 FROM trainer.request_ids WHERE request_id = $1", request_id) == []


# Who sees what ------------------------------------------------------------------------------------------


async def test_others_do_not_see_a_job_and_operators_do(cast: Cast) -> None:
    job = await cast.owner("ada").submit()
    bob = cast.owner("bob")
    for call in (bob.get(job.name), bob.cancel(job.name)):
        async with refused(NotFound) as found:
            await call
        assert found[0].message == f"{job.name} does not exist"
    async with refused(NotFound):
        await bob.watch(job.name).read()
    assert await names(bob, f'pool = "{cast.pool}"') == []
    operator = cast.owner("olga", Role.OPERATOR)
    assert (await operator.get(job.name)).name == job.name
    assert await names(operator, f'pool = "{cast.pool}"') == [job.name]


@pytest.mark.parametrize(
    "name",
    [
        "projects/default/jobs/00000000-0000-4000-8000-000000000000",
        "projects/default/jobs/not-a-uuid",
    ],
)
async def test_a_job_that_is_not_there_is_not_found(cast: Cast, name: str) -> None:
    async with refused(NotFound):
        await cast.owner().get(name)


async def test_a_job_is_found_in_its_own_project_only(cast: Cast) -> None:
    owner = cast.owner()
    job = await owner.submit(parent="projects/film")
    assert job.name.startswith("projects/film/jobs/")
    async with refused(NotFound):
        await owner.get(job.name.replace("film", "default"))


async def test_roles_and_kinds_are_kept_apart(cast: Cast) -> None:
    async with refused(PermissionDenied):
        await cast.owner("vera", Role.VIEWER).submit()
    async with refused(PermissionDenied):
        await cast.owner("sam").pools.ListWorkers(workers_pb2.ListWorkersRequest(), timeout=5)
    worker = await cast.worker()
    worker.metadata = (("authorization", f"Bearer {cast.site.token('ada', Role.ADMIN)}"),)
    async with refused(PermissionDenied):
        await worker.lease()
    channel = cast.channel((await cast.site.enrol(cast.pool)).token)
    async with refused(PermissionDenied):
        await jobs_pb2_grpc.JobsServiceStub(channel).SubmitJob(jobs_pb2.SubmitJobRequest(), timeout=5)


# Lists --------------------------------------------------------------------------------------------------


async def names(owner: Owner, filter_text: str = "", **fields: object) -> list[str]:
    request = jobs_pb2.ListJobsRequest(filter=filter_text, **fields)
    return [job.name for job in (await owner.jobs.ListJobs(request, timeout=5)).jobs]


async def test_pages_give_every_job_once_newest_first(cast: Cast) -> None:
    owner = cast.owner(f"user-{cast.pool}")
    made = [(await owner.submit()).name for _ in range(7)]
    request = jobs_pb2.ListJobsRequest(page_size=3)
    found, sizes = [], []
    while True:
        page = await owner.jobs.ListJobs(request, timeout=5)
        sizes.append(len(page.jobs))
        found += [job.name for job in page.jobs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == made[::-1]
    assert sizes == [3, 3, 1]
    async with refused(InvalidArgument) as refusal:
        await owner.jobs.ListJobs(
            jobs_pb2.ListJobsRequest(page_token=request.page_token, filter="state = QUEUED")
        )
    assert refusal[0].violations[0].field == "page_token"


async def test_filters_and_orders(cast: Cast) -> None:
    owner = cast.owner(f"user-{cast.pool}")
    first = (await owner.submit(display_name="Nickel film", labels={"film": "ni"})).name
    second = (await owner.submit(display_name="polymer", labels={"film": "ps"})).name
    await owner.cancel(first)
    assert await names(owner, "state = CANCELLED") == [first]
    assert await names(owner, 'state != "CANCELLED" AND pipeline = toy.line') == [second]
    assert await names(owner, "display_name : nickel") == [first]
    assert await names(owner, 'display_name : "%"') == []
    assert await names(owner, 'labels.film = "ps"') == [second]
    assert await names(owner, 'labels.film != "ps"') == [first]
    assert await names(owner, order_by="create_time") == [first, second]
    assert await names(owner, order_by="update_time desc") == [first, second]
    wrong_filters = ("state = DONE", "seed = 1", 'display_name = "a\x00b"')
    for wrong in ({"order_by": "owner"}, *({"filter_text": text} for text in wrong_filters)):
        async with refused(InvalidArgument):
            await names(owner, **wrong)


async def test_the_place_in_the_queue_follows_priority(cast: Cast) -> None:
    owner = cast.owner()
    normal = await owner.submit()
    low = await owner.submit(priority=jobs_pb2.JOB_PRIORITY_LOW)
    high = await owner.submit(priority=jobs_pb2.JOB_PRIORITY_HIGH)
    assert (normal.queue_position, low.queue_position, high.queue_position) == (0, 1, 0)
    listed = (await owner.jobs.ListJobs(jobs_pb2.ListJobsRequest(filter=f"pool = {cast.pool}"))).jobs
    places = {job.name: job.queue_position for job in listed}
    assert places == {high.name: 0, normal.name: 1, low.name: 2}
    assert (await owner.get(low.name)).queue_position == 2


# Cancelling ---------------------------------------------------------------------------------------------


async def test_a_job_that_waits_is_cancelled_at_once_and_again_is_harmless(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    cancelled = await owner.cancel(job.name)
    assert cancelled.state == jobs_pb2.JOB_STATE_CANCELLED
    assert cancelled.end_reason == jobs_pb2.END_REASON_CANCELLED_BY_USER
    assert await owner.cancel(job.name) == cancelled
    assert await worker.lease() is None


async def test_the_deed_is_reported_for_the_audit_log(cast: Cast) -> None:
    owner = cast.owner()
    job = await owner.submit()
    after = await owner.cancel(job.name)
    rows = await cast.site.fetch(
        "SELECT payload ->> 'method' AS method, payload ->> 'subject' AS subject,"
        " payload ->> 'etag_before' AS before, payload ->> 'etag_after' AS after"
        " FROM trainer.outbox WHERE kind = 'audit' AND payload ->> 'resource' = $1 ORDER BY id",
        job.name,
    )
    service = "/guidehall.jobs.v1.JobsService"
    assert [tuple(row) for row in rows] == [
        (f"{service}/SubmitJob", "ada", "", job.etag),
        (f"{service}/CancelJob", "ada", job.etag, after.etag),
    ]


# Pipelines, pools, workers ------------------------------------------------------------------------------


async def test_pipelines_tell_their_parameters_and_who_runs_them(cast: Cast) -> None:
    owner = cast.owner()
    await cast.worker()
    known = await owner.jobs.GetPipeline(jobs_pb2.GetPipelineRequest(name="toy.line"), timeout=5)
    assert known.params_schema["properties"]["slope"]["unit"] == "V/s"
    assert known.live_workers >= 1
    first = await owner.jobs.ListPipelines(jobs_pb2.ListPipelinesRequest(page_size=1), timeout=5)
    rest = await owner.jobs.ListPipelines(
        jobs_pb2.ListPipelinesRequest(page_token=first.next_page_token), timeout=5
    )
    listed = [pipeline.name for pipeline in (*first.pipelines, *rest.pipelines)]
    assert listed == sorted(listed)
    assert "toy.line" in listed
    async with refused(NotFound):
        await owner.jobs.GetPipeline(jobs_pb2.GetPipelineRequest(name="toy.circle"), timeout=5)


async def test_pools_and_workers_show_the_queue(cast: Cast) -> None:
    owner, operator = cast.owner(), cast.owner("olga", Role.OPERATOR)
    busy = await cast.worker(hostname="one")
    running = await owner.submit()
    await busy.must_lease()
    await owner.submit()
    await owner.submit()
    # Last, for it is lost when it is not heard of for the time of a lease.
    idle = await cast.worker(hostname="two")

    pools = (await owner.pools.ListPools(workers_pb2.ListPoolsRequest(), timeout=5)).pools
    (pool,) = (pool for pool in pools if pool.name == f"pools/{cast.pool}")
    assert (pool.queued_jobs, pool.running_jobs, pool.live_workers, pool.idle_workers) == (2, 1, 2, 1)
    assert pool.oldest_wait_seconds > 0

    request = workers_pb2.ListWorkersRequest(pool=cast.pool, page_size=1)
    first = await operator.pools.ListWorkers(request, timeout=5)
    request.page_token = first.next_page_token
    second = await operator.pools.ListWorkers(request, timeout=5)
    assert second.next_page_token == ""
    states = {worker.name: (worker.state, worker.job) for worker in (*first.workers, *second.workers)}
    assert states == {
        busy.name: (workers_pb2.WORKER_STATE_BUSY, running.name),
        idle.name: (workers_pb2.WORKER_STATE_IDLE, ""),
    }


@pytest.mark.parametrize(
    "cursor", [[], [1], ["x", "y", "z"], ["a\x00b"], ["now", "me"], ["2026-01-01", "me"]]
)
async def test_a_page_token_that_somebody_made_up_is_refused(cast: Cast, cursor: list[object]) -> None:
    operator = cast.owner("olga", Role.OPERATOR)
    made_up = pages.next_token(cursor, "olga", "default", "", "create_time desc")
    async with refused(InvalidArgument):
        await operator.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_token=made_up), timeout=5)
    with_pool = pages.next_token(cursor, "")
    async with refused(InvalidArgument):
        await operator.pools.ListWorkers(workers_pb2.ListWorkersRequest(page_token=with_pool), timeout=5)


async def test_a_page_token_of_a_time_that_utc_cannot_say_is_refused(cast: Cast) -> None:
    owner = cast.owner("olga")
    cursor = ["0001-01-01T00:00:00+23:59", str(uuid.UUID(int=0))]
    made_up = pages.next_token(cursor, "olga", "default", "", "create_time desc")
    async with refused(InvalidArgument) as refusal:
        await owner.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_token=made_up), timeout=5)
    # The cursor is at fault, not the arguments that the token is for.
    assert "of an earlier answer" in refusal[0].message


async def test_a_pool_that_is_no_name_is_refused_in_lists(cast: Cast) -> None:
    operator = cast.owner("olga", Role.OPERATOR)
    async with refused(InvalidArgument):
        await operator.pools.ListWorkers(workers_pb2.ListWorkersRequest(pool="a\x00b"), timeout=5)


async def test_jobs_are_found_by_time(cast: Cast) -> None:
    owner = cast.owner()
    waiting, ended = await owner.submit(), await owner.submit()
    await owner.cancel(ended.name)
    ended = await owner.wait(ended.name, "CANCELLED")

    async def found(terms: str) -> set[str]:
        request = jobs_pb2.ListJobsRequest(filter=f"pool = {cast.pool} AND {terms}")
        return {job.name for job in (await owner.jobs.ListJobs(request, timeout=10)).jobs}

    end = ended.end_time.ToJsonString()
    assert end.endswith("Z")
    assert await found(f'end_time <= "{end}"') == {ended.name}
    assert await found(f'end_time < "{end}"') == set()
    assert await found(f'create_time < "{end}"') == {waiting.name, ended.name}
    assert await found('update_time > "2100-01-01T00:00:00+01:00"') == set()
    out_of_range = ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")
    for wrong in ("yesterday", "2030-01-01", "2030-01-01T00:00:00", *out_of_range):
        async with refused(InvalidArgument) as caught:
            await found(f'end_time < "{wrong}"')
        assert [violation.field for violation in caught[0].violations] == ["filter"]
