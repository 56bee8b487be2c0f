"""What is told of content from its bytes: data files, weights, documents."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core.errors import InvalidArgument
from services.storage import documents
from services.storage.sniff import HEAD_BYTES, DataInspector
from services.storage.weights import MAX_HEADER_BYTES, WeightsInspector


def inspect(inspector: Any, content: bytes, piece_bytes: int = 1000) -> dict[str, Any]:
    for start in range(0, len(content), piece_bytes):
        inspector.feed(content[start : start + piece_bytes])
    found: dict[str, Any] = inspector.finish(len(content))
    return found


def array_file(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, HEAD_BYTES, 1 << 20])
def test_an_array_is_recognised_whatever_the_pieces(piece_bytes: int) -> None:
    array = np.asfortranarray(np.arange(30_000, dtype="<f8").reshape(100, 300))
    content = array_file(array)
    size = len(content) if piece_bytes > 100 else 3000

    if size == len(content):
        found = inspect(DataInspector(), content, piece_bytes)
        assert found == {"format": "npy", "dtype": "float64", "shape": [100, 300], "fortran_order": True}
    else:
        with pytest.raises(InvalidArgument, match="3000 bytes"):
            inspect(DataInspector(), content[:size], piece_bytes)


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<u2", ">i4", "<f4", "c8", "f2", "S5", "<U3", "M8[s]", "m8[25s]", "V3"]
)
def test_arrays_of_plain_types_are_accepted(dtype: str) -> None:
    array = np.zeros(3, dtype=dtype)

    found = inspect(DataInspector(), array_file(array, (2, 0)))

    assert found["shape"] == [3]
    assert np.dtype(found["dtype"]).newbyteorder("=") == array.dtype.newbyteorder("=")


def test_an_array_without_items_or_dimensions_is_an_array() -> None:
    assert inspect(DataInspector(), array_file(np.zeros((0, 3))))["shape"] == [0, 3]
    assert inspect(DataInspector(), array_file(np.float64(1)))["shape"] == []  # type: ignore[arg-type]


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps({"a": 1}, protocol) for protocol in (2, 3, 4, 5)),
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"\x93NUMPY",
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00",
        b"\x93NUMPY\x09\x00",
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        _npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,) * 9, }"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': " + str((1,) * 40) + ", }"),
        _npy("__import__('os').system('true')"),
        _npy("{'descr': '" + "(" * 3000 + "', 'fortran_order': False, 'shape': (1,), }"),
        _npy("{" * 9000),
        _npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }"),
        _npy("{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }"),
        _npy("{'descr': '<f8', 'fortran_order': 0, 'shape': (1,), }"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'more': 1}"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1L,), }"),
        _npy("{[]: 1}"),
        _npy("\x00"),
        _npy("x" * 60_000),
    ],
)
def test_what_could_run_code_or_makes_no_sense_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        inspect(DataInspector(), content)

    assert refused.value.reason == "CONTENT_REFUSED"
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"0.01 1.0\n", "text"),
        ("Å".encode() * HEAD_BYTES, "text"),
        (b"x" + "Å".encode() * HEAD_BYTES, "text"),
        (b"\x00\x01", "binary"),
        (b"text\x00", "binary"),
        (b"\xff\xfe\xfd", "binary"),
        (b"\x80\x01old", "binary"),
    ],
)
def test_text_is_told_from_anything_else(content: bytes, kind: str) -> None:
    assert inspect(DataInspector(), content) == {"format": kind}


@given(st.binary(max_size=300))
def test_any_bytes_are_described_or_refused(content: bytes) -> None:
    for prefix in (b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x40\x00{'descr':"):
        try:
            inspect(DataInspector(), prefix + content, 50)
        except InvalidArgument:
            continue


@given(st.binary(max_size=300))
def test_any_bytes_are_weights_or_refused(content: bytes) -> None:
    for prefix in (b"", b"\x20\0\0\0\0\0\0\0", b"\x02\0\0\0\0\0\0\0{}"):
        try:
            inspect(WeightsInspector(), prefix + content, 50)
        except InvalidArgument:
            continue


def test_weights_whose_header_comes_in_pieces_are_accepted() -> None:
    tensors = {
        f"layer.{number}": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8 * number, 8 * number + 8]}
        for number in range(2000)
    }
    header = json.dumps(tensors).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(16_000)

    assert inspect(WeightsInspector(), content, 777) == {}


def test_a_header_of_any_announced_size_takes_bounded_memory() -> None:
    inspector = WeightsInspector()

    inspector.feed((MAX_HEADER_BYTES).to_bytes(8, "little"))
    inspector.feed(bytes(MAX_HEADER_BYTES - 1))
    with pytest.raises(InvalidArgument):
        inspector.feed(bytes(1 << 20))
    with pytest.raises(InvalidArgument):
        WeightsInspector().feed((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text("abc", max_size=3), JSON, max_size=4))
def test_a_document_is_the_same_however_its_numbers_arrived(value: dict[str, Any]) -> None:
    def as_doubles(item: Any) -> Any:
        match item:
            case bool():
                return item
            case int():
                return float(item)
            case dict():
                return {key: as_doubles(inner) for key, inner in reversed(item.items())}
            case list():
                return [as_doubles(inner) for inner in item]
        return item

    direct = documents.document("d", value, 1 << 20)
    travelled = documents.document("d", as_doubles(value), 1 << 20)

    assert direct == travelled
    assert json.loads(documents.canonical(direct.value)) == direct.value
    assert documents.digest(direct.value) == direct.sha256


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": float("nan")}, "d.a"),
        ({"a": [1, float("inf")]}, "d.a[1]"),
        ({"a": {"b": "x\x00"}}, "d.a.b"),
        ({"\x00": 1}, "d"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_its_path(value: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        documents.document("d", value, 1 << 20)

    assert refused.value.violations[0].field == path


def test_a_document_has_a_size_and_a_depth() -> None:
    deep: Any = 1
    for _ in range(documents.MAX_DEPTH + 1):
        deep = [deep]

    with pytest.raises(InvalidArgument, match="nested"):
        documents.document("d", {"a": deep}, 1 << 20)
    with pytest.raises(InvalidArgument, match="at most 10 bytes"):
        documents.document("d", {"a": "x" * 10}, 10)


def test_large_arrays_are_left_out_of_summaries() -> None:
    value = {
        "a": list(range(33)),
        "b": list(range(32)),
        "c": {"d": [0] * 99},
        "e": {},
        "f": [{"g": [0] * 99}, 1],
    }

    assert documents.without_large_arrays(value) == {"b": list(range(32)), "e": {}, "f": [{}, 1]}
