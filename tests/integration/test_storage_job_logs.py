"""Logs of jobs that ended without a result: which is kept, for whom, and until when."""

from __future__ import annotations

import uuid

import pytest

from guidehall.contracts.results.v1 import results_pb2, staging_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from services.storage.job_logs import NAME
from tests.fixtures.storage import People, Stubs, eventually, job_name, received
from tests.fixtures.trainer import refused

pytestmark = pytest.mark.slow


async def log_of(caller: Stubs, job: str, offset: int = 0) -> bytes:
    request = results_pb2.DownloadJobLogRequest(job=job_name(job), offset_bytes=offset)
    return (await received(caller.results.DownloadJobLog(request, timeout=10)))[1]


async def stage_log(people: People, job: str, epoch: int, content: bytes) -> None:
    await people.job(job, epoch).stage(job, epoch, "log", NAME, content)


def ended(job: str, owner: str | None, **keep: int) -> staging_pb2.DiscardRequest:
    """What the trainer says when a job has ended without a result; with no owner, when it was deleted."""
    return staging_pb2.DiscardRequest(job=job_name(job), job_ended=True, log_owner=owner, **keep)


async def test_the_owner_reads_the_log_of_the_newest_attempt(people: People) -> None:
    trainer, ada, owner, job = people.service("trainer"), people.user(), people.name("ada"), str(uuid.uuid4())
    for epoch in (1, 2):
        await stage_log(people, job, epoch, b"attempt %d\n" % epoch)
    # Late, from one that had lost the job.
    await stage_log(people, job, 1, b"attempt 1, again\n")
    await people.job(job, 3).stage(job, 3, "artifact", NAME, b"of a success that was none")
    async with refused(NotFound):
        await log_of(ada, job)
    for _ in range(2):
        await trainer.staging.Discard(ended(job, owner))
        assert await log_of(ada, job) == b"attempt 2\n"
        assert await log_of(ada, job, 8) == b"2\n"
        await people.site.without_leaks()
    request = results_pb2.DownloadJobLogRequest(job=job_name(job))
    header, _ = await received(ada.results.DownloadJobLog(request))
    assert header.filename == f"{job}.log"
    assert await log_of(people.user("olga", Role.OPERATOR), job) == b"attempt 2\n"
    async with refused(NotFound):
        await log_of(people.user("bob"), job)
    async with refused(OutOfRange):
        await log_of(ada, job, 11)
    async with refused(FailedPrecondition):
        await stage_log(people, job, 3, b"too late\n")


async def test_a_job_that_goes_on_has_the_log_of_one_attempt_whatever_it_saves(people: People) -> None:
    trainer, ada, owner, job = people.service("trainer"), people.user(), people.name("ada"), str(uuid.uuid4())
    for epoch in (1, 2):
        await stage_log(people, job, epoch, b"attempt %d\n" % epoch)
        await people.job(job, epoch).stage(job, epoch, "checkpoint", "1", b"state")
    staged = await people.site.fetch(
        "SELECT epoch FROM storage.staged_objects WHERE job = $1 AND kind = 'log'", job
    )
    assert [row["epoch"] for row in staged] == [2]
    # The third saves its state and is killed: it leaves no log.
    await people.job(job, 3).stage(job, 3, "checkpoint", "1", b"state")
    saved = staging_pb2.DiscardRequest(job=job_name(job), keep_checkpoint_epoch=3, keep_checkpoint_ordinal=1)
    await trainer.staging.Discard(saved)
    await trainer.staging.Discard(ended(job, owner, keep_checkpoint_epoch=3, keep_checkpoint_ordinal=1))
    assert await log_of(ada, job) == b"attempt 2\n"
    # The checkpoint is not kept any longer.
    await trainer.staging.Discard(ended(job, owner))
    assert await log_of(ada, job) == b"attempt 2\n"
    await people.site.without_leaks()


@pytest.mark.parametrize("claimed_first", [False, True])
async def test_the_log_of_a_guests_job_becomes_his_who_claims_it(people: People, claimed_first: bool) -> None:
    trainer, ada, owner, job = people.service("trainer"), people.user(), people.name("ada"), str(uuid.uuid4())
    await stage_log(people, job, 1, b"of a guest\n")
    told = [ended(job, ""), ended(job, owner)]
    for request in reversed(told) if claimed_first else told:
        await trainer.staging.Discard(request)
    assert await log_of(ada, job) == b"of a guest\n"
    await trainer.staging.Discard(ended(job, people.name("bob")))
    async with refused(NotFound):
        await log_of(people.user("bob"), job)


@pytest.mark.parametrize("deleted_first", [False, True])
async def test_a_log_goes_with_its_job(people: People, deleted_first: bool) -> None:
    trainer, ada, owner, job = people.service("trainer"), people.user(), people.name("ada"), str(uuid.uuid4())
    await stage_log(people, job, 1, b"gone\n")
    told = [ended(job, owner), ended(job, None)]
    for request in reversed(told) if deleted_first else told:
        await trainer.staging.Discard(request)
    async with refused(NotFound):
        await log_of(ada, job)
    await people.site.without_leaks()


async def test_what_is_no_log_is_refused(people: People) -> None:
    job = str(uuid.uuid4())
    async with refused(InvalidArgument) as found:
        await people.job(job, 1).stage(job, 1, "log", "other.log", b"x")
    assert found[0].violations[0].field == "header.object_id"
    for name in ("projects/default/jobs/x", job_name(job)):
        async with refused(NotFound):
            await received(people.user().results.DownloadJobLog(results_pb2.DownloadJobLogRequest(job=name)))
    async with refused(InvalidArgument):
        await received(people.user().results.DownloadJobLog(results_pb2.DownloadJobLogRequest(job="x")))


async def test_logs_are_forgotten_when_they_are_old(people: People) -> None:
    trainer, owner, ada = people.service("trainer"), people.name("ada"), people.user()
    old, new = str(uuid.uuid4()), str(uuid.uuid4())
    for job in (old, new):
        await stage_log(people, job, 1, b"a line\n")
        await trainer.staging.Discard(ended(job, owner))
    await people.site.fetch(
        "UPDATE storage.job_logs SET create_time = now() - interval '31 days' WHERE job = $1", old
    )

    async def is_forgotten() -> bool:
        return not await people.site.fetch("SELECT FROM storage.job_logs WHERE job = $1", old)

    await eventually(is_forgotten, seconds=60.0)
    assert await log_of(ada, new) == b"a line\n"
    await people.site.without_leaks()
