"""Rules that hold for every request by the names of its fields, before any service looks at it."""

from __future__ import annotations

import math
import uuid
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from guidehall.core.errors import InvalidArgument

MAX_STRING_BYTES = 64 << 10
MAX_PAGE_TOKEN_CHARACTERS = 1024
# protobuf reads no more than 100 levels of messages, and a Struct takes three for each of its own.
MAX_STRUCT_DEPTH = 30


def validate(request: Message, max_struct_bytes: int) -> None:
    """Checks a request's own fields.

    Raises:
        InvalidArgument: a negative page size, a request id that is no UUID, a struct that is too large or too
            deep or holds a number that is not finite, or a text that is too long.
    """
    for field, value in request.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            _check_texts(field, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if isinstance(value, Struct):
                # Before anything walks through its values, each of which costs everybody's time.
                size = value.ByteSize()
                if size > max_struct_bytes:
                    raise InvalidArgument.field(
                        field.name, f"{size} bytes", f"at most {max_struct_bytes} bytes"
                    )
                _check_struct(field.name, value, 0)
        elif field.name == "page_size" and value < 0:
            raise InvalidArgument.field("page_size", value, "0 or more")


def _check_texts(field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        for index, text in enumerate(value):
            _check_length(f"{field.name}[{index}]", text)
        return
    _check_length(field.name, value)
    if field.name == "page_token" and len(value) > MAX_PAGE_TOKEN_CHARACTERS:
        raise InvalidArgument.field(field.name, value, "a next_page_token of an earlier answer")
    if field.name == "request_id":
        try:
            uuid.UUID(value)
        except ValueError:
            raise InvalidArgument.field(field.name, value, "a UUID") from None


def _check_length(name: str, text: str) -> None:
    # In UTF-8 a text has at least as many bytes as characters, and at most four times as many.
    characters = len(text)
    if characters > MAX_STRING_BYTES or (
        4 * characters > MAX_STRING_BYTES and len(text.encode()) > MAX_STRING_BYTES
    ):
        raise InvalidArgument.field(name, text, f"at most {MAX_STRING_BYTES} bytes")


def _check_struct(path: str, struct: Struct, depth: int) -> None:
    for key, value in struct.fields.items():
        _check_value(f"{path}.{key}", value, depth + 1)


def _check_value(path: str, value: Value, depth: int) -> None:
    if depth > MAX_STRUCT_DEPTH:
        raise InvalidArgument(f"{path[:200]}: nested more than {MAX_STRUCT_DEPTH} deep")
    kind = value.WhichOneof("kind")
    if kind == "number_value" and not math.isfinite(value.number_value):
        raise InvalidArgument.field(path, value.number_value, "a finite number")
    if kind == "struct_value":
        _check_struct(path, value.struct_value, depth)
    if kind == "list_value":
        _check_list(path, value.list_value, depth)


def _check_list(path: str, values: ListValue, depth: int) -> None:
    items: Any = values.values
    for index, item in enumerate(items):
        _check_value(f"{path}[{index}]", item, depth + 1)
