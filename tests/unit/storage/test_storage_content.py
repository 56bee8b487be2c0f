"""What is told of content from its bytes: data files, weights, documents."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
from typing import Any

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import example, given
from hypothesis import strategies as st

from guidehall.core.errors import InvalidArgument
from services.storage import documents
from services.storage.servicers import common
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
        *(pickle.dumps({"a": 1}, protocol) for protocol in range(6)),
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
    "content",
    [
        b"PK\x03\x04" + bytes(30),
        b"\x80\x02}q\x00.",
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (), }"),
    ],
)
def test_a_refusal_says_how_networks_come_in(content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="guidehall reflectometry import-model"):
        inspect(DataInspector(), content)


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize(
    "value",
    [
        Runs(), [1.5, Runs()], os.system, Ellipsis, {1, 2}, (1, 2), [], {"q": [0.01], "r": [1.0]},
        np.float64(2.0), np.arange(3.0), np.zeros(100_000), np.array(["a", None], dtype=object),
        list(range(100_000)), [[0.5 * row, 1.0] for row in range(30_000)],
        {number: str(number) for number in range(50_000)},
        ["x" * 100_000],
    ],
)  # fmt: skip
def test_old_pickles_are_recognised_though_nothing_marks_them(protocol: int, value: object) -> None:
    with pytest.raises(InvalidArgument, match="a pickle"):
        inspect(DataInspector(), pickle.dumps(value, protocol), 1 << 16)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR. and more",
        # Unpickling fails, but only after the call.
        b"cos\nsystem\n(S'true'\ntR!",
        b"(S'true'\nios\nsystem\n!",
        b"(cos\nsystem\nS'true'\no!",
        b"(0N0N0cos\nsystem\n(S'true'\ntR.\n",
        b"\x80\x00cos\nsystem\n(S'true'\ntR.",
        b"N0" * 100 + b"cos\nsystem\nS'true'\n\x85R.",
        b"S'true'\np7\n0cos\nsystem\n(g7\ntR.",
    ],
)
def test_hand_made_pickles_are_recognised(content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="a pickle"):
        inspect(DataInspector(), content)


TEXTS = [
    "0.01 1.0 0.1\n0.02 0.9 0.1\n",
    "# Q (1/A), R, dR\n1e-2,1.0,1e-3\n",
    "-1 2\n",
    ".5 .3\n.6 .2\n",
    "+1.5\t2\r\n3\t4\r\n",
    "1.", "0.", "2.", "10.", "20.5", "1.2.3", "",
    "1;2,5;3\n",
    "   0.1   2.0\n",
    "\ufeffQ;R\n0,1;1\n",
    "% Matlab\n1 2\n",
    "! FullProf\n1 2\n",
    "@TYPE xy\n&\n",
    "; comment\n1 2\n",
    "//head\n1 2\n",
    "$data\n*END\n",
    "<?xml version='1.0'?><SASroot/>",
    '{"q": [0.01, 0.02], "r": [1.0, 0.9]}',
    "[1.0, 2.0]\n[[1, 2], [3, 4]]",
    '"Q","R"\n"1","2"\n',
    "null", "NaN NaN\n", "Infinity\n", "inf -inf\n", "true",
    "Q,R,dR,dQ\n0.01,1,0.1,0.001\n",
    "Qz R sR sQz\n0.01 1 0.1 0.001\n",
    "q\tI\n0.1\t2\n",
    "I\n1\n2\n", "I1\n.", "I 5\n",
    "F1.0\nF2.0\n",
    "N. of points: 5\n0.1 1\n", "N.",
    "Voltage Current\n.1 .2\n", "V\n.", "V 1 2\nV 3 4\n" * 9000,
    "channel\ncounts\n.5\n1\n", "cps\nq\n.1 .2\n",
    "counts\nerror\ncounts\nerror\nRate\n", "channel\ncounts\nVolts\nbackground\n",
    "Pressure\nPosition\nbeam\n1 2 3\n",
    "(dB) 1 2\n", "(dB)" + " 1 2\n" * 20_000, "(q, R)\n1 2\n", "(dq/dt)\n", "(l.h.s.)\n", "(I)\n(t)\n",
    "()\n", "(intensity\ncounts\n1 2\n",
    "U/V I/A\n1 2\n", "T/K X\n300 1\n", "G1 X1.0 Y2.0\nG1 X2.0\n", "K1.5\n", "M 5\n", "Sample 'a'\nS'a'\n",
    "S'a'\nS'b'\n" * 9000, "N" * 100_000, "ACGTNNNNACGT\n", "N0N0N0",
    "a b c\nx y z\n", "2theta;counts\n10.0;5\n", "0010\n0020\n", "2 0\n1 1\n",
    "Lambda 1.54\n", "L1\nL2\n", "J/mol\n", "j\n", "e+00\n", "END\n", "]q0 1\n", "}\n",
]  # fmt: skip


@pytest.mark.parametrize("content", TEXTS, ids=lambda content: content[:20])
def test_no_text_is_taken_for_a_pickle(content: str) -> None:
    for cut in (content, content[:-1], content + content):
        assert inspect(DataInspector(), cut.encode(), 1 << 16) == {"format": "text"}


NUMBER = st.integers().map(str) | st.floats().map(str) | st.floats().map("{:.3e}".format)


@given(st.lists(st.lists(NUMBER, min_size=1, max_size=4), max_size=20), st.sampled_from(" ,;\t"))
def test_no_columns_of_numbers_are_taken_for_a_pickle(rows: list[list[str]], between: str) -> None:
    for end in ("\n", "\r\n", "\n\n.", "."):
        content = end.join(between.join(row) for row in rows) + end
        assert inspect(DataInspector(), content.encode()) == {"format": "text"}


@given(JSON, st.sampled_from([None, 2]))
def test_no_json_is_taken_for_a_pickle(value: Any, indent: int | None) -> None:
    content = json.dumps(value, indent=indent)
    assert inspect(DataInspector(), content.encode()) == {"format": "text"}


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=200))
@example("i\\")
def test_no_heading_of_words_is_taken_for_a_pickle(heading: str) -> None:
    content = heading + " and values\n0.1 1\n0.2 2\n"
    assert inspect(DataInspector(), content.encode()) == {"format": "text"}


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


async def test_documents_are_read_while_others_are_served() -> None:
    message = Struct()
    message.update({"curve": [0.5] * 10_000})
    read = asyncio.create_task(common.document("document", message, 1 << 20))
    turns = 0
    while not read.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await read).value["curve"] == [0.5] * 10_000
    assert turns > 1


@pytest.mark.parametrize("shape", [[1] * 33, [0, 1 << 53]])
def test_weights_of_a_shape_that_no_array_has_are_refused(shape: list[int]) -> None:
    size = 4 * (0 not in shape)
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()

    with pytest.raises(InvalidArgument, match="not described as safetensors does"):
        inspect(WeightsInspector(), len(header).to_bytes(8, "little") + header + bytes(size), 1 << 20)


def test_a_header_of_any_announced_size_takes_bounded_memory() -> None:
    inspector = WeightsInspector()

    inspector.feed((MAX_HEADER_BYTES).to_bytes(8, "little"))
    inspector.feed(bytes(MAX_HEADER_BYTES - 1))
    with pytest.raises(InvalidArgument):
        inspector.feed(bytes(1 << 20))
    with pytest.raises(InvalidArgument):
        WeightsInspector().feed((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))


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
