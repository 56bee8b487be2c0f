"""What an uploaded data file is, told from its bytes alone: nothing is executed, unpickled or unpacked."""

from __future__ import annotations

import codecs
import io
import math
from typing import Any

from numpy.lib import format as npy

from guidehall.core.errors import InvalidArgument

# Enough for the largest header that is accepted, and to tell text from anything else.
HEAD_BYTES = 64 << 10
MAX_NPY_HEADER_CHARACTERS = 10_000
MAX_NPY_DIMENSIONS = 32

_NPY = b"\x93NUMPY"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# With members, empty, and in several parts.
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class DataInspector:
    """Recognises .npy and text; refuses pickles, archives, and arrays of Python objects."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._info: dict[str, Any] | None = None
        self._npy_bytes: int | None = None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidArgument: content that is not accepted.
        """
        if self._info is None:
            self._head += data[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                self._decide()

    def finish(self, size_bytes: int) -> dict[str, Any]:
        """What the content is: "format", and for an array "dtype", "shape" and "fortran_order".

        Raises:
            InvalidArgument: content that is not accepted, or an array that is not complete.
        """
        info = self._info if self._info is not None else self._decide()
        if self._npy_bytes is not None and size_bytes != self._npy_bytes:
            raise _refused(f"an .npy file of {size_bytes} bytes whose header asks for {self._npy_bytes}")
        return info

    def _decide(self) -> dict[str, Any]:
        head = bytes(self._head)
        if head.startswith(_PICKLES):
            raise _refused("a pickle, which could run code; save arrays with numpy.save(allow_pickle=False)")
        if head.startswith(_ZIPS):
            raise _refused(
                "a zip archive (such as .npz or a torch file); upload its arrays as .npy one by one"
            )
        if head.startswith(_NPY):
            self._info = self._read_npy(head)
        else:
            self._info = {"format": "text" if _is_text(head) else "binary"}
        return self._info

    def _read_npy(self, head: bytes) -> dict[str, Any]:
        stream = io.BytesIO(head)
        try:
            reader = _READERS[npy.read_magic(stream)]
            shape, fortran_order, dtype = reader(stream, max_header_size=MAX_NPY_HEADER_CHARACTERS)
        except KeyError:
            raise _refused("an .npy file of another format version than 1.0 and 2.0") from None
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise _refused("an .npy file whose header makes no sense") from None
        if dtype.hasobject:
            raise _refused("an array of Python objects, which is a pickle; numbers are accepted")
        if len(shape) > MAX_NPY_DIMENSIONS or any(length < 0 for length in shape):
            raise _refused(f"an .npy file of shape {shape}")
        self._npy_bytes = stream.tell() + math.prod(shape) * dtype.itemsize
        return {
            "format": "npy",
            "dtype": dtype.name if dtype.names is None else str(dtype),
            "shape": list(shape),
            "fortran_order": fortran_order,
        }


def _is_text(head: bytes) -> bool:
    """Whether it is UTF-8; a character may be cut at the end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\x00" not in head


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(f"content: got {what}", reason="CONTENT_REFUSED")
