"""From a job's token to its published result: staging, checkpoints, promotion, discarding."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf import json_format

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2, staging_pb2
from guidehall.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
)
from tests.fixtures.storage import (
    People,
    Stubs,
    job_name,
    manifest,
    model_name,
    received,
    sha256,
    staging,
    weights,
)
from tests.fixtures.trainer import refused

DOCUMENT = {"chi_square": 1.25, "layers": [{"thickness": 100, "sld": 2.07}], "steps": 3}


def result_name(job: str) -> str:
    return f"projects/default/results/{job}"


def commit(job: str, epoch: int, owner: str, outputs: Mapping[str, Any]) -> staging_pb2.PromoteRequest:
    return staging_pb2.PromoteRequest(job=job_name(job), lease_epoch=epoch, owner=owner, outputs=outputs)


async def stage_all(token: Stubs, job: str, epoch: int, model: str, fill: int = 0) -> dict[str, Any]:
    """Stages a document, two artifacts, a model and a checkpoint; gives what a trainer would commit."""
    outputs = {
        "result": await token.stage_result(job, epoch, DOCUMENT | {"fill": fill}),
        "plot.png": await token.stage(job, epoch, "artifact", "plot.png", b"picture %d" % fill),
        "job.log": await token.stage(job, epoch, "artifact", "job.log", b"lines %d" % fill),
        model: await token.stage(job, epoch, "model", model, weights(fill=fill)),
    }
    await token.stage(job, epoch, "checkpoint", "1", b"checkpoint %d" % fill)
    return outputs


async def get_result(stubs: Stubs, job: str) -> results_pb2.Result:
    return await stubs.results.GetResult(results_pb2.GetResultRequest(name=result_name(job)))


async def read_checkpoint(stubs: Stubs, job: str, epoch: int, ordinal: int) -> bytes:
    request = staging_pb2.ReadCheckpointRequest(job=job_name(job), lease_epoch=epoch, ordinal=ordinal)
    return (await received(stubs.staging.ReadCheckpoint(request)))[1]


async def test_what_the_trainer_commits_becomes_visible_to_the_owner(people: People) -> None:
    ada, trainer, job, model = (
        people.user(),
        people.service("trainer"),
        str(uuid.uuid4()),
        people.name("film"),
    )
    owner = people.name("ada")
    outputs = await stage_all(people.job(job, 1), job, 1, model)
    async with refused(NotFound):
        await get_result(ada, job)

    promoted = await trainer.staging.Promote(commit(job, 1, owner, outputs))

    result = await get_result(ada, job)
    assert promoted.result == result.name == result_name(job)
    assert list(promoted.model_versions) == list(result.model_versions) == [f"{model_name(model)}/versions/1"]
    assert json_format.MessageToDict(result.document) == DOCUMENT | {"fill": 0}
    assert (result.job, result.pipeline, result.owner) == (job_name(job), "toy.line", owner)
    assert [artifact.filename for artifact in result.artifacts] == ["job.log", "plot.png"]
    request = results_pb2.DownloadArtifactRequest(name=result.artifacts[1].name)
    header, content = await received(ada.results.DownloadArtifact(request))
    assert (content, header.filename) == (b"picture 0", "plot.png")
    version = await ada.models.GetModelVersion(
        models_pb2.GetModelVersionRequest(name=promoted.model_versions[0])
    )
    assert (version.owner, version.job, version.weights.sha256) == (owner, job_name(job), sha256(weights()))
    listed = (await ada.results.ListResults(results_pb2.ListResultsRequest())).results
    assert [(item.name, item.HasField("document")) for item in listed] == [(result.name, False)]
    async with refused(NotFound):
        await get_result(people.user("bob"), job)


async def test_promotion_happens_once(people: People) -> None:
    trainer, job, model = people.service("trainer"), str(uuid.uuid4()), people.name("film")
    outputs = await stage_all(people.job(job, 1), job, 1, model)
    request = commit(job, 1, people.name("ada"), outputs)

    answers = await asyncio.gather(*(trainer.staging.Promote(request) for _ in range(4)))

    assert all(answer == answers[0] for answer in answers)
    found = await people.site.fetch("SELECT version FROM storage.model_versions WHERE model = $1", model)
    assert [row["version"] for row in found] == [1]
    told = await people.site.fetch(
        "SELECT count(*) AS n FROM audit.events WHERE resource = $1", result_name(job)
    )
    assert told[0]["n"] == 1


async def test_what_losing_attempts_staged_is_dropped(people: People) -> None:
    ada, trainer, job, model = (
        people.user(),
        people.service("trainer"),
        str(uuid.uuid4()),
        people.name("film"),
    )
    await stage_all(people.job(job, 1), job, 1, model, fill=1)
    outputs = await stage_all(people.job(job, 2), job, 2, model, fill=2)
    await people.job(job, 2).stage(job, 2, "artifact", "not-committed.txt", b"extra")

    await trainer.staging.Promote(commit(job, 2, people.name("ada"), outputs))

    assert json_format.MessageToDict((await get_result(ada, job)).document)["fill"] == 2
    left = await people.site.fetch("SELECT 1 FROM storage.staged_objects WHERE job = $1", job)
    assert not left
    assert not await people.site.fetch("SELECT 1 FROM storage.staged_results WHERE job = $1", job)
    await people.site.without_leaks()
    async with refused(FailedPrecondition) as refusal:
        await trainer.staging.Promote(commit(job, 1, people.name("ada"), outputs))
    assert refusal[0].reason == "PROMOTED_BEFORE"
    async with refused(FailedPrecondition):
        await people.job(job, 1).stage(job, 1, "artifact", "late.txt", b"late")
    async with refused(FailedPrecondition):
        await people.job(job, 1).stage_result(job, 1, DOCUMENT)
    await people.site.without_leaks()


async def test_only_what_was_committed_can_be_promoted(people: People) -> None:
    trainer, job, model = people.service("trainer"), str(uuid.uuid4()), people.name("film")
    outputs = await stage_all(people.job(job, 1), job, 1, model)
    other = common_pb2.ObjectRef(sha256="0" * 64, size_bytes=9)

    for wrong in (
        {"result": other},
        {"plot.png": other},
        {"missing.txt": other},
        {model: other},
        {"1": other},
    ):
        async with refused(FailedPrecondition) as refusal:
            await trainer.staging.Promote(commit(job, 1, "ada", outputs | wrong))
        assert refusal[0].reason == "OUTPUT_MISMATCH"
        assert refusal[0].metadata["output"] in wrong
    async with refused(InvalidArgument):
        await trainer.staging.Promote(commit(job, 1, "ada", {"plot.png": outputs["plot.png"]}))
    async with refused(FailedPrecondition):
        await trainer.staging.Promote(commit(job, 2, "ada", outputs))

    await trainer.staging.Promote(commit(job, 1, "ada", outputs))


async def test_staging_needs_the_token_of_that_attempt(people: People) -> None:
    job, other = str(uuid.uuid4()), str(uuid.uuid4())

    for token in (people.job(other, 1), people.job(job, 2)):
        async with refused(PermissionDenied):
            await token.stage(job, 1, "artifact", "a.txt", b"data")
        async with refused(PermissionDenied):
            await token.stage_result(job, 1, DOCUMENT)
    for nobody in (people.user(), people.service("trainer"), people.caller("trainer", "pools/cpu", "worker")):
        async with refused(PermissionDenied):
            await nobody.stage(job, 1, "artifact", "a.txt", b"data")
    await people.job(job, 1).stage(job, 1, "checkpoint", "1", b"state")
    async with refused(PermissionDenied):
        await read_checkpoint(people.job(other, 1), job, 1, 1)
    async with refused(PermissionDenied):
        await people.service("gateway").staging.Promote(commit(job, 1, "ada", {}))
    async with refused(PermissionDenied):
        await people.job(job, 1).staging.Discard(staging_pb2.DiscardRequest(job=job_name(job)))
    await people.site.without_leaks()


async def test_staging_again_replaces(people: People) -> None:
    trainer, ada, job = people.service("trainer"), people.user(), str(uuid.uuid4())
    token = people.job(job, 1)

    first = await token.stage(job, 1, "artifact", "a.txt", b"one")
    same = await token.stage(job, 1, "artifact", "a.txt", b"one")
    other = await token.stage(job, 1, "artifact", "a.txt", b"two")
    await token.stage_result(job, 1, DOCUMENT)
    document = await token.stage_result(job, 1, {"final": True})
    outputs = {"result": document, "a.txt": other}
    await trainer.staging.Promote(commit(job, 1, people.name("ada"), outputs))

    assert first == same != other
    (artifact,) = (await get_result(ada, job)).artifacts
    assert artifact.object == other
    await people.site.without_leaks()


@pytest.mark.parametrize(
    ("kind", "object_id"),
    [
        ("artifact", "../a"),
        ("artifact", "a/b"),
        ("artifact", ""),
        ("artifact", "result"),
        ("model", "result"),
        ("model", "UPPER"),
        ("checkpoint", "0"),
        ("checkpoint", "x"),
        ("checkpoint", "1e3"),
        ("unspecified", "a"),
    ],
)
async def test_names_of_outputs_are_checked(people: People, kind: str, object_id: str) -> None:
    job = str(uuid.uuid4())

    async with refused(InvalidArgument):
        await people.job(job, 1).stage(job, 1, kind, object_id, b"data")


async def test_an_output_has_one_kind(people: People) -> None:
    job = str(uuid.uuid4())
    token = people.job(job, 1)
    await token.stage(job, 1, "model", "film", weights())
    # Ordinals are no names.
    await token.stage(job, 1, "artifact", "1", b"data")
    await token.stage(job, 1, "checkpoint", "1", b"state")

    async with refused(AlreadyExists):
        await token.stage(job, 1, "artifact", "film", b"data")
    async with refused(AlreadyExists):
        await token.stage(job, 1, "model", "1", weights())
    async with refused(InvalidArgument):
        await token.stage(job, 1, "artifact", "a.txt", b"data", manifest=manifest(b"data"))
    async with refused(InvalidArgument):
        await token.stage(job, 1, "model", "other", weights(), manifest=None)
    async with refused(InvalidArgument):
        await token.stage(job, 1, "model", "other", weights(), manifest=manifest(b"else"))
    broken = staging(job, 1, "artifact", "b.txt", b"data")
    broken[0].header.object.sha256 = "0" * 64
    async with refused(InvalidArgument):
        await token.staging.StageObject(broken, timeout=10)
    await people.site.without_leaks()


async def test_a_later_attempt_reads_the_checkpoint_of_an_earlier_one(people: People) -> None:
    job, state = str(uuid.uuid4()), bytes(range(256)) * 9000
    await people.job(job, 1).stage(job, 1, "checkpoint", "3", state)

    assert await read_checkpoint(people.job(job, 2), job, 1, 3) == state
    async with refused(NotFound):
        await read_checkpoint(people.job(job, 2), job, 1, 4)


async def test_a_retry_reads_the_checkpoint_of_the_job_before_it_and_nothing_else(people: People) -> None:
    first, other, retry = (str(uuid.uuid4()) for _ in range(3))
    for job in (first, other):
        await people.job(job, 1).stage(job, 1, "checkpoint", "3", b"state")
        await people.job(job, 1).stage(job, 1, "artifact", "a.txt", b"data")
    token = people.job(retry, 1, [job_name(first)])
    assert await read_checkpoint(token, first, 1, 3) == b"state"
    async with refused(PermissionDenied):
        await read_checkpoint(token, other, 1, 3)
    # To read is all: what it stages is its own.
    async with refused(PermissionDenied):
        await token.stage(first, 1, "checkpoint", "4", b"state")
    # Nor does another kind of token open anything by naming it.
    async with refused(PermissionDenied):
        worker = people.caller("trainer", "pools/cpu", "worker", inputs=[job_name(first)])
        await read_checkpoint(worker, first, 1, 3)


async def test_of_a_job_that_has_failed_one_checkpoint_stays_and_nothing_else(people: People) -> None:
    trainer, job = people.service("trainer"), str(uuid.uuid4())
    token = people.job(job, 2)
    for ordinal in (1, 2, 3):
        await token.stage(job, 2, "checkpoint", str(ordinal), b"%d" % ordinal)
    await token.stage(job, 2, "artifact", "a.txt", b"data")
    await token.stage_result(job, 2, DOCUMENT)
    keep = staging_pb2.DiscardRequest(
        job=job_name(job), keep_checkpoint_epoch=2, keep_checkpoint_ordinal=2, job_ended=True
    )
    for _ in range(2):
        await trainer.staging.Discard(keep)
        rows = await people.site.fetch(
            "SELECT object_id FROM storage.staged_objects WHERE job = $1 "
            "UNION ALL SELECT 'result' FROM storage.staged_results WHERE job = $1",
            job,
        )
        assert [row["object_id"] for row in rows] == ["2"]
    assert await read_checkpoint(token, job, 2, 2) == b"2"
    async with refused(FailedPrecondition) as refusal:
        await token.stage(job, 2, "checkpoint", "4", b"late")
    assert refusal[0].reason == "JOB_OVER"
    await people.site.without_leaks()
    await trainer.staging.Discard(staging_pb2.DiscardRequest(job=job_name(job)))
    async with refused(NotFound):
        await read_checkpoint(token, job, 2, 2)
    await people.site.without_leaks()


async def test_discarding_keeps_a_checkpoint_and_what_is_newer(people: People) -> None:
    trainer, job = people.service("trainer"), str(uuid.uuid4())
    for epoch in (1, 2):
        token = people.job(job, epoch)
        for ordinal in (1, 2, 10):
            await token.stage(job, epoch, "checkpoint", str(ordinal), b"%d %d" % (epoch, ordinal))
        await token.stage(job, epoch, "artifact", "a.txt", b"data")
        await token.stage_result(job, epoch, DOCUMENT)

    async def left() -> list[tuple[int, str]]:
        rows = await people.site.fetch(
            "SELECT epoch, object_id FROM storage.staged_objects WHERE job = $1 "
            "UNION ALL SELECT epoch, 'result' FROM storage.staged_results WHERE job = $1 ORDER BY 1, 2",
            job,
        )
        return [tuple(row) for row in rows]

    request = staging_pb2.DiscardRequest(
        job=job_name(job), keep_checkpoint_epoch=2, keep_checkpoint_ordinal=2
    )
    for _ in range(2):
        await trainer.staging.Discard(request)
        assert await left() == [(2, "10"), (2, "2"), (2, "a.txt"), (2, "result")]
    await people.site.without_leaks()
    for _ in range(2):
        await trainer.staging.Discard(staging_pb2.DiscardRequest(job=job_name(job)))
        assert await left() == []
    await people.site.without_leaks()


async def test_nothing_is_staged_for_a_job_that_was_discarded(people: People) -> None:
    trainer, job = people.service("trainer"), str(uuid.uuid4())
    token, slow = people.job(job, 2), people.job(job, 1)
    await token.stage(job, 2, "checkpoint", "1", b"state")
    keep = staging_pb2.DiscardRequest(job=job_name(job), keep_checkpoint_epoch=2, keep_checkpoint_ordinal=1)
    await trainer.staging.Discard(keep)
    await token.stage(job, 2, "artifact", "a.txt", b"data")
    await trainer.staging.Discard(staging_pb2.DiscardRequest(job=job_name(job)))
    # A repeat that comes late.
    await trainer.staging.Discard(keep)

    for caller, epoch in ((token, 2), (slow, 1)):
        async with refused(FailedPrecondition) as refusal:
            await caller.stage(job, epoch, "artifact", "a.txt", b"data")
        assert refusal[0].reason == "JOB_OVER"
        async with refused(FailedPrecondition):
            await caller.stage_result(job, epoch, DOCUMENT)
    await people.site.without_leaks()
    # Another job is not concerned.
    other = str(uuid.uuid4())
    await people.job(other, 1).stage(other, 1, "artifact", "a.txt", b"data")


async def test_a_model_name_of_somebody_else_is_not_taken_over(people: People) -> None:
    bob, trainer, job, model = (
        people.user("bob"),
        people.service("trainer"),
        str(uuid.uuid4()),
        people.name("m"),
    )
    theirs = await bob.publish(model, weights(fill=9))
    outputs = await stage_all(people.job(job, 1), job, 1, model)

    promoted = await trainer.staging.Promote(commit(job, 1, people.name("ada"), outputs))

    (name,) = promoted.model_versions
    assert name == f"{model_name(model[:30])}-{job.replace('-', '')}/versions/1"
    assert (
        await people.user().models.GetModelVersion(models_pb2.GetModelVersionRequest(name=name))
    ).owner == (people.name("ada"))
    model_of_bob = await bob.models.GetModel(models_pb2.GetModelRequest(name=model_name(model)))
    assert (model_of_bob.latest_version, theirs.version) == (1, 1)


async def promoted_for_a_guest(people: People, job: str, model: str) -> staging_pb2.PromoteResponse:
    outputs = await stage_all(people.job(job, 1), job, 1, model)
    return await people.service("trainer").staging.Promote(commit(job, 1, "", outputs))


async def test_what_a_guests_job_published_goes_to_who_claims_it(people: People) -> None:
    ada, trainer, model = people.user(), people.service("trainer"), people.name("m")
    job, other = str(uuid.uuid4()), str(uuid.uuid4())
    request = staging_pb2.ClaimRequest(job=job_name(job), owner=people.name("ada"))
    # Nothing is there yet: whose it will be the promotion says.
    await trainer.staging.Claim(request)
    (version,) = (await promoted_for_a_guest(people, job, model)).model_versions
    (foreign,) = (await promoted_for_a_guest(people, other, model)).model_versions
    assert version == f"{model_name(model)}/versions/1"
    assert foreign == f"{model_name(model[:30])}-{other.replace('-', '')}/versions/1"
    async with refused(NotFound):
        await get_result(ada, job)

    for owner in ("ada", "ada", "bob"):
        request.owner = people.name(owner)
        await trainer.staging.Claim(request)

    assert (await get_result(ada, job)).owner == people.name("ada")
    found = await ada.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version))
    assert (found.owner, found.job) == (people.name("ada"), job_name(job))
    for hidden in (
        get_result(people.user("bob"), job),
        get_result(ada, other),
        ada.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=foreign)),
    ):
        async with refused(NotFound):
            await hidden
    told = await people.site.fetch(
        "SELECT resource FROM audit.events WHERE method LIKE '%/Claim' AND resource = ANY($1) ORDER BY 1",
        [result_name(job), version.removesuffix("/versions/1")],
    )
    assert [row["resource"] for row in told] == [version.removesuffix("/versions/1"), result_name(job)]
    async with refused(InvalidArgument) as refusal:
        await trainer.staging.Claim(staging_pb2.ClaimRequest(job=job_name(other)))
    assert [item.field for item in refusal[0].violations] == ["owner"]
    for nobody in (ada, people.service("gateway"), people.job(other, 1)):
        async with refused(PermissionDenied):
            await nobody.staging.Claim(
                staging_pb2.ClaimRequest(job=job_name(other), owner=people.name("ada"))
            )


async def test_models_that_several_guests_published_to_stay_a_guests(people: People) -> None:
    ada, trainer, job = people.user(), people.service("trainer"), str(uuid.uuid4())
    (version,) = (await promoted_for_a_guest(people, job, people.name("m"))).model_versions
    outputs = await stage_all(people.job(job2 := str(uuid.uuid4()), 1), job2, 1, people.name("m"))
    series = version.split("/")[3]
    # As it was when guests shared names.
    await trainer.staging.Promote(commit(job2, 1, people.name("ada"), outputs))
    await people.site.fetch(
        "UPDATE storage.model_versions SET model = $1, version = 2 WHERE job = $2", series, job_name(job2)
    )

    await trainer.staging.Claim(staging_pb2.ClaimRequest(job=job_name(job), owner=people.name("ada")))

    assert (await get_result(ada, job)).owner == people.name("ada")
    async with refused(NotFound):
        await ada.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version))


async def test_jobs_that_publish_the_same_models_do_not_block_each_other(people: People) -> None:
    trainer, owner = people.service("trainer"), people.name("ada")
    models = [people.name(name) for name in ("a", "b", "c")]
    requests = []
    for number in range(6):
        job = str(uuid.uuid4())
        token = people.job(job, 1)
        outputs = {"result": await token.stage_result(job, 1, DOCUMENT)}
        for model in models if number % 2 else reversed(models):
            outputs[model] = await token.stage(job, 1, "model", model, weights(fill=number))
        requests.append(commit(job, 1, owner, outputs))

    await asyncio.gather(*(trainer.staging.Promote(request, timeout=20) for request in requests))

    rows = await people.site.fetch(
        "SELECT model, array_agg(version ORDER BY version) AS versions FROM storage.model_versions "
        "WHERE model = ANY($1) GROUP BY model",
        models,
    )
    assert [row["versions"] for row in rows] == [[1, 2, 3, 4, 5, 6]] * 3


async def test_a_document_is_kept_as_it_was(people: People) -> None:
    ada, trainer, job = people.user(), people.service("trainer"), str(uuid.uuid4())
    document = {
        "numbers": [0, -1, 1.5, 1e-300, 1e300, 2**52 + 1, -0.1, 1 / 3],
        "text": 'Å σ \U0001f600 \\ " \n',
        "nothing": None,
        "yes": True,
        "empty": {"list": [], "object": {}},
    }
    reference = await people.job(job, 1).stage_result(job, 1, document)

    await trainer.staging.Promote(commit(job, 1, people.name("ada"), {"result": reference}))

    assert json_format.MessageToDict((await get_result(ada, job)).document) == document


async def test_artifacts_are_read_from_offsets_and_by_their_names_only(people: People) -> None:
    ada, trainer, job = people.user(), people.service("trainer"), str(uuid.uuid4())
    outputs = await stage_all(people.job(job, 1), job, 1, people.name("m"))
    await trainer.staging.Promote(commit(job, 1, people.name("ada"), outputs))

    async def read(artifact: str, offset: int = 0) -> bytes:
        name = f"{result_name(job)}/artifacts/{artifact}"
        request = results_pb2.DownloadArtifactRequest(name=name, offset_bytes=offset)
        return (await received(ada.results.DownloadArtifact(request)))[1]

    assert await read("plot.png", 3) == b"ture 0"
    async with refused(OutOfRange):
        await read("plot.png", 100)
    async with refused(NotFound):
        await read("other.png")
    for name in ("nobody", "00000000-0000-0000-0000-000000000000", job.upper()):
        async with refused(NotFound):
            await get_result(ada, name)
