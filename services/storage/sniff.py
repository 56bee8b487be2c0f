"""What an uploaded data file is, told from its bytes alone: nothing is executed, unpickled or unpacked."""

from __future__ import annotations

import ast
import codecs
import math
import re
from dataclasses import dataclass
from typing import Any

from guidehall.core.errors import InvalidArgument
from services.storage.pickles import is_pickle

# Enough for the largest header that is accepted, and to tell text from anything else.
HEAD_BYTES = 64 << 10
MAX_NPY_HEADER_CHARACTERS = 10_000
MAX_NPY_DIMENSIONS = 32

_NPY = b"\x93NUMPY"
# Bytes of the header's length, by major version of the format.
_NPY_LENGTH_BYTES = {1: 2, 2: 4}
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# With members, empty, and in several parts.
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_NETWORKS = "A network of pyreflect and its statistics: guidehall reflectometry import-model converts them"
# NumPy's array protocol: byte order, kind, bytes of an item, and the unit of a time.
_TYPE = re.compile(r"[<>=|]([biufcSUVmM])([0-9]{1,9})(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?")
_NUMBERS = {
    "b": ("bool", (1,)), "i": ("int", (1, 2, 4, 8)), "u": ("uint", (1, 2, 4, 8)),
    "f": ("float", (2, 4, 8, 12, 16)), "c": ("complex", (8, 16, 24, 32)),
}  # fmt: skip


@dataclass(frozen=True)
class _Array:
    """What the header of an .npy file says."""

    dtype: str
    shape: list[int]
    fortran_order: bool
    file_bytes: int


class DataInspector:
    """Recognises .npy and text; refuses pickles, archives, and arrays of Python objects."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._decided = False
        self._array: _Array | None = None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidArgument: content that is not accepted.
        """
        if not self._decided:
            self._head += data[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                self._decide(complete=False)

    def finish(self, size_bytes: int) -> dict[str, Any]:
        """What the content is: "format", and for an array "dtype", "shape" and "fortran_order".

        Raises:
            InvalidArgument: content that is not accepted, or an array that is not complete.
        """
        if not self._decided:
            self._decide(complete=True)
        array = self._array
        if array is None:
            return {"format": "text" if _is_text(bytes(self._head)) else "binary"}
        if size_bytes != array.file_bytes:
            raise _refused(f"an .npy file of {size_bytes} bytes whose header asks for {array.file_bytes}")
        return {
            "format": "npy",
            "dtype": array.dtype,
            "shape": array.shape,
            "fortran_order": array.fortran_order,
        }

    def _decide(self, *, complete: bool) -> None:
        head = bytes(self._head)
        if head.startswith(_PICKLES) or is_pickle(head, complete=complete):
            raise _refused(
                "a pickle, which could run code; save arrays with numpy.save(allow_pickle=False). "
                + _NETWORKS
            )
        if head.startswith(_ZIPS):
            raise _refused(
                "a zip archive (such as .npz or a torch file); upload its arrays one by one as .npy. "
                + _NETWORKS
            )
        if head.startswith(_NPY):
            self._array = _read_npy(head)
        self._decided = True


def _read_npy(head: bytes) -> _Array:
    """Reads a header more strictly than NumPy, which for one tries to understand what Python 2 wrote."""
    start = len(_NPY) + 2
    major = head[len(_NPY)] if len(head) >= start else 0
    if major not in _NPY_LENGTH_BYTES:
        raise _refused("an .npy file of another format version than 1 and 2")
    begin = start + _NPY_LENGTH_BYTES[major]
    end = begin + int.from_bytes(head[start:begin], "little")
    if end - begin > MAX_NPY_HEADER_CHARACTERS or end > len(head):
        raise _refused(f"an .npy file with a header of {end - begin} bytes")
    try:
        header = ast.literal_eval(head[begin:end].decode("latin-1").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise _refused("an .npy file whose header makes no sense") from None
    match header:
        case {"descr": str(descr), "fortran_order": bool(fortran_order), "shape": tuple(shape), **more} if (
            not more
        ):
            dtype, item_bytes = _item(descr)
            if len(shape) <= MAX_NPY_DIMENSIONS and all(type(n) is int and 0 <= n < 2**53 for n in shape):
                file_bytes = end + math.prod(shape) * item_bytes
                return _Array(dtype, list(shape), fortran_order, file_bytes)
    raise _refused("an .npy file whose header does not describe a plain array")


def _item(descr: str) -> tuple[str, int]:
    """Name and size in bytes of one item."""
    match = _TYPE.fullmatch(descr)
    if match is None:
        raise _refused(
            f"an array of {descr[:40]!r}; Python objects would be a pickle, plain types are accepted."
            f" {_NETWORKS}"
        )
    kind, size = match[1], int(match[2])
    if kind in _NUMBERS:
        word, sizes = _NUMBERS[kind]
        if size in sizes:
            return word if kind == "b" else f"{word}{8 * size}", size
        raise _refused(f"an array of {descr!r}, which is no type")
    return descr, 4 * size if kind == "U" else size


def _is_text(head: bytes) -> bool:
    """Whether it is UTF-8; a character may be cut at the end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\x00" not in head


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(f"content: got {what}", reason="CONTENT_REFUSED")
