"""Datasets through the API: uploads, downloads, versions, who sees them."""

from __future__ import annotations

import io
import pickle
import uuid
import zipfile
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
)
from tests.fixtures.storage import MIB, People, dataset_name, received, sha256, upload
from tests.fixtures.trainer import refused


def array_file(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


async def test_what_was_uploaded_is_downloaded(people: People) -> None:
    ada, name = people.user(), people.name("film")
    content = b"0.01 1.0\n0.02 0.5\n" * 5000

    version = await ada.upload(
        name, content, filename="film a.txt", media_type="text/plain", labels={"a": "b"}
    )
    header, back = await received(
        ada.datasets.DownloadDatasetVersion(
            datasets_pb2.DownloadDatasetVersionRequest(name=f"{dataset_name(name)}/versions/latest")
        )
    )

    assert back == content
    assert header.object.sha256 == version.object.sha256 == sha256(content)
    assert (header.filename, header.object.media_type) == ("film a.txt", "text/plain")
    assert version.name == f"{dataset_name(name)}/versions/1"
    assert version.owner == people.name("ada")
    assert dict(version.labels) == {"a": "b"}
    assert json_format.MessageToDict(version.content_info) == {"format": "text"}


@pytest.mark.parametrize("size", [1, MIB - 1, 8 * MIB, 8 * MIB + 1, 19 * MIB])
async def test_every_size_survives(people: People, size: int) -> None:
    ada, content = people.user(), np.random.default_rng(size).bytes(size)

    version = await ada.upload(people.name("d"), content)
    request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name)

    assert (await received(ada.datasets.DownloadDatasetVersion(request)))[1] == content
    await people.site.without_leaks()


async def test_a_download_goes_on_from_an_offset(people: People) -> None:
    ada, content = people.user(), np.random.default_rng(1).bytes(5 * MIB)
    version = await ada.upload(people.name("d"), content)

    async def rest(offset: int) -> bytes:
        request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name, offset_bytes=offset)
        header, data = await received(ada.datasets.DownloadDatasetVersion(request))
        assert header.offset_bytes == offset
        return data

    assert await rest(4 * MIB + 7) == content[4 * MIB + 7 :]
    assert await rest(len(content)) == b""
    async with refused(OutOfRange):
        await rest(len(content) + 1)
    async with refused(OutOfRange):
        await rest(-1)


async def test_an_array_is_described(people: People) -> None:
    content = array_file(np.zeros((3, 4), dtype=np.float32))

    version = await people.user().upload(people.name("d"), content, filename="a.npy")

    assert json_format.MessageToDict(version.content_info) == {
        "format": "npy",
        "dtype": "float32",
        "shape": [3, 4],
        "fortran_order": False,
    }


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * MIB)
    return stream.getvalue()


CONTENT = b"some text"
END = {"size_bytes": len(CONTENT), "sha256": sha256(CONTENT)}


def _message(**fields: Any) -> datasets_pb2.UploadDatasetVersionRequest:
    return datasets_pb2.UploadDatasetVersionRequest(**fields)


def _header(name: str, **header: Any) -> datasets_pb2.UploadDatasetVersionRequest:
    return upload(name, b"", **header)[0]


def _chunk(offset: int, data: bytes) -> datasets_pb2.UploadDatasetVersionRequest:
    return _message(chunk=common_pb2.Chunk(offset_bytes=offset, data=data))


def _end(**end: Any) -> datasets_pb2.UploadDatasetVersionRequest:
    return _message(end=datasets_pb2.UploadEnd(**(END | end)))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda name: [_header(name), _chunk(0, CONTENT)], "UPLOAD_INCOMPLETE"),
        (lambda name: [_header(name), _chunk(0, CONTENT), _end(size_bytes=8)], "SIZE_MISMATCH"),
        (lambda name: [_header(name), _chunk(0, CONTENT), _end(sha256="0" * 64)], "DIGEST_MISMATCH"),
        (lambda name: [_header(name), _chunk(0, CONTENT), _end(sha256="what")], None),
        (lambda name: [_header(name, size_bytes=8), _chunk(0, CONTENT), _end()], "UPLOAD_TOO_LARGE"),
        (lambda name: [_header(name, size_bytes=10), _chunk(0, CONTENT), _end()], "SIZE_MISMATCH"),
        (lambda name: [_header(name, sha256="0" * 64), _chunk(0, CONTENT), _end()], "DIGEST_MISMATCH"),
        (lambda name: [_header(name, size_bytes=-1), _chunk(0, CONTENT), _end()], None),
        (lambda name: [_header(name, size_bytes=2_000_000_001)], None),
        (lambda name: [_header(name), _chunk(1, CONTENT), _end()], None),
        (lambda name: [_header(name), _chunk(0, CONTENT), _chunk(5, b"x"), _end()], None),
        (lambda name: [_header(name), _chunk(0, b""), _end()], None),
        (lambda name: [_header(name), _chunk(0, CONTENT), _end(), _chunk(9, b"x")], None),
        (lambda name: [_header(name), _chunk(0, CONTENT), _header(name)], None),
        (lambda name: [_header(name), _message()], None),
        (lambda name: [_header(name), _end(size_bytes=0, sha256=sha256(b""))], "EMPTY_UPLOAD"),
        (lambda _: [_chunk(0, CONTENT), _end()], None),
        (lambda _: [], None),
        (lambda name: [_header(name, filename="../passwd"), _chunk(0, CONTENT), _end()], None),
        (lambda name: [_header(name, filename="a\x00b"), _chunk(0, CONTENT), _end()], None),
        (lambda name: [_header(name, media_type="text"), _chunk(0, CONTENT), _end()], None),
        (lambda name: [_header(name, labels={"a b": "c"}), _chunk(0, CONTENT), _end()], None),
        (lambda name: [_header(name, request_id="again"), _chunk(0, CONTENT), _end()], None),
        (lambda name: [_header(name, parent="models/x"), _chunk(0, CONTENT), _end()], None),
        (lambda name: upload(name.upper(), CONTENT), None),
        (lambda name: upload(name, pickle.dumps([1, 2])), "CONTENT_REFUSED"),
        (lambda name: upload(name, _zip()), "CONTENT_REFUSED"),
        (lambda name: upload(name, array_file(np.array([{}]), allow_pickle=True)), "CONTENT_REFUSED"),
        (lambda name: upload(name, array_file(np.zeros(9))[:-1]), "CONTENT_REFUSED"),
        (lambda name: upload(name, array_file(np.zeros(9)) + b"x"), "CONTENT_REFUSED"),
        (lambda name: upload(name, b"\x93NUMPY\x01\x00\xff\xff{"), "CONTENT_REFUSED"),
    ],
)
async def test_an_upload_that_is_not_right_leaves_nothing(
    people: People, build: Any, reason: str | None
) -> None:
    ada, name = people.user(), people.name("d")

    async with refused(InvalidArgument) as refusal:
        await ada.datasets.UploadDatasetVersion(build(name), timeout=30)

    assert reason is None or refusal[0].reason == reason
    await people.site.without_leaks()
    async with refused(NotFound):
        await ada.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=dataset_name(name)))


async def test_a_cancelled_upload_leaves_nothing(people: People) -> None:
    ada, name = people.user(), people.name("d")
    call = ada.datasets.UploadDatasetVersion(timeout=30)
    await call.write(_header(name))
    for number in range(12):
        await call.write(_chunk(number * MIB, bytes(MIB)))

    call.cancel()

    keys = await people.site.without_leaks()
    rows = await people.site.fetch("SELECT object_key FROM storage.dataset_versions WHERE dataset = $1", name)
    assert not rows
    assert keys == people.site.stored_keys()


async def test_versions_count_from_one_and_a_failure_takes_no_number(people: People) -> None:
    ada, name = people.user(), people.name("d")

    numbers = [(await ada.upload(name, b"one")).version]
    async with refused(InvalidArgument):
        await ada.datasets.UploadDatasetVersion(upload(name, b"two")[:-1], timeout=30)
    numbers += [(await ada.upload(name, text)).version for text in (b"three", b"four")]
    request = datasets_pb2.ListDatasetVersionsRequest(parent=dataset_name(name), page_size=2)
    first = await ada.datasets.ListDatasetVersions(request)
    request.page_token = first.next_page_token
    second = await ada.datasets.ListDatasetVersions(request)

    assert numbers == [1, 2, 3]
    assert [version.version for page in (first, second) for version in page.versions] == [3, 2, 1]
    assert not second.next_page_token


async def test_a_repeated_request_gives_the_first_answer(people: People) -> None:
    ada, name, request_id = people.user(), people.name("d"), str(uuid.uuid4())

    first = await ada.upload(name, b"one", request_id=request_id)
    again = await ada.upload(name, b"one", request_id=request_id)
    async with refused(InvalidArgument) as refusal:
        await ada.upload(name, b"two", request_id=request_id)

    assert again == first
    assert refusal[0].violations[0].field == "request_id"
    dataset = await ada.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=dataset_name(name)))
    assert dataset.latest_version == 1
    await people.site.without_leaks()


async def test_a_repeated_request_for_a_series_says_the_same(people: People) -> None:
    ada = people.user()
    request = datasets_pb2.CreateDatasetRequest(
        dataset_id=people.name("d"),
        dataset=datasets_pb2.Dataset(display_name="film", description="on glass"),
        request_id=str(uuid.uuid4()),
    )
    first = await ada.datasets.CreateDataset(request)
    assert await ada.datasets.CreateDataset(request) == first
    request.dataset.description = "on silicon"
    async with refused(InvalidArgument) as refusal:
        await ada.datasets.CreateDataset(request)

    assert refusal[0].violations[0].field == "request_id"


async def test_another_users_dataset_is_not_there(people: People) -> None:
    ada, bob, name = people.user("ada"), people.user("bob"), people.name("d")
    version = await ada.upload(name, b"mine")
    calls = {
        "GetDataset": datasets_pb2.GetDatasetRequest(name=dataset_name(name)),
        "DeleteDataset": datasets_pb2.DeleteDatasetRequest(name=dataset_name(name)),
        "GetDatasetVersion": datasets_pb2.GetDatasetVersionRequest(name=version.name),
        "ListDatasetVersions": datasets_pb2.ListDatasetVersionsRequest(parent=dataset_name(name)),
        "CreateDatasetVersionUrl": datasets_pb2.CreateDatasetVersionUrlRequest(name=version.name),
    }

    messages: dict[str, str] = {}
    for who, target in (("bob", name), ("nobody", people.name("x"))):
        for method, request in calls.items():
            text = str(request).replace(name, target)
            asked = text_format.Parse(text, type(request)())
            async with refused(NotFound) as refusal:
                await getattr(bob.datasets, method)(asked)
            messages[f"{who}.{method}"] = refusal[0].message.replace(target, "NAME")
    async with refused(NotFound):
        await received(
            bob.datasets.DownloadDatasetVersion(datasets_pb2.DownloadDatasetVersionRequest(name=version.name))
        )
    listed = await bob.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest())

    for method in calls:
        assert messages[f"bob.{method}"] == messages[f"nobody.{method}"]
    assert not listed.datasets
    async with refused(AlreadyExists):
        await bob.upload(name, b"his")
    operator = people.user("olga", Role.OPERATOR)
    assert (await operator.datasets.GetDataset(calls["GetDataset"])).owner == people.name("ada")


async def test_a_job_reads_its_inputs_and_nothing_else(people: People) -> None:
    ada, job = people.user(), str(uuid.uuid4())
    mine = await ada.upload(people.name("mine"), b"mine")
    other = await ada.upload(people.name("other"), b"other")
    token = people.job(job, 1, [mine.name])
    read = datasets_pb2.DownloadDatasetVersionRequest

    await ada.datasets.DeleteDataset(
        datasets_pb2.DeleteDatasetRequest(name=dataset_name(people.name("mine")))
    )
    _, content = await received(token.datasets.DownloadDatasetVersion(read(name=mine.name)))

    assert content == b"mine"
    for name in (other.name, mine.name.replace("/1", "/latest")):
        async with refused(NotFound):
            await received(token.datasets.DownloadDatasetVersion(read(name=name)))
    async with refused(PermissionDenied):
        await token.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest())


async def test_a_worker_and_a_guest_may_read_nothing(people: People) -> None:
    version = await people.user().upload(people.name("d"), b"data")
    worker = people.caller("trainer", "pools/cpu", "worker", pool="cpu")

    async with refused(PermissionDenied):
        await worker.datasets.GetDatasetVersion(datasets_pb2.GetDatasetVersionRequest(name=version.name))


async def test_a_viewer_changes_nothing(people: People) -> None:
    viewer = people.user("vera", Role.VIEWER)

    async with refused(PermissionDenied):
        await viewer.upload(people.name("d"), b"data")


async def test_datasets_are_created_listed_filtered_and_deleted(people: People) -> None:
    ada = people.user()
    names = [people.name(name) for name in ("a", "b", "c")]
    for number, name in enumerate(names):
        dataset = datasets_pb2.Dataset(display_name=f"Film {number}", labels={"n": str(number)})
        request = datasets_pb2.CreateDatasetRequest(dataset_id=name, dataset=dataset)
        await ada.datasets.CreateDataset(request)

    async def listed(**request: Any) -> list[str]:
        answer = await ada.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(**request))
        return [dataset.name.rpartition("/")[2] for dataset in answer.datasets]

    assert await listed() == names[::-1]
    assert await listed(filter='labels.n = "1"') == [names[1]]
    assert await listed(filter='display_name : "film 2"') == [names[2]]
    assert await listed(filter='display_name : "%"') == []
    async with refused(AlreadyExists):
        await ada.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset_id=names[0]))
    async with refused(InvalidArgument):
        await listed(filter="owner : x")

    before = await ada.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=dataset_name(names[0])))
    delete = datasets_pb2.DeleteDatasetRequest(name=before.name, etag="other")
    async with refused(Aborted):
        await ada.datasets.DeleteDataset(delete)
    delete.etag = before.etag
    deleted = await ada.datasets.DeleteDataset(delete)
    delete.etag = ""
    again = await ada.datasets.DeleteDataset(delete)

    assert deleted.HasField("delete_time")
    assert again == deleted
    assert deleted.etag != before.etag
    assert await listed() == names[:0:-1]
    assert await listed(show_deleted=True) == names[::-1]
    async with refused(FailedPrecondition):
        await ada.upload(names[0], b"late")


async def test_a_page_token_is_good_for_its_own_question_only(people: People) -> None:
    ada = people.user()
    for name in ("a", "b"):
        await ada.upload(people.name(name), b"x")
    request = datasets_pb2.ListDatasetsRequest(page_size=1)
    token = (await ada.datasets.ListDatasets(request)).next_page_token

    assert token
    bad: list[tuple[str, str]] = [(token, 'labels.a = "b"'), ("nonsense", ""), (token[:-8], "")]
    for page_token, filter_text in bad:
        async with refused(InvalidArgument):
            await ada.datasets.ListDatasets(
                datasets_pb2.ListDatasetsRequest(page_size=1, page_token=page_token, filter=filter_text)
            )
    async with refused(InvalidArgument):
        bob = people.user("bob")
        await bob.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(page_size=1, page_token=token))


async def test_without_a_public_address_there_are_no_urls(people: People) -> None:
    ada = people.user()
    version = await ada.upload(people.name("d"), b"data")

    async with refused(FailedPrecondition) as refusal:
        await ada.datasets.CreateDatasetVersionUrl(
            datasets_pb2.CreateDatasetVersionUrlRequest(name=version.name)
        )

    assert "S3__PUBLIC_ENDPOINT" in refusal[0].message


@pytest.mark.parametrize(
    "filter_text", ['owner = "\x00"', "owner = 'x' OR 1=1", 'labels.a = "\\"', '{"a": 1}', "owner = x AND"]
)
async def test_whatever_a_filter_holds_it_is_refused_as_a_filter(people: People, filter_text: str) -> None:
    request = datasets_pb2.ListDatasetsRequest(filter=filter_text)

    async with refused(InvalidArgument) as refusal:
        await people.user().datasets.ListDatasets(request)

    assert refusal[0].violations[0].field == "filter"


async def test_name_description_and_labels_change(people: People) -> None:
    ada, name = people.user("ada"), dataset_name(people.name("d"))
    await ada.upload(people.name("d"), b"1 2\n")
    request = datasets_pb2.UpdateDatasetRequest(
        dataset={"name": name, "display_name": "Curves", "description": "of films", "labels": {"tag": "x"}}
    )
    request.update_mask.paths.extend(("display_name", "description"))

    changed = await ada.datasets.UpdateDataset(request)

    assert (changed.display_name, changed.description, dict(changed.labels)) == ("Curves", "of films", {})
    assert changed == await ada.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=name))
