"""Curves in `.npy` files."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Metadata
from guidehall.science.reflectometry.formats.common import Columns, Given
from guidehall.science.reflectometry.params import MAX_POINTS

MAGIC = npy.MAGIC_PREFIX
MAX_CURVES = 10_000
_SHAPES = "numbers of shape [points, 2 to 4], [2 to 4, points] or [curves, 2 to 4, points]"


@dataclass(frozen=True)
class ArrayHeader:
    """What a `.npy` file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data_offset: int

    @property
    def data_bytes(self) -> int:
        """How many bytes must follow the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(start: bytes, field: str) -> ArrayHeader:
    """Reads the header of a `.npy` file, without its data and without unpickling.

    Args:
        start: the file or enough of its beginning.
        field: what to call it in errors.

    Raises:
        UserError: it is no such header, or one of Python objects.
    """
    file = io.BytesIO(start)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        shape, _, dtype = readers[npy.read_magic(file)](file)
    except Exception:
        # numpy lets through whatever Python's own tokenizer and parser make of a damaged header.
        allowed = "must be a whole .npy file without Python objects"
        raise UserError(field, "bytes numpy cannot read", allowed) from None
    if dtype.hasobject:
        raise UserError(
            field, "Python objects, which numpy cannot read", "must be numbers: nothing is unpickled"
        )
    return ArrayHeader(shape, dtype, file.tell())


def read(data: bytes, given: Given) -> list[Columns]:
    """The curves of an array; its header is believed only when the file has as many bytes.

    Raises:
        UserError: the array is no set of curves.
    """
    header = read_header(data, given.field)
    found = f"{header.dtype} {list(header.shape)}"
    if header.dtype.kind not in "fiu":
        raise UserError(given.field, found, f"must be {_SHAPES}")
    if header.data_bytes != len(data) - header.data_offset:
        got = f"{found} in {len(data)} bytes, which numpy cannot read"
        raise UserError(given.field, got, "must be a whole .npy file")
    shape, single = header.shape, len(header.shape) == 2
    # An array of 2 to 4 points in as many columns could be either; then q tells, which ascends.
    as_table = single and 2 <= shape[1] <= 4 and not (2 <= shape[0] <= 4 and _ascends_along_rows(data))
    rows, points = (shape[1], shape[0]) if as_table else shape[-2:] if len(shape) in (2, 3) else (0, 0)
    if not (2 <= rows <= 4 and 2 <= points <= MAX_POINTS) or (not single and not 1 <= shape[0] <= MAX_CURVES):
        limits = f"2 to {MAX_POINTS} points, 1 to {MAX_CURVES} curves"
        raise UserError(given.field, found, f"must be {_SHAPES}; {limits}")
    array = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    curves = array.T[None] if as_table else array[None] if single else array
    return [
        Columns(
            q=curve[0],
            r=curve[1],
            dr=curve[2] if rows > 2 else None,
            dq=curve[3] if rows > 3 else None,
            place=given.field if single else f"{given.field}[{index}]",
            metadata=Metadata(data_set="" if single else str(index)),
        )
        for index, curve in enumerate(curves)
    ]


def _ascends_along_rows(data: bytes) -> bool:
    """Whether the first row of a small array ascends, and its first column does not."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return bool(np.all(np.diff(array[0]) > 0) and not np.all(np.diff(array[:, 0]) > 0))
