"""Models through the API: publishing, versions, deletion, lists."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from google.protobuf import json_format

from guidehall.contracts.models.v1 import models_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from tests.fixtures.storage import (
    People,
    chunks,
    manifest,
    model_name,
    publication,
    received,
    sha256,
    weights,
)
from tests.fixtures.trainer import refused


async def test_what_was_published_is_read_and_downloaded(people: People) -> None:
    ada, name, content = people.user(), people.name("film"), weights()

    version = await ada.publish(name, content, labels={"side": "air"})
    latest = await ada.models.GetModelVersion(
        models_pb2.GetModelVersionRequest(name=f"{model_name(name)}/versions/latest")
    )
    _, back = await received(
        ada.models.DownloadModelVersion(models_pb2.DownloadModelVersionRequest(name=version.name))
    )

    assert latest == version
    assert back == content
    assert version.name == f"{model_name(name)}/versions/1"
    assert version.architecture == "toy.line/1"
    assert version.owner == people.name("ada")
    assert dict(version.metrics) == {"loss": 0.25}
    assert json_format.MessageToDict(version.manifest) == manifest(content)
    (tensor,) = version.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape), tensor.unit) == (
        "x",
        "FP32",
        [-1, 3],
        "1/angstrom",
    )
    assert version.manifest_sha256
    assert version.weights.sha256 == sha256(content)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "Toy.Line/1"},
        {"architecture": "toy.line"},
        {"architecture": "../x/1"},
        {"architecture": 7},
        {"weights_sha256": "0" * 64},
        {"weights_sha256": None},
        {"inputs": []},
        {"inputs": [{"name": "x"}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5]}]},
        {"outputs": "y"},
        {"metrics": {"loss": "low"}},
        {"provenance": None},
        {"arguments": {"text": "x" * (1 << 20)}},
        {"arguments": {"text": "a\x00b"}},
    ],
)
async def test_a_manifest_that_does_not_hold_together_is_refused(
    people: People, change: dict[str, Any]
) -> None:
    ada, name, content = people.user(), people.name("m"), weights()

    async with refused(InvalidArgument) as refusal:
        await ada.publish(name, content, manifest=manifest(content) | change)

    assert refusal[0].violations[0].field.startswith("manifest")
    assert len(refusal[0].message) < 400
    async with refused(NotFound):
        await ada.models.GetModel(models_pb2.GetModelRequest(name=model_name(name)))
    await people.site.without_leaks()


def _header(body: bytes) -> bytes:
    return len(body).to_bytes(8, "little") + body


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"not safetensors at all",
        weights()[:-1],
        weights() + b"x",
        (1 << 40).to_bytes(8, "little") + b"{}",
        _header(b"{nonsense}"),
        _header(b"[]"),
        _header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}') + bytes(8),
        _header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}') + bytes(4),
        _header(b'{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0,4]}}') + bytes(4),
        _header(b'{"a":{"dtype":"OBJ","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
        _header(b"[" * 5000 + b"]" * 5000),
    ],
)
async def test_a_file_that_is_no_safetensors_is_refused(people: People, content: bytes) -> None:
    ada, name = people.user(), people.name("m")

    async with refused(InvalidArgument) as refusal:
        await ada.publish(name, content)

    assert refusal[0].reason == "WEIGHTS_REFUSED"
    await people.site.without_leaks()


async def test_weights_that_are_not_those_announced_are_refused(people: People) -> None:
    ada, name, content = people.user(), people.name("m"), weights()
    messages = publication(name, content)
    other = [models_pb2.PublishModelVersionRequest(chunk=chunk) for chunk in chunks(weights(fill=1))]

    for sent in ([messages[0], *other], messages[:1], [*messages, messages[1]]):
        async with refused(InvalidArgument):
            await ada.models.PublishModelVersion(sent, timeout=30)

    await people.site.without_leaks()


async def test_versions_have_no_gaps_whoever_publishes_at_once(people: People) -> None:
    ada, name = people.user(), people.name("m")
    contents = [weights(fill=number) for number in range(8)]

    published = await asyncio.gather(*(ada.publish(name, content) for content in contents))

    assert sorted(version.version for version in published) == list(range(1, 9))
    model = await ada.models.GetModel(models_pb2.GetModelRequest(name=model_name(name)))
    assert model.latest_version == 8


async def test_a_repeated_publication_gives_the_first_answer(people: People) -> None:
    ada, name, content, request_id = people.user(), people.name("m"), weights(), str(uuid.uuid4())

    first, second = await asyncio.gather(
        *(ada.publish(name, content, request_id=request_id) for _ in range(2))
    )

    assert first == second
    assert first.version == 1
    await people.site.without_leaks()


async def test_a_deleted_model_is_hidden_until_it_is_brought_back(people: People) -> None:
    ada, name = people.user(), people.name("m")
    version = await ada.publish(name, weights())
    parent = models_pb2.ListModelVersionsRequest(parent=model_name(name))

    deleted = await ada.models.DeleteModel(models_pb2.DeleteModelRequest(name=model_name(name)))

    assert deleted.HasField("delete_time")
    for call, request in (
        (ada.models.GetModelVersion, models_pb2.GetModelVersionRequest(name=version.name)),
        (ada.models.ListModelVersions, parent),
    ):
        async with refused(NotFound):
            await call(request)
    assert not (await ada.models.ListModels(models_pb2.ListModelsRequest())).models
    anything = models_pb2.ListModelVersionsRequest(parent="projects/default/models/-")
    assert not (await ada.models.ListModelVersions(anything)).versions
    async with refused(FailedPrecondition):
        await ada.publish(name, weights(fill=1))

    back = await ada.models.UndeleteModel(models_pb2.UndeleteModelRequest(name=model_name(name)))

    assert not back.HasField("delete_time")
    assert (await ada.models.ListModelVersions(parent)).versions[0] == version
    assert (await ada.publish(name, weights(fill=1))).version == 2


async def test_versions_of_all_models_come_newest_first_and_filtered(people: People) -> None:
    ada, bob = people.user("ada"), people.user("bob")
    first, second = people.name("a"), people.name("b")
    await ada.publish(first, weights(fill=1))
    await ada.publish(second, weights(fill=2), manifest=manifest(weights(fill=2), "other.kind/3"))
    await ada.publish(first, weights(fill=3), labels={"good": "yes"})
    await bob.publish(people.name("c"), weights(fill=4))

    async def listed(**request: Any) -> list[str]:
        asked = models_pb2.ListModelVersionsRequest(parent="projects/default/models/-", **request)
        found = (await ada.models.ListModelVersions(asked)).versions
        return [version.name.split("/", 3)[3] for version in found]

    assert await listed() == [f"{first}/versions/2", f"{second}/versions/1", f"{first}/versions/1"]
    assert await listed(filter='architecture = "other.kind/3"') == [f"{second}/versions/1"]
    assert await listed(filter="labels.good = yes") == [f"{first}/versions/2"]
    assert await listed(page_size=1) == [f"{first}/versions/2"]
    models = await ada.models.ListModels(models_pb2.ListModelsRequest(filter='architecture = "other.kind/3"'))
    assert [model.name for model in models.models] == [model_name(second)]
    async with refused(AlreadyExists):
        await bob.publish(first, weights(fill=5))
    async with refused(NotFound):
        await bob.models.GetModel(models_pb2.GetModelRequest(name=model_name(first)))


async def test_name_and_labels_change_and_versions_do_not(people: People) -> None:
    ada, bob, film = people.user("ada"), people.user("bob"), people.name("film")
    version = await ada.publish(film, weights(), labels={"side": "air"})
    before = await ada.models.GetModel(models_pb2.GetModelRequest(name=model_name(film)))

    def wish(*paths: str, etag: str = "", **fields: Any) -> models_pb2.UpdateModelRequest:
        request = models_pb2.UpdateModelRequest(model={"name": model_name(film), "etag": etag, **fields})
        request.update_mask.paths.extend(paths)
        return request

    both = wish("display_name", "labels", etag=before.etag, display_name="Film", labels={"tag": "x"})
    changed = await ada.models.UpdateModel(both)
    assert (changed.display_name, dict(changed.labels)) == ("Film", {"tag": "x"})
    assert changed.etag != before.etag
    async with refused(Aborted):
        await ada.models.UpdateModel(both)
    kept = await ada.models.UpdateModel(wish("display_name", labels={"gone": "y"}))
    assert (kept.display_name, dict(kept.labels)) == ("", {"tag": "x"})
    assert await ada.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version.name)) == version
    async with refused(NotFound):
        await bob.models.UpdateModel(wish("display_name", display_name="mine"))
    for wrong in (wish(), wish("owner"), wish("labels", labels={"no key": "x"})):
        async with refused(InvalidArgument):
            await ada.models.UpdateModel(wrong)
    rows = await people.site.fetch(
        "SELECT count(*) AS n FROM audit.events WHERE resource = $1 AND method LIKE '%/UpdateModel'",
        model_name(film),
    )
    assert rows[0]["n"] == 2
    await ada.models.DeleteModel(models_pb2.DeleteModelRequest(name=model_name(film)))
    async with refused(NotFound):
        await ada.models.UpdateModel(wish("display_name"))


def _tag(name: str, tag: str, version: int, etag: str = "") -> models_pb2.SetModelTagRequest:
    return models_pb2.SetModelTagRequest(name=model_name(name), tag=tag, version=version, etag=etag)


def _pin(name: str, pinned: bool) -> models_pb2.UpdateModelVersionRequest:
    request = models_pb2.UpdateModelVersionRequest(
        model_version=models_pb2.ModelVersion(name=name, pinned=pinned)
    )
    request.update_mask.paths.append("pinned")
    return request


async def test_a_version_is_found_by_the_tag_that_points_to_it(people: People) -> None:
    ada, name = people.user(), people.name("m")
    for fill in (1, 2):
        await ada.publish(name, weights(fill=fill))
    tagged = models_pb2.GetModelVersionRequest(name=f"{model_name(name)}/versions/production")

    async with refused(NotFound):
        await ada.models.GetModelVersion(tagged)
    first = await ada.models.SetModelTag(_tag(name, "production", 1))
    assert dict(first.tags) == {"production": 1}
    version = await ada.models.GetModelVersion(tagged)
    assert (version.version, list(version.tags)) == (1, ["production"])

    # Moved, and once more, which changes nothing.
    moved = await ada.models.SetModelTag(_tag(name, "production", 2, first.etag))
    again = await ada.models.SetModelTag(_tag(name, "production", 2))
    assert (dict(again.tags), again.etag) == ({"production": 2}, moved.etag)
    assert moved.etag != first.etag
    _, content = await received(
        ada.models.DownloadModelVersion(models_pb2.DownloadModelVersionRequest(name=tagged.name))
    )
    assert content == weights(fill=2)
    listed = await ada.models.ListModelVersions(models_pb2.ListModelVersionsRequest(parent=model_name(name)))
    assert [(each.version, list(each.tags)) for each in listed.versions] == [(2, ["production"]), (1, [])]

    request = models_pb2.DeleteModelTagRequest(name=model_name(name), tag="production", etag=first.etag)
    async with refused(Aborted):
        await ada.models.DeleteModelTag(request)
    request.etag = moved.etag
    assert not (await ada.models.DeleteModelTag(request)).tags
    request.etag = ""
    assert not (await ada.models.DeleteModelTag(request)).tags
    async with refused(NotFound):
        await ada.models.GetModelVersion(tagged)


async def test_tags_that_cannot_be_are_refused(people: People) -> None:
    ada, name = people.user(), people.name("m")
    await ada.publish(name, weights())

    for tag in ("latest", "12", "Production", "", "a" * 64, "a/b"):
        async with refused(InvalidArgument) as refusal:
            await ada.models.SetModelTag(_tag(name, tag, 1))
        assert refusal[0].violations[0].field == "tag"
    async with refused(InvalidArgument):
        await ada.models.SetModelTag(_tag(name, "production", 0))
    async with refused(NotFound):
        await ada.models.SetModelTag(_tag(name, "production", 2))
    etag = (await ada.models.SetModelTag(_tag(name, "t0", 1))).etag
    for number in range(1, 50):
        await ada.models.SetModelTag(_tag(name, f"t{number}", 1))
    async with refused(InvalidArgument) as refusal:
        await ada.models.SetModelTag(_tag(name, "t50", 1))
    assert "at most 50" in refusal[0].message
    async with refused(Aborted):
        await ada.models.SetModelTag(_tag(name, "t1", 1, etag))


async def test_who_may_only_read_a_model_moves_no_tag(people: People) -> None:
    ada, bob, eve, name = people.user(), people.user("bob"), people.user("eve"), people.name("m")
    version = await ada.publish(name, weights())
    await ada.models.ShareModel(
        models_pb2.ShareModelRequest(name=model_name(name), add=[f"user:{people.name('bob')}"])
    )

    for somebody, refusal in ((bob, PermissionDenied), (eve, NotFound)):
        async with refused(refusal):
            await somebody.models.SetModelTag(_tag(name, "production", 1))
        async with refused(refusal):
            await somebody.models.DeleteModelTag(
                models_pb2.DeleteModelTagRequest(name=model_name(name), tag="production")
            )
        async with refused(PermissionDenied):
            await somebody.models.UpdateModelVersion(_pin(version.name, True))
    async with refused(PermissionDenied):
        await ada.models.UpdateModelVersion(_pin(version.name, True))


async def test_a_model_is_not_deleted_while_a_version_is_pinned(people: People) -> None:
    ada, operator, name = people.user(), people.user("op", Role.OPERATOR), people.name("m")
    version = await ada.publish(name, weights())
    await ada.publish(name, weights(fill=1))
    delete = models_pb2.DeleteModelRequest(name=model_name(name))
    await ada.models.SetModelTag(_tag(name, "production", 1))

    pinned = await operator.models.UpdateModelVersion(_pin(f"{model_name(name)}/versions/production", True))
    assert (pinned.name, pinned.pinned) == (version.name, True)
    assert (await operator.models.UpdateModelVersion(_pin(version.name, True))) == pinned
    async with refused(FailedPrecondition) as refusal:
        await ada.models.DeleteModel(delete)
    assert (refusal[0].reason, refusal[0].metadata["resource"]) == ("PINNED", version.name)
    listed = await ada.models.ListModelVersions(models_pb2.ListModelVersionsRequest(parent=model_name(name)))
    assert [each.pinned for each in listed.versions] == [False, True]

    assert not (await operator.models.UpdateModelVersion(_pin(version.name, False))).pinned
    assert (await ada.models.DeleteModel(delete)).HasField("delete_time")
    async with refused(NotFound):
        await operator.models.UpdateModelVersion(_pin(version.name, True))


async def test_nothing_but_the_pin_of_a_version_can_be_changed(people: People) -> None:
    ada, operator, name = people.user(), people.user("op", Role.OPERATOR), people.name("m")
    version = await ada.publish(name, weights())

    for paths in ([], ["labels"], ["pinned", "labels"]):
        request = _pin(version.name, True)
        del request.update_mask.paths[:]
        request.update_mask.paths.extend(paths)
        async with refused(InvalidArgument) as refusal:
            await operator.models.UpdateModelVersion(request)
        assert refusal[0].violations[0].field == "update_mask"
    same = await ada.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version.name))
    assert same == version
