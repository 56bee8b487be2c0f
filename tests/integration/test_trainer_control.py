"""What owners do to their jobs after submission, at a real api with a real database."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from services.trainer.policies import POLICIES
from tests.fixtures.trainer import Cast, Owner, guest_at, refused

_STATE = jobs_pb2.JobState
_DESIRED = jobs_pb2.DesiredState


async def call(owner: Owner, method: str, **fields: Any) -> Any:
    request = getattr(jobs_pb2, f"{method}Request")(**fields)
    return await getattr(owner.jobs, method)(request, timeout=20)


async def audited(cast: Cast, name: str) -> list[str]:
    rows = await cast.site.fetch(
        "SELECT payload ->> 'method' AS method FROM trainer.outbox"
        " WHERE kind = 'audit' AND payload ->> 'resource' = $1 ORDER BY id",
        name,
    )
    return [row["method"].rpartition("/")[2] for row in rows]


async def names(owner: Owner, filter_text: str) -> list[str]:
    return [job.name for job in (await call(owner, "ListJobs", filter=filter_text)).jobs]


# Wishes -------------------------------------------------------------------------------------------------


async def test_a_running_job_is_paused_with_its_checkpoint_and_goes_on_from_it(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        for _ in range(2):
            asked = await call(owner, "PauseJob", name=job.name)
            assert (asked.state, asked.desired_state) == (
                _STATE.JOB_STATE_RUNNING,
                _DESIRED.DESIRED_STATE_PAUSE,
            )
        assert (await session.receive("desired")).desired_state == _DESIRED.DESIRED_STATE_PAUSE
        await worker.commit(lease, 1, step=7)
    assert await worker.finish(lease, "PAUSED") == "PAUSED"
    paused = await owner.get(job.name)
    assert (paused.checkpoint.ordinal, paused.checkpoint.step) == (1, 7)
    assert await worker.lease() is None
    for _ in range(2):
        resumed = await call(owner, "ResumeJob", name=job.name)
        assert (resumed.state, resumed.attempt_count) == (_STATE.JOB_STATE_QUEUED, 0)
    again = await worker.must_lease()
    assert (again.job, again.checkpoint.step, again.checkpoint.job) == (job.name, 7, "")
    assert await audited(cast, job.name) == ["SubmitJob", "PauseJob", "ResumeJob"]


async def test_a_job_that_is_stopped_keeps_its_best_and_stopping_again_is_harmless(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        await call(owner, "StopJob", name=job.name)
        assert (await session.receive("desired")).desired_state == _DESIRED.DESIRED_STATE_STOP
    assert await worker.finish(lease, reason="STOPPED_EARLY") == "SUCCEEDED"
    stopped = await call(owner, "StopJob", name=job.name)
    assert stopped.end_reason == jobs_pb2.END_REASON_STOPPED_EARLY
    async with refused(FailedPrecondition) as found:
        await call(owner, "PauseJob", name=job.name)
    assert (found[0].reason, found[0].metadata["state"]) == ("JOB_STATE", "SUCCEEDED")


async def test_a_job_that_waits_is_paused_and_resumed_at_its_place(cast: Cast) -> None:
    owner = cast.owner()
    first, second = await owner.submit(), await owner.submit()
    await call(owner, "PauseJob", name=first.name)
    assert (await owner.get(second.name)).queue_position == 0
    assert (await call(owner, "ResumeJob", name=first.name)).queue_position == 0


@pytest.mark.parametrize("method", ["PauseJob", "ResumeJob", "StopJob", "RetryJob", "DeleteJob"])
async def test_what_one_does_not_own_is_not_there(cast: Cast, method: str) -> None:
    job = await cast.owner("ada").submit()
    async with refused(NotFound) as found:
        await call(cast.owner("bob"), method, name=job.name)
    assert found[0].message == f"{job.name} does not exist"
    async with refused(PermissionDenied):
        await call(cast.owner("ada", Role.VIEWER), method, name=job.name)


# Changes ------------------------------------------------------------------------------------------------


async def test_a_job_is_renamed_and_labelled(cast: Cast) -> None:
    owner = cast.owner()
    job = await owner.submit(display_name="old", labels={"film": "a"})
    change = jobs_pb2.Job(name=job.name, display_name="new", labels={"film": "b"}, etag=job.etag)
    renamed = await call(owner, "UpdateJob", job=change, update_mask={"paths": ["display_name"]})
    assert (renamed.display_name, dict(renamed.labels)) == ("new", {"film": "a"})
    assert renamed.etag != job.etag
    async with refused(Aborted) as found:
        await call(owner, "UpdateJob", job=change, update_mask={"paths": ["labels"]})
    assert (found[0].reason, found[0].metadata["etag"]) == ("ETAG_MISMATCH", renamed.etag)
    change.etag = ""
    labelled = await call(owner, "UpdateJob", job=change, update_mask={"paths": ["labels"]})
    assert dict(labelled.labels) == {"film": "b"}
    # A repeat changes nothing.
    assert await call(owner, "UpdateJob", job=change, update_mask={"paths": ["labels"]}) == labelled
    assert await audited(cast, job.name) == ["SubmitJob", "UpdateJob", "UpdateJob"]


async def test_another_priority_moves_a_job_that_waits(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    first, second = await owner.submit(), await owner.submit()
    for priority, place in (("HIGH", 0), ("LOW", 1), ("HIGH", 0), ("NORMAL", 1)):
        change = jobs_pb2.Job(name=second.name, priority=f"JOB_PRIORITY_{priority}")
        moved = await call(owner, "UpdateJob", job=change, update_mask={"paths": ["priority"]})
        assert (moved.priority, moved.queue_position) == (change.priority, place)
    assert (await worker.must_lease()).job == first.name
    change = jobs_pb2.Job(name=first.name, priority="JOB_PRIORITY_HIGH")
    async with refused(FailedPrecondition):
        await call(owner, "UpdateJob", job=change, update_mask={"paths": ["priority"]})


@pytest.mark.parametrize(
    ("fields", "paths", "blamed"),
    [
        ({"display_name": "x" * 81}, ["display_name"], "display_name"),
        ({"labels": {"Upper": "x"}}, ["labels"], "labels"),
        ({"priority": 9}, ["priority"], "priority"),
        ({}, ["seed"], "update_mask"),
        ({}, [], "update_mask"),
        ({"notifications": [{}]}, ["notifications"], "notifications[0]"),
        (
            {"notifications": [{"email_address": "a@b.c"}]},
            ["notifications"],
            "notifications[0].email_address",
        ),
    ],
    ids=str,
)
async def test_wrong_changes_are_refused_by_their_field(
    cast: Cast, fields: dict[str, Any], paths: list[str], blamed: str
) -> None:
    owner = cast.owner()
    job = await owner.submit()
    change = jobs_pb2.Job(name=job.name, **fields)
    async with refused(InvalidArgument) as found:
        await call(owner, "UpdateJob", job=change, update_mask={"paths": paths})
    assert [item.field for item in found[0].violations] == [blamed]


# Retries ------------------------------------------------------------------------------------------------


async def exhausted(cast: Cast, owner: Owner, **fields: Any) -> jobs_pb2.Job:
    """A job that failed on its only attempt, after a checkpoint at step 7."""
    worker = await cast.worker()
    job = await owner.submit(max_attempts=1, **fields)
    lease = await worker.must_lease()
    assert lease.job == job.name
    await worker.commit(lease, 3, step=7)
    assert await worker.finish(lease, "FAILED", error={"message": "it broke"}) == "FAILED"
    return await owner.get(job.name)


async def test_a_retry_is_the_same_job_again_and_goes_on_from_the_kept_checkpoint(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    first = await exhausted(
        cast, owner, params={"steps": 30}, seed=7, display_name="film", labels={"a": "b"}, timeout_seconds=99
    )
    assert first.end_reason == jobs_pb2.END_REASON_ATTEMPTS_EXHAUSTED
    assert first.error.message == "it broke; the checkpoint at step 7 is kept: retry goes on from it"
    assert (first.checkpoint.ordinal, first.checkpoint.step) == (3, 7)

    request_id = str(uuid.uuid4())
    retry = await call(owner, "RetryJob", name=first.name, request_id=request_id)
    assert (await call(owner, "RetryJob", name=first.name, request_id=request_id)).name == retry.name
    async with refused(InvalidArgument):
        await call(owner, "RetryJob", name=first.name, request_id=request_id, seed=8)
    assert retry.retried_from == first.name
    assert ((await owner.get(first.name)).latest_retry, first.latest_retry) == (retry.name, "")
    for field in ("params", "params_digest", "seed", "display_name", "labels", "timeout_seconds", "pool"):
        assert getattr(retry, field) == getattr(first, field), field
    assert await names(owner, f'retried_from = "{first.name}"') == [retry.name]
    assert await names(owner, f'pool = {cast.pool} AND retried_from != "{first.name}"') == [first.name]

    for epoch in (1, 2):
        lease = await worker.must_lease()
        found = lease.checkpoint
        assert (found.job, found.lease_epoch, found.ordinal, found.step) == (first.name, 1, 3, 7)
        if epoch == 1:
            await worker.release(lease)
    # As soon as it has one of its own, that one counts.
    await worker.commit(lease, 4, step=9)
    await worker.release(lease)
    lease = await worker.must_lease()
    assert (lease.checkpoint.job, lease.checkpoint.step) == ("", 9)
    assert await worker.finish(lease) == "SUCCEEDED"
    assert not (await owner.get(first.name)).HasField("checkpoint")
    assert await audited(cast, retry.name) == ["RetryJob"]


@pytest.mark.parametrize(
    ("changes", "from_checkpoint"),
    [
        ({"timeout_seconds": 5, "display_name": "again"}, True),
        ({"param_changes": {"steps": 30}}, True),
        ({"from_start": True}, False),
        ({"seed": 8}, False),
        ({"param_changes": {"steps": 31}}, False),
    ],
    ids=str,
)
async def test_what_changes_the_numbers_begins_anew(
    cast: Cast, changes: dict[str, Any], from_checkpoint: bool
) -> None:
    owner, worker = cast.owner(), await cast.worker()
    first = await exhausted(cast, owner, params={"steps": 30}, seed=7)
    retry = await call(owner, "RetryJob", name=first.name, **changes)
    assert retry.params["steps"] == changes.get("param_changes", {}).get("steps", 30)
    assert retry.seed == changes.get("seed", 7)
    assert (await worker.must_lease()).HasField("checkpoint") == from_checkpoint


async def test_a_retry_of_a_retry_goes_on_from_the_first_ones_checkpoint(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    first = await exhausted(cast, owner)
    second = await call(owner, "RetryJob", name=first.name)
    await owner.cancel(second.name)
    third = await call(owner, "RetryJob", name=second.name)
    lease = await worker.must_lease()
    assert (lease.job, lease.checkpoint.job) == (third.name, first.name)
    await worker.finish(lease)
    assert not (await owner.get(first.name)).HasField("checkpoint")


async def test_only_what_has_ended_is_retried_and_changes_are_checked(cast: Cast) -> None:
    owner = cast.owner()
    job = await owner.submit()
    async with refused(FailedPrecondition):
        await call(owner, "RetryJob", name=job.name)
    await owner.cancel(job.name)
    for changes, blamed in (
        ({"steps": 0}, "params.steps"),
        ({"colour": 1}, "params.colour"),
        ({"steps.inner": 1}, "param_changes"),
        ({"a b": 1}, "param_changes"),
    ):
        async with refused(InvalidArgument) as found:
            await call(owner, "RetryJob", name=job.name, param_changes=changes)
        assert [item.field for item in found[0].violations] == [blamed]
    checked = await call(owner, "RetryJob", name=job.name, validate_only=True)
    assert (checked.name, checked.retried_from) == ("", job.name)
    assert await names(owner, f"pool = {cast.pool}") == [job.name]


async def test_a_job_stays_its_owners_when_an_operator_retries_it(cast: Cast) -> None:
    job = await exhausted(cast, cast.owner("ada"))
    retry = await call(cast.owner("olga", Role.OPERATOR), "RetryJob", name=job.name)
    assert retry.owner == "ada"


async def test_a_timeout_keeps_the_checkpoint_and_a_user_error_does_not(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    for reason, kept in (("TIMEOUT", True), ("USER_ERROR", False)):
        job = await owner.submit()
        lease = await worker.must_lease()
        await worker.commit(lease, 1, step=2)
        assert await worker.finish(lease, "FAILED", reason) == "FAILED"
        failed = await owner.get(job.name)
        assert failed.HasField("checkpoint") == kept
        assert ("is kept" in failed.error.message) == kept
        row = (
            await cast.site.fetch(
                "SELECT payload FROM trainer.outbox WHERE kind = 'discard' AND subject = $1 ORDER BY id DESC",
                job.name.rpartition("/")[2],
            )
        )[0]
        assert f'"keep_ordinal": {int(kept)}' in row["payload"]


# Deletion -----------------------------------------------------------------------------------------------


async def test_a_job_that_has_ended_is_deleted_with_what_it_kept(cast: Cast) -> None:
    owner = cast.owner()
    job = await exhausted(cast, owner)
    watching = owner.watch(job.name)
    async with refused(Aborted):
        await call(owner, "DeleteJob", name=job.name, etag='"0"')
    await call(owner, "DeleteJob", name=job.name, etag=job.etag)
    for gone in (owner.get(job.name), call(owner, "DeleteJob", name=job.name)):
        async with refused(NotFound):
            await gone
    watching.cancel()
    rows = await cast.site.fetch(
        "SELECT payload ->> 'keep_ordinal' AS kept FROM trainer.outbox"
        " WHERE kind = 'discard' AND subject = $1 ORDER BY id",
        job.name.rpartition("/")[2],
    )
    assert [row["kept"] for row in rows] == ["3", "0"]
    assert await audited(cast, job.name) == ["SubmitJob", "DeleteJob"]
    waiting = await owner.submit()
    async with refused(FailedPrecondition):
        await call(owner, "DeleteJob", name=waiting.name)


async def test_a_watcher_hears_that_the_job_is_gone(cast: Cast) -> None:
    owner = cast.owner(f"user-{cast.pool}")
    job = await owner.submit()
    watching = owner.watch(job.name, after_seq=1)
    reading = asyncio.create_task(watching.read())
    # Cancelled and deleted at once.
    await call(owner, "PurgeJobs", filter=f"pool = {cast.pool}", include_queued=True, force=True)
    async with refused(NotFound):
        await reading


async def test_a_success_is_not_deleted_before_its_result_is_published(cast: Cast) -> None:
    owner, worker = cast.owner(f"user-{cast.pool}"), await cast.worker()
    job, failed = await owner.submit(), await owner.submit()
    # Storage, which would publish it, is away.
    assert await worker.finish(await worker.must_lease()) == "SUCCEEDED"
    await worker.finish(await worker.must_lease(), "FAILED", "USER_ERROR")
    async with refused(FailedPrecondition) as found:
        await call(owner, "DeleteJob", name=job.name)
    assert (found[0].reason, found[0].metadata["state"]) == ("JOB_STATE", "SUCCEEDED")
    assert "its result is being published" in found[0].message
    for force in (False, True):
        purged = await call(owner, "PurgeJobs", filter=f"pool = {cast.pool}", force=force)
        assert (purged.deleted, purged.skipped_publishing) == (1, 1)
    assert await names(owner, f"pool = {cast.pool}") == [job.name]
    async with refused(NotFound):
        await owner.get(failed.name)


async def test_purging_counts_first_and_touches_only_ones_own(cast: Cast) -> None:
    subject = f"user-{cast.pool}"
    owner, other, worker = cast.owner(subject), cast.owner("bob"), await cast.worker()
    foreign = await other.submit()
    await other.cancel(foreign.name)
    running = await owner.submit()
    await worker.must_lease()
    ended = [await owner.submit(labels={"keep": str(place == 0).lower()}) for place in range(3)]
    for job in ended:
        await owner.cancel(job.name)
    waiting, paused = await owner.submit(), await owner.submit()
    await call(owner, "PauseJob", name=paused.name)

    def counts(answer: Any) -> tuple[int, int, int]:
        return answer.deleted, answer.skipped_running, answer.skipped_queued

    # By an operator too, who sees all.
    operator = cast.owner("olga", Role.OPERATOR)
    pool = f"pool = {cast.pool}"
    assert counts(await call(operator, "PurgeJobs", filter=pool, force=True)) == (0, 0, 0)
    assert counts(await call(owner, "PurgeJobs", filter=pool)) == (3, 1, 2)
    assert counts(await call(owner, "PurgeJobs", filter=pool, include_queued=True)) == (5, 1, 0)
    assert len(await names(owner, pool)) == 6
    narrow = f'{pool} AND labels.keep = "false"'
    assert counts(await call(owner, "PurgeJobs", filter=narrow, force=True)) == (2, 0, 0)
    purged = await call(owner, "PurgeJobs", filter=pool, include_queued=True, force=True)
    assert counts(purged) == (3, 1, 0)
    assert await names(owner, pool) == [running.name]
    assert (await other.get(foreign.name)).name == foreign.name
    assert await audited(cast, waiting.name) == ["SubmitJob", "PurgeJobs"]
    async with refused(InvalidArgument):
        await call(owner, "PurgeJobs", filter="colour = red")


# Claims -------------------------------------------------------------------------------------------------


async def test_a_guests_job_becomes_that_of_who_claims_it_first(cast: Cast) -> None:
    guest = guest_at(cast)
    await cast.credential()
    job = await guest("SubmitJob", jobs_pb2.SubmitJobRequest(pipeline="toy.line", pool=cast.pool))
    assert job.owner == ""
    ada, bob = cast.owner("ada"), cast.owner("bob")
    async with refused(NotFound):
        await ada.get(job.name)
    async with refused(PermissionDenied):
        await guest("ClaimJob", jobs_pb2.ClaimJobRequest(name=job.name))
    claimed = await call(ada, "ClaimJob", name=job.name)
    assert (claimed.owner, (await ada.get(job.name)).owner) == ("ada", "ada")
    assert await call(ada, "ClaimJob", name=job.name) == claimed
    for name in (job.name, f"projects/default/jobs/{uuid.uuid4()}"):
        async with refused(NotFound) as found:
            await call(bob, "ClaimJob", name=name)
        assert found[0].message == f"{name} does not exist"
    async with refused(FailedPrecondition):
        await call(cast.owner("olga", Role.OPERATOR), "ClaimJob", name=job.name)
    assert (await audited(cast, job.name))[1:] == ["ClaimJob"]


# Attempts -----------------------------------------------------------------------------------------------


async def test_attempts_are_listed_newest_first(cast: Cast) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    for outcome in ("release", "FAILED", "SUCCEEDED"):
        lease = await worker.must_lease()
        if outcome == "release":
            await worker.release(lease)
        elif outcome == "FAILED":
            await worker.commit(lease, 1, step=4)
            await worker.finish(lease, "FAILED", "OUT_OF_MEMORY", error={"message": "too large"})
        else:
            await worker.finish(lease)
    first = await call(owner, "ListAttempts", parent=job.name, page_size=2)
    rest = await call(owner, "ListAttempts", parent=job.name, page_size=2, page_token=first.next_page_token)
    assert rest.next_page_token == ""
    attempts = [*first.attempts, *rest.attempts]
    reasons = [jobs_pb2.EndReason.Name(item.end_reason).removeprefix("END_REASON_") for item in attempts]
    assert reasons == ["COMPLETED", "OUT_OF_MEMORY", "RELEASED"]
    assert [(item.lease_epoch, item.number) for item in attempts] == [(3, 2), (2, 1), (1, 1)]
    assert {item.worker for item in attempts} == {worker.name}
    assert (attempts[1].error.message, attempts[1].checkpoint.step) == ("too large", 4)
    assert not attempts[0].HasField("checkpoint")
    async with refused(NotFound):
        await call(cast.owner("bob"), "ListAttempts", parent=job.name)
    for token in ("made up", first.next_page_token):
        async with refused(InvalidArgument):
            await call(owner, "ListAttempts", parent=(await owner.submit()).name, page_token=token)


# Filters ------------------------------------------------------------------------------------------------


async def test_filters_by_how_a_job_ended_and_by_its_group(cast: Cast) -> None:
    owner, pool = cast.owner("olga", Role.OPERATOR), f"pool = {cast.pool}"
    one, two = await owner.submit(group="soft-matter"), await owner.submit()
    await owner.cancel(one.name)
    assert one.group == "soft-matter"
    assert await names(owner, f"{pool} AND end_reason = CANCELLED_BY_USER") == [one.name]
    assert await names(owner, f"{pool} AND end_reason != CANCELLED_BY_USER") == [two.name]
    assert await names(owner, f"{pool} AND group = soft-matter") == [one.name]
    for wrong in ("end_reason = DONE", "batch = 7", "retried_from = projects/default/jobs/x"):
        async with refused(InvalidArgument) as found:
            await names(owner, wrong)
        assert found[0].violations[0].field == "filter"


async def test_a_group_is_one_of_the_callers_own(cast: Cast) -> None:
    async with refused(InvalidArgument) as found:
        await cast.owner().submit(group="soft-matter")
    assert found[0].violations[0].field == "group"


def test_whatever_changes_something_is_closed_to_viewers() -> None:
    reading = ("Get", "List", "Count", "Watch")
    service = jobs_pb2.DESCRIPTOR.services_by_name["JobsService"]
    for method in service.methods:
        if not method.name.startswith(reading):
            policy = POLICIES[f"/{service.full_name}/{method.name}"]
            assert policy.min_role is Role.SCIENTIST, method.name
