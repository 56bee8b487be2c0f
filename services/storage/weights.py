"""Proof that a file is what it claims to be: safetensors, read by its header alone."""

from __future__ import annotations

import json
import math
from typing import Any

from guidehall.core.errors import InvalidArgument

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 10_000
# The product of a longer shape would be a number that takes seconds to calculate.
_MAX_RANK = 32
_MAX_LENGTH = 1 << 53
_LENGTH_BYTES = 8
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class WeightsInspector:
    """Accepts a safetensors file whose tensors fill it exactly."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._size_bytes: int | None = None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidArgument: not a safetensors header.
        """
        if self._size_bytes is not None:
            return
        self._head += data[: _LENGTH_BYTES + MAX_HEADER_BYTES - len(self._head)]
        if len(self._head) < _LENGTH_BYTES:
            return
        length = int.from_bytes(self._head[:_LENGTH_BYTES], "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _refused(f"a header of {length} bytes; 2 to {MAX_HEADER_BYTES} are allowed")
        if len(self._head) >= _LENGTH_BYTES + length:
            header = bytes(self._head[_LENGTH_BYTES : _LENGTH_BYTES + length])
            self._size_bytes = _LENGTH_BYTES + length + _data_bytes(header)
            self._head.clear()

    def finish(self, size_bytes: int) -> dict[str, Any]:
        """Nothing to tell: a model's manifest says it all.

        Raises:
            InvalidArgument: the file ends elsewhere than its header says.
        """
        if self._size_bytes is None:
            raise _refused("no complete header")
        if self._size_bytes != size_bytes:
            raise _refused(f"{size_bytes} bytes; its header asks for {self._size_bytes}")
        return {}


def _data_bytes(header: bytes) -> int:
    """How many bytes the tensors fill, one right after the other."""
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError):
        raise _refused("a header that is no JSON") from None
    if not isinstance(tensors, dict) or len(tensors) > MAX_TENSORS:
        raise _refused(f"a header that is no object of at most {MAX_TENSORS} tensors")
    tensors.pop("__metadata__", None)
    spans = sorted(_span(name, tensor) for name, tensor in tensors.items())
    end = 0
    for start, stop in spans:
        if start != end:
            raise _refused("tensors that overlap or leave gaps")
        end = stop
    return end


def _span(name: str, tensor: Any) -> tuple[int, int]:
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if (
            dtype in _ITEM_BITS
            and len(shape) <= _MAX_RANK
            and all(type(length) is int and 0 <= length < _MAX_LENGTH for length in shape)
        ):
            if 0 <= start <= stop and (stop - start) * 8 == math.prod(shape) * _ITEM_BITS[dtype]:
                return start, stop
    raise _refused(f"tensor {name[:80]!r} that is not described as safetensors does")


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument(f"weights: got {what}", reason="WEIGHTS_REFUSED")
