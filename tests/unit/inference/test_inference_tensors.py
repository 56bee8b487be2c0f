"""Tensor contents: what is written is read back, and nothing malformed gets through."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guidehall.core.datatypes import DTYPES
from guidehall.core.errors import InvalidArgument
from services.inference.tensors import Tensor, bytes_tensor, decode_raw, encode_raw, tensor_of

_SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from([*DTYPES, "BYTES"]))
    shape = draw(_SHAPES)
    if datatype == "BYTES":
        size = int(np.prod(shape))
        return bytes_tensor(draw(st.lists(st.binary(max_size=9), min_size=size, max_size=size)), shape)
    return Tensor(datatype, draw(hnp.arrays(DTYPES[datatype], shape)))


@given(tensors())
def test_raw_round_trip(tensor: Tensor) -> None:
    again = decode_raw("x", tensor.datatype, tensor.shape, encode_raw(tensor))
    assert again.datatype == tensor.datatype
    assert again.shape == tensor.shape
    assert encode_raw(again) == encode_raw(tensor)


@given(tensors(), st.binary(min_size=1, max_size=9))
def test_bytes_left_over_are_refused(tensor: Tensor, more: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_raw("inputs.x", tensor.datatype, tensor.shape, encode_raw(tensor) + more)
    assert caught.value.violations[0].field == "inputs.x"


@given(
    st.sampled_from([*DTYPES, "BF16", "BYTES", "FP8", ""]),
    st.lists(st.integers(-3, 9)),
    st.binary(max_size=64),
)
def test_any_bytes_are_read_or_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    try:
        tensor = decode_raw("x", datatype, shape, raw)
    except InvalidArgument:
        return
    assert tensor.shape == tuple(shape)
    assert len(encode_raw(tensor)) == len(raw)


def test_bytes_are_not_copied() -> None:
    raw = bytes(8 << 20)
    tracemalloc.start()
    tensor = decode_raw("x", "FP32", [2, 1 << 20], raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tensor.array.nbytes == len(raw)
    assert peak < 100_000


@pytest.mark.parametrize("datatype", [*DTYPES, "BF16", "BYTES"])
def test_a_huge_declaration_allocates_nothing(datatype: str) -> None:
    tracemalloc.start()
    with pytest.raises(InvalidArgument):
        decode_raw("x", datatype, [1 << 20, 1 << 20], b"1234")
    with pytest.raises(InvalidArgument):
        decode_raw("x", datatype, [0, 1 << 62, 1 << 62], b"")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_truncated_bytes_elements_are_refused() -> None:
    whole = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 2) + b"de"
    assert decode_raw("x", "BYTES", [2], whole).array.tolist() == [b"abc", b"de"]
    for length in range(len(whole)):
        with pytest.raises(InvalidArgument, match="x: "):
            decode_raw("x", "BYTES", [2], whole[:length])
    with pytest.raises(InvalidArgument):
        decode_raw("x", "BYTES", [1], struct.pack("<I", 0xFFFFFFFF) + b"abc")
    with pytest.raises(InvalidArgument):
        decode_raw("x", "BYTES", [1], whole)


def test_bfloat16_is_the_upper_half_of_float32_rounded_to_even() -> None:
    raw = bytes([0x80, 0x3F, 0x40, 0xC0, 0x80, 0x7F])
    tensor = decode_raw("x", "BF16", [3], raw)
    assert tensor.array.tolist() == [1.0, -3.0, float("inf")]
    assert encode_raw(tensor) == raw
    # 1 + 2^-8 lies halfway between two neighbours: to the even one. A little more goes up.
    halfway = np.array([1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8], np.float32)
    rounded = decode_raw("x", "BF16", [3], encode_raw(Tensor("BF16", halfway))).array
    assert rounded.tolist() == [1.0, 1 + 2**-7, 1 + 2**-6]
    nan = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(decode_raw("x", "BF16", [1], encode_raw(Tensor("BF16", nan))).array).all()


def test_answers_leave_little_endian_and_contiguous() -> None:
    array = np.arange(6, dtype=">f8").reshape(2, 3).T
    tensor = tensor_of(array, "FP64")
    assert encode_raw(tensor) == struct.pack("<6d", 0, 3, 1, 4, 2, 5)
