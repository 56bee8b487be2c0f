"""JSON documents and protobuf's Struct, which knows one kind of number only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import struct_pb2

from guidehall.core.errors import InvalidArgument

# A Struct holds doubles; beyond this, whole numbers would change on the way.
LARGEST_INTEGER = 2**53


def to_struct(document: Mapping[str, Any], field: str) -> struct_pb2.Struct:
    """`document` as a Struct.

    Raises:
        InvalidArgument: something in it is not JSON, not finite, or an integer beyond 2^53; names its path,
            which begins with `field`.
    """
    struct = struct_pb2.Struct()
    for key, value in document.items():
        _fill(struct.fields[_key(key, field)], value, f"{field}.{key}")
    return struct


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The document in `struct`, with whole numbers as int."""
    return {key: _value(value) for key, value in struct.fields.items()}


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise InvalidArgument.field(path, key, "keys must be text")
    return key


def _fill(target: struct_pb2.Value, value: Any, path: str) -> None:
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        value = value.tolist()
    if value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, (int, float)):
        target.number_value = _number(value, path)
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        for key, item in value.items():
            _fill(target.struct_value.fields[_key(key, path)], item, f"{path}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        target.list_value.SetInParent()
        for index, item in enumerate(value):
            _fill(target.list_value.values.add(), item, f"{path}[{index}]")
    else:
        raise InvalidArgument.field(
            path, value, "a JSON value: text, number, true, false, null, list or mapping"
        )


def _number(value: int | float, path: str) -> float:
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        raise InvalidArgument.field(path, value, "an integer below 2^53 in size")
    if not math.isfinite(value):
        raise InvalidArgument.field(path, value, "a finite number")
    return float(value)


def _value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < LARGEST_INTEGER else number
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    if kind in ("string_value", "bool_value"):
        return getattr(value, kind)
    return None
