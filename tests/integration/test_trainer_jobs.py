"""Jobs as their owners see them, at a real api with a real database."""

from __future__ import annotations

from tests.fixtures.trainer import Cast


async def test_a_job_is_submitted_leased_run_and_finished(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit(params={"steps": 3})
    lease = await worker.must_lease()
    assert lease.job == job.name
    async with worker.session(lease) as session:
        await session.start()
    assert await worker.finish(lease) == "SUCCEEDED"
    done = await owner.get(job.name)
    assert done.end_reason == 1
