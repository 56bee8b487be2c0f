"""Weights as .pth, from and to safetensors: the same numbers, nothing unpickled, nothing held whole."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import random
import struct
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from guidehall.core.errors import InvalidArgument
from guidehall.science.reflectometry.cnn.files import read_weights
from services.gateway.legacy.torch_files import checked_safetensors, to_safetensors, to_torch

TENSORS = {
    "convolution.weight": torch.randn(3, 1, 5),
    "convolution.bias": torch.randn(3),
    "norm.num_batches_tracked": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "half": torch.randn(3).half(),
    "brain": torch.randn(3, 4).bfloat16(),
    "double": torch.randn(2).double(),
    "flags": torch.tensor([True, False]),
    **{f"more.{number}": torch.full((2, 3), float(number)) for number in range(8)},
}


async def pieces(data: bytes, most: int = 700) -> AsyncIterator[bytes]:
    """The bytes in pieces of any length, as a network gives them."""
    at, draw = 0, random.Random(3)
    while at < len(data):
        size = draw.randint(1, most)
        yield data[at : at + size]
        at += size


def saved(state: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


async def converted(data: bytes) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(b"".join([piece async for piece in to_safetensors(pieces(data))]))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in expected.items()
    )


async def test_a_state_dict_keeps_its_numbers() -> None:
    assert same(await converted(saved(TENSORS)), TENSORS)


async def test_a_module_keeps_its_numbers() -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 5), torch.nn.BatchNorm1d(4), torch.nn.Linear(9, 3))
    assert same(await converted(saved(module.state_dict())), dict(module.state_dict()))


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
async def test_weights_among_other_things_are_found(name: str) -> None:
    assert same(await converted(saved({"epoch": 3, "rate": 0.1, name: TENSORS, "more": [None]})), TENSORS)


def _as_older_torch(data: bytes) -> bytes:
    """The same archive with its tensors in the order of their names as text, and sizes before the content."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
    buffer = io.BytesIO()
    first = [name for name in members if name.endswith("/data.pkl")]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in (*first, *sorted(set(members) - set(first))):
            archive.writestr(name, members[name])
    return buffer.getvalue()


async def test_older_versions_of_torch_write_another_order() -> None:
    assert len(TENSORS) > 10
    assert same(await converted(_as_older_torch(saved(TENSORS))), TENSORS)


async def test_there_and_back_again_is_what_torch_reads(tmp_path: Path) -> None:
    file = await to_torch(pieces(safetensors.torch.save(TENSORS)))
    data = b"".join([piece async for piece in file.pieces])
    assert len(data) == file.size_bytes
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for options in ({}, {"mmap": True}):
        assert same(torch.load(path, weights_only=True, **options), TENSORS)
    assert same(await converted(data), TENSORS)


async def test_what_is_written_is_what_the_import_reads(tmp_path: Path) -> None:
    tensors = {name: value for name, value in TENSORS.items() if name != "flags"}
    file = await to_torch(pieces(safetensors.torch.save(tensors)))
    (tmp_path / "model.pth").write_bytes(b"".join([piece async for piece in file.pieces]))
    assert same(read_weights(tmp_path / "model.pth"), tensors)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 3}',
        b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b"[" * 100_000,
        *(
            json.dumps({"a": F32 | change}).encode()
            for change in (
                {"dtype": "F8"}, {"dtype": None}, {"dtype": ["F32"]}, {"shape": 2}, {"shape": ["2"]},
                {"shape": [-2]}, {"shape": [2.0]}, {"shape": [3]}, {"shape": [True, 2]},
                {"shape": [2] + [1] * 64}, {"data_offsets": [8, 16]}, {"data_offsets": [8]},
                {"data_offsets": "08"}, {"data_offsets": [0, 10**30], "shape": [10**30]},
            )
        ),
        json.dumps({"a": F32, "b": F32}).encode(),
    ],
)  # fmt: skip
async def test_a_header_that_does_not_describe_its_file_is_refused(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    with pytest.raises(InvalidArgument, match="got a"):
        await to_torch(pieces(data))
    with pytest.raises(InvalidArgument, match="got a"):
        _ = [piece async for piece in checked_safetensors(pieces(data))]


async def test_a_safetensors_file_passes_as_it_is_and_no_byte_more_or_less() -> None:
    data = safetensors.torch.save(TENSORS)
    assert b"".join([piece async for piece in checked_safetensors(pieces(data))]) == data
    for wrong in (data + b"x", data[:-1], data[:100], b""):
        with pytest.raises(InvalidArgument):
            _ = [piece async for piece in checked_safetensors(pieces(wrong))]


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


_SHARED = torch.arange(6.0)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": _Evil()}, "print"),
        ({"a": _SHARED, "b": _SHARED}, "shares its numbers"),
        ({"a": _SHARED[2:]}, "shares its numbers"),
        ({"a": torch.randn(3, 2).T}, "not in order"),
        ({"a": 3}, "a, which is no tensor"),
        ({"a": torch.zeros((1,) * 9)}, "9 dimensions"),
        ([TENSORS["half"]], "no dict"),
        ({}, "no dict"),
        (torch.nn.Linear(2, 2), "NEWOBJ"),
    ],
)
async def test_anything_but_plain_tensors_is_refused(
    state: Any, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidArgument, match="torch") as refusal:
        await converted(saved(state))
    assert named in refusal.value.message
    assert "ran" not in capsys.readouterr().out


def _archive(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


async def test_a_pickle_of_many_operations_is_refused_while_others_are_served() -> None:
    served = asyncio.Event()

    async def serve() -> None:
        served.set()

    # It runs as soon as the conversion lets go of the event loop.
    other = asyncio.create_task(serve())
    many = b"\x80\x02" + b"(" + b"N" * 50_000 + b"(t" * 30_000 + b"."
    with pytest.raises(InvalidArgument, match="more than 100000 operations"):
        await converted(_archive(many))
    assert served.is_set()
    await other


async def test_the_end_of_a_record_is_looked_for_in_one_pass() -> None:
    # Its first record's size follows it, and all of it looks like the beginning of that.
    name = b"archive/data.pkl"
    head = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0x0808, 0, 0, 0, 0, 0, 0, len(name), 0)
    data = head + name + b"PK\x07\x08" * (300 << 10)
    begun = time.process_time()
    with pytest.raises(InvalidArgument, match="a record of more than 1048576 bytes"):
        await converted(data)
    # Where each place is a copy of what follows it, minutes.
    assert time.process_time() - begun < 10


async def test_what_is_no_such_archive_is_refused() -> None:
    whole = saved(TENSORS)
    compressed, plain = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("notes.txt", b"x")
    damaged = bytearray(whole)
    # Within the last tensor.
    damaged[whole.index(b"archive/data/15") - 60] ^= 1
    for data in (
        compressed.getvalue(),
        plain.getvalue(),
        saved(TENSORS, _use_new_zipfile_serialization=False),
        pickle.dumps({"a": 1}),
        whole[: len(whole) // 3],
        whole[: whole.index(b"archive/data/9")],
        bytes(damaged),
        b"",
        b"PK\x03\x04",
    ):
        with pytest.raises(InvalidArgument):
            await converted(data)
