"""What an uploaded file may be, by its role."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from guidehall.core.errors import InvalidArgument
from services.gateway.legacy.forms import Form, MultipartParseError, NotAFormError
from services.gateway.legacy.roles import ROLES, Files, base_name
from services.gateway.legacy.upload_checks import (
    check_shape,
    read_settings,
    read_statistics,
    role_of,
    shape_of,
)

ENDS = {"min": 0.0, "max": 1.0}
COMPLETE = {"nr": {"x": ENDS, "y": ENDS}, "sld": {"x": ENDS, "y": ENDS}}


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "fits"),
    [
        ("curves", {(3, 2, 7), (1, 2, 1)}),
        ("profiles", {(2, 7), (3, 2, 7), (1, 2, 1), (2, 2)}),
        ("table", {(3, 4), (2, 7), (2, 2)}),
    ],
)
def test_each_role_has_its_shapes(kind: str, fits: set[tuple[int, ...]]) -> None:
    shapes = [
        (3, 2, 7),
        (1, 2, 1),
        (2, 7),
        (2, 2),
        (3, 4),
        (7,),
        (3, 3, 7),
        (0, 2, 7),
        (3, 2, 0),
        (),
        (1, 3, 2, 7),
    ]
    for role in (role for role in ROLES.values() if role.kind == kind):
        for shape in shapes:
            if shape in fits:
                check_shape(role, shape)
                continue
            with pytest.raises(InvalidArgument) as refusal:
                check_shape(role, shape)
            assert f"got {list(shape)}" in refusal.value.message
            assert role.name in refusal.value.message


def test_a_shape_is_told_from_the_head_alone() -> None:
    data = npy(np.zeros((5000, 2, 308), np.float32))
    assert shape_of(data[:128]) == (5000, 2, 308)


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        npy(np.array(["text"])),
        npy(np.zeros(3, np.complex64)),
        pickle.dumps(np.zeros(3)),
        npz(x=np.zeros(3)),
        npy(np.zeros(3))[:20],
        b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((",
        b"",
    ],
)
def test_anything_but_numbers_is_no_array(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="allowed"):
        shape_of(data)


def test_an_unknown_role_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="nr_train, sld_train, experimental_nr"):
        role_of("nr_trian")


@pytest.mark.parametrize(
    ("data", "document", "complete"),
    [
        (b'{"x": [0, 1.5], "y": [[1, 2], [3, 4]]}', {"x": [0, 1.5], "y": [[1, 2], [3, 4]]}, False),
        (npz(x=np.arange(2), y=np.ones(1)), {"x": [0, 1], "y": [1]}, False),
        (json.dumps(COMPLETE).encode(), COMPLETE, True),
        (npz(**{f"{c}.{a}": np.array([0.0, 1.0]) for c in COMPLETE for a in "xy"}), COMPLETE, True),
    ],
)
def test_statistics_of_every_kind(data: bytes, document: dict[str, Any], complete: bool) -> None:
    found = read_statistics(data)
    assert (found.document, found.complete) == (document, complete)


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array({"x": 1}, dtype=object), allow_pickle=True),
        npz(x=np.array([None], dtype=object), y=np.ones(1)),
        npz(x=np.arange(2)),
        b'{"x": [1], "y": "no numbers"}',
        b'{"x": [1], "y": [NaN]}',
        b'{"x": [1], "y": []}',
        b'{"x": [[1], [1, 2]], "y": [1]}',
        b'{"nr": {"x": {"min": 2, "max": 1}}, "sld": {}}',
        b"[" * 100_000,
        b"[1, 2]",
        b"\xff",
        b"",
        b"PK\x03\x04",
        npz(x=np.zeros(200_000), y=np.ones(1)),
    ],
)
def test_no_statistics(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="numeric arrays x and y"):
        read_statistics(data)


def test_settings_point_at_files_by_their_names() -> None:
    files = Files(files={"data/curves/nr.npy": "v1"}, models={"nr_sld_model": "old"})
    files.replace_settings(
        read_settings(
            b"nr_predict_sld:\n  file: {nr_train: /app/data/curves/nr.npy, sld_train: 'C:\\data\\sld.npy'}\n"
            b"  models: {model: ../../m.pth, layers: 7}\nroot: /srv\n2: {3: 4}\n"
        )
    )
    assert files.paths == {
        "nr_train": "data/curves/nr.npy",
        "sld_train": "data/curves/sld.npy",
        "nr_sld_model": "data/models/m.pth",
    }
    assert files.versions() == {"nr_train": "v1"}
    assert files.models == {}
    assert files.other == {"root": "/srv", "2": {"3": 4}, "nr_predict_sld": {"models": {"layers": 7}}}


@pytest.mark.parametrize(
    "text",
    [
        b"- a\n",
        b"a: !!python/object:os.system {}\n",
        b"a: .nan\n",
        b"\xff",
        b"x" * 70_000,
    ],
)
def test_no_settings(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="YAML of names and values"):
        read_settings(text)


@pytest.mark.parametrize(
    ("given", "name"),
    [("a/b/c.npy", "c.npy"), ("C:\\x\\c.npy", "c.npy"), ("..", ""), ("", ""), ("a\nb", ""), ("a" * 300, "")],
)
def test_a_path_is_reduced_to_its_last_part(given: str, name: str) -> None:
    assert base_name(given) == name


BOUNDARY = "xyz"


def field(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        + content
        + b"\r\n"
    )


async def bytewise(data: bytes) -> AsyncIterator[bytes]:
    for start in range(len(data)):
        yield data[start : start + 1]


def form(data: bytes) -> Form:
    return Form(f"multipart/form-data; boundary={BOUNDARY}", bytewise(data))


async def read_away(form: Form) -> None:
    async for part in form.parts():
        async for _ in part.body:
            pass


async def test_a_form_is_read_part_by_part() -> None:
    content = b"\r\n--xy\r\n-- almost\x00"
    end = f"--{BOUNDARY}--\r\n".encode()
    body = (
        field("files", content, "Å.npy") + field("roles", b"nr_train") + field("files", b"skipped", "b") + end
    )
    found = []
    async for part in form(body).parts():
        if part.filename != "b":
            found.append((part.name, part.filename, b"".join([piece async for piece in part.body])))
    assert found == [("files", "Å.npy", content), ("roles", None, b"nr_train")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        field("files", b"cut off", "a")[:-3],
        b"nothing of the kind",
        b"".join(field("a", b"") for _ in range(101)) + f"--{BOUNDARY}--\r\n".encode(),
        field("a" * 9000, b""),
    ],
)
async def test_no_form(body: bytes) -> None:
    with pytest.raises(MultipartParseError):
        await read_away(form(body))


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=a"]
)
def test_no_form_at_all(content_type: str) -> None:
    with pytest.raises(NotAFormError):
        Form(content_type, bytewise(b""))
