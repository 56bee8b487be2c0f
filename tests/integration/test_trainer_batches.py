"""Jobs that are submitted together: all or none, once, and every fault blamed where it is in the request."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import InvalidArgument
from tests.fixtures.trainer import Cast, Owner, refused


def request(pool: str, **fields: Any) -> jobs_pb2.SubmitJobRequest:
    return jobs_pb2.SubmitJobRequest(**{"pipeline": "toy.line", "pool": pool} | fields)


def sweep(pool: str, axes: dict[str, list[Any]], zipped: bool = False, **template: Any) -> jobs_pb2.Sweep:
    message = jobs_pb2.Sweep(template=request(pool, **template), zipped=zipped)
    for path, values in axes.items():
        message.axes.add(path=path).values.extend(values)
    return message


async def submit(cast: Cast, owner: Owner, **fields: Any) -> jobs_pb2.BatchSubmitJobsResponse:
    await cast.credential()
    return await owner.jobs.BatchSubmitJobs(jobs_pb2.BatchSubmitJobsRequest(**fields), timeout=30)


async def stored(cast: Cast) -> int:
    rows = await cast.site.fetch("SELECT count(*) FROM trainer.jobs WHERE pool = $1", cast.pool)
    return int(rows[0]["count"])


async def test_a_batch_is_stored_in_order_and_rung_for(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    requests = [request(cast.pool, params={"steps": 10 + place}, seed=place + 1) for place in range(3)]
    answer = await submit(cast, owner, requests=requests)
    assert [job.params["steps"] for job in answer.jobs] == [10, 11, 12]
    assert [job.queue_position for job in answer.jobs] == [0, 1, 2]
    assert {job.batch for job in answer.jobs} == {answer.batch}
    listed = await owner.jobs.ListJobs(
        jobs_pb2.ListJobsRequest(filter=f'batch = "{answer.batch}"', order_by="create_time"), timeout=10
    )
    assert {job.name for job in listed.jobs} == {job.name for job in answer.jobs}
    assert (await worker.must_lease()).job == answer.jobs[0].name


async def test_a_sweep_is_every_combination_the_last_axis_fastest(cast: Cast) -> None:
    made = sweep(cast.pool, {"steps": [10, 20], "slope": [1.0, 2.0, 3.0]}, display_name="sweep", seed=4)
    answer = await submit(cast, cast.owner(), sweep=made)
    found = [(job.params["steps"], job.params["slope"]) for job in answer.jobs]
    assert found == [(10, 1), (10, 2), (10, 3), (20, 1), (20, 2), (20, 3)]
    assert {(job.display_name, job.seed) for job in answer.jobs} == {("sweep", 4)}


async def test_a_zipped_sweep_goes_along_all_axes_after_the_requests(cast: Cast) -> None:
    made = sweep(cast.pool, {"steps": [10, 20], "slope": [1.0, 2.0]}, zipped=True)
    answer = await submit(cast, cast.owner(), requests=[request(cast.pool)], sweep=made)
    found = [(job.params["steps"], job.params["slope"]) for job in answer.jobs]
    assert found == [(100, 2), (10, 1), (20, 2)]


async def test_a_repeated_batch_gives_the_first_jobs_also_when_both_come_at_a_time(cast: Cast) -> None:
    owner, request_id = cast.owner(), str(uuid.uuid4())
    requests = [request(cast.pool), request(cast.pool, params={"steps": 7})]
    answers = await asyncio.gather(
        *(submit(cast, owner, requests=requests, request_id=request_id) for _ in range(4))
    )
    assert len({answer.batch for answer in answers}) == 1
    assert {tuple(job.name for job in answer.jobs) for answer in answers} == {
        tuple(job.name for job in answers[0].jobs)
    }
    assert await stored(cast) == 2
    async with refused(InvalidArgument) as found:
        await submit(cast, owner, requests=requests[:1], request_id=request_id)
    assert found[0].violations[0].field == "request_id"


async def test_validating_only_stores_nothing(cast: Cast) -> None:
    answer = await submit(cast, cast.owner(), sweep=sweep(cast.pool, {"steps": [1, 2]}), validate_only=True)
    assert [(job.name, job.batch) for job in answer.jobs] == [("", "")] * 2
    assert answer.batch == ""
    assert await stored(cast) == 0


@pytest.mark.parametrize(
    ("axes", "template", "blamed"),
    [
        ({"steps": [10, 20, 0]}, {}, "sweep.axes[0].values[2]"),
        ({"slope": [1], "steps": ["many"]}, {}, "sweep.axes[1].values[0]"),
        ({"steps": [10]}, {"params": {"noise": -1}}, "sweep.template.params.noise"),
        ({"first_x": [0, 5]}, {}, "sweep.template.params.last_x"),
        ({"colour": ["red"]}, {}, "sweep.axes[0].values[0]"),
        ({"steps": [10]}, {"display_name": "x" * 81}, "sweep.template.display_name"),
        ({"steps[0]": [10]}, {}, "sweep.axes[0].path"),
        ({"a b": [10]}, {}, "sweep.axes[0].path"),
        ({"steps": []}, {}, "sweep.axes[0].values"),
        ({}, {}, "sweep.axes"),
        ({"steps": [1] * 40, "slope": [1] * 40}, {}, "sweep.axes"),
        ({"steps": [10]}, {"request_id": "85c95fa6"}, "sweep.template.request_id"),
        ({"steps": [10]}, {"parent": "projects/other"}, "sweep.template.parent"),
    ],
    ids=str,
)
async def test_a_fault_of_a_sweep_is_blamed_where_it_is(
    cast: Cast, axes: dict[str, list[Any]], template: dict[str, Any], blamed: str
) -> None:
    async with refused(InvalidArgument) as found:
        await submit(cast, cast.owner(), sweep=sweep(cast.pool, axes, **template))
    assert [item.field for item in found[0].violations] == [blamed]
    assert found[0].message.startswith(f"{blamed}: ")
    assert await stored(cast) == 0


async def test_axes_that_do_not_go_together_are_refused(cast: Cast) -> None:
    owner = cast.owner()
    uneven = sweep(cast.pool, {"steps": [1, 2], "slope": [1]}, zipped=True)
    twice = sweep(cast.pool, {"steps": [1]})
    twice.axes.add(path="steps").values.extend([2])
    for wrong, blamed in ((uneven, "sweep.axes[1].values"), (twice, "sweep.axes[1].path")):
        async with refused(InvalidArgument) as found:
            await submit(cast, owner, sweep=wrong)
        assert [item.field for item in found[0].violations] == [blamed]


async def test_one_wrong_request_and_nothing_is_stored(cast: Cast) -> None:
    owner = cast.owner()
    requests = [request(cast.pool) for _ in range(5)]
    requests[3].params.update({"steps": 0, "noise": -1})
    async with refused(InvalidArgument) as found:
        await submit(cast, owner, requests=requests)
    fields = sorted(item.field for item in found[0].violations)
    assert fields == ["requests[3].params.noise", "requests[3].params.steps"]
    for wrong, blamed in (
        ({}, "requests"),
        ({"requests": [request(cast.pool)] * 1001}, "requests"),
        ({"requests": [request(cast.pool, validate_only=True)]}, "requests[0].validate_only"),
    ):
        async with refused(InvalidArgument) as found:
            await submit(cast, owner, **wrong)
        assert [item.field for item in found[0].violations] == [blamed]
    assert await stored(cast) == 0
