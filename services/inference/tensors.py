"""Tensors of the wire as numpy arrays: row-major, little-endian, no padding, lengths checked before use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from guidehall.core.datatypes import DTYPES
from guidehall.core.errors import InvalidArgument

Array = np.ndarray[Any, Any]

# BF16 and BYTES are handled apart: numpy knows neither.
DATATYPES = (*DTYPES, "BF16", "BYTES")
MAX_DIMENSIONS = 32
# Of one request, each way; no model has more.
MAX_TENSORS = 64
# numpy refuses shapes beyond its address space even where a zero makes them empty.
_MAX_EXTENT = 1 << 48
# Length that stands in front of each element of a BYTES tensor.
_LENGTH = np.dtype("<u4")


@dataclass(frozen=True)
class Tensor:
    """A named type and its values.

    Attributes:
        datatype: Open Inference Protocol name.
        array: BF16 as float32, BYTES as objects of type bytes, every other type as in `DTYPES`.
    """

    datatype: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all dimensions."""
        return tuple(self.array.shape)


@dataclass(frozen=True)
class Declared:
    """A tensor as it came: what it says of itself, and how to read its values, which takes its time.

    Attributes:
        datatype, shape: as of a `Tensor`; the values need not fit them.
        size_bytes: of the values on the wire.
        read: gives the tensor; raises InvalidArgument when declaration and values do not fit together.
    """

    datatype: str
    shape: tuple[int, ...]
    size_bytes: int
    read: Callable[[], Tensor]


def tensor_of(array: Array, datatype: str) -> Tensor:
    """A tensor of numbers, converted to the wire's byte order if need be."""
    return Tensor(datatype, np.ascontiguousarray(array, dtype=DTYPES[datatype]))


def check_shape(field: str, datatype: str, shape: Sequence[int]) -> int:
    """How many elements a tensor of this declaration has.

    Raises:
        InvalidArgument: unknown data type, too many dimensions, or a negative one.
    """
    if datatype not in DATATYPES:
        raise InvalidArgument.field(f"{field}.datatype", datatype, f"one of {', '.join(DATATYPES)}")
    if len(shape) > MAX_DIMENSIONS:
        allowed = f"at most {MAX_DIMENSIONS} dimensions"
        raise InvalidArgument.field(f"{field}.shape", f"{len(shape)} dimensions", allowed)
    if any(size < 0 for size in shape):
        raise InvalidArgument.field(f"{field}.shape", list(shape), "dimensions must not be negative")
    if math.prod(max(size, 1) for size in shape) > _MAX_EXTENT:
        raise InvalidArgument.field(f"{field}.shape", list(shape), f"at most {_MAX_EXTENT} elements")
    return math.prod(shape)


def check_count(field: str, count: int) -> None:
    """Refuses more tensors than a model has, before the first is looked at."""
    if count > MAX_TENSORS:
        raise InvalidArgument.field(field, f"{count} tensors", f"at most {MAX_TENSORS}")


def declare_raw(field: str, datatype: str, shape: Sequence[int], raw: bytes) -> Declared:
    """A tensor whose values `decode_raw` reads.

    Raises:
        InvalidArgument: unknown data type, too many dimensions, or a negative one.
    """
    check_shape(field, datatype, shape)
    read = partial(decode_raw, field, datatype, tuple(shape), raw)
    return Declared(datatype, tuple(shape), len(raw), read)


def decode_raw(field: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """Reads a tensor without copying its bytes; the array is read-only.

    Raises:
        InvalidArgument: blames `field` when declaration and bytes do not fit together.
    """
    count = check_shape(field, datatype, shape)
    if datatype == "BYTES":
        return Tensor(datatype, _object_array(_split_bytes(field, count, raw), shape))
    dtype = np.dtype("<u2") if datatype == "BF16" else DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        allowed = f"{count * dtype.itemsize} bytes for {datatype} {list(shape)}"
        raise InvalidArgument.field(field, f"{len(raw)} bytes", allowed)
    array = np.frombuffer(raw, dtype=dtype).reshape(tuple(shape))
    return Tensor(datatype, _widen(array) if datatype == "BF16" else array)


def encode_raw(tensor: Tensor) -> bytes:
    """The bytes that `decode_raw` reads."""
    if tensor.datatype == "BYTES":
        elements: list[bytes] = tensor.array.ravel().tolist()
        return b"".join(len(element).to_bytes(_LENGTH.itemsize, "little") + element for element in elements)
    if tensor.datatype == "BF16":
        return _narrow(tensor.array).tobytes()
    return tensor.array.tobytes()


def _split_bytes(field: str, count: int, raw: bytes) -> list[bytes]:
    """Elements of a BYTES tensor. Nothing is allocated for a count that the bytes cannot hold."""
    if count * _LENGTH.itemsize > len(raw):
        raise InvalidArgument.field(field, f"{len(raw)} bytes", f"too few for {count} elements of type BYTES")
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) < count:
        start = position + _LENGTH.itemsize
        end = start + int.from_bytes(raw[position:start], "little")
        if start > len(raw) or end > len(raw):
            got = f"{len(raw)} bytes, cut in element {len(elements)}"
            raise InvalidArgument.field(field, got, "each element is a 4-byte length and that many bytes")
        elements.append(raw[start:end])
        position = end
    if len(elements) != count or position != len(raw):
        got = f"{len(elements)} elements in {position} of {len(raw)} bytes"
        raise InvalidArgument.field(field, got, f"exactly {count} elements of type BYTES")
    return elements


def _object_array(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(tuple(shape))


def bytes_tensor(elements: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    """A BYTES tensor of as many elements as `shape` holds."""
    return Tensor("BYTES", _object_array(elements, shape))


def _widen(halves: Array) -> Array:
    """bfloat16 bit patterns as float32: they are its upper halves."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _narrow(values: Array) -> Array:
    """float32 as bfloat16 bit patterns, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding up the fraction of a NaN could carry into an infinity: a quiet NaN stays one.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")
