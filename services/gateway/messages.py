"""Protocol buffer messages as JSON, and their JSON Schema: one rule for every message.

Field names stay as in the protos (snake_case); 64-bit integers are numbers, timestamps RFC 3339 strings,
enum values drop the enum's own prefix (`JOB_STATE_RUNNING` reads `RUNNING`), structs are plain JSON, and
doubles that JSON has no word for (NaN, infinities) are null.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value

from guidehall.core.errors import InvalidArgument, Violation
from guidehall.core.validation import MAX_STRUCT_DEPTH

Json = dict[str, Any]

_INTEGERS = {
    FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64,
}  # fmt: skip
_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
}
_DOUBLES = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}
_SHOWN_KEY_CHARACTERS = 80


def enum_text(enum: EnumDescriptor, number: int) -> str:
    """The short name of an enum's value; its number as text when this version does not know it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(enum))


def enum_number(enum: EnumDescriptor, text: str) -> int | None:
    """The number of an enum's short name; None when there is none."""
    value = enum.values_by_name.get(_prefix(enum) + text.upper())
    return None if value is None or value.number == 0 else int(value.number)


def enum_choices(enum: EnumDescriptor) -> list[str]:
    """The short names, without the unspecified one."""
    return [enum_text(enum, value.number) for value in enum.values if value.number != 0]


def _prefix(enum: EnumDescriptor) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"


def to_json(message: Message) -> Json:
    """The message as a JSON object. Scalars are always there; messages and `optional` fields only when
    set."""
    result: Json = {}
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        if (
            field.containing_oneof is not None
            and message.WhichOneof(field.containing_oneof.name) != field.name
        ):
            continue
        result[field.name] = _field_json(field, getattr(message, field.name))
    return result


def _field_json(field: FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        element = _element_json(_map_value(field))
        return {str(key): element(value[key]) for key in value}
    element = _element_json(field)
    return [element(item) for item in value] if field.is_repeated else element(value)


def _element_json(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.message_type is not None:
        if field.message_type.full_name == Struct.DESCRIPTOR.full_name:
            return struct_json
        return MessageToDict if field.message_type.full_name in _WELL_KNOWN else to_json
    if field.enum_type is not None:
        enum = field.enum_type
        return lambda number: enum_text(enum, number)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda data: base64.b64encode(data).decode("ascii")
    return _finite if field.type in _DOUBLES else _plain


def struct_json(struct: Struct) -> Json:
    """A struct as plain JSON; its numbers are doubles on the wire, so whole ones become integers again."""
    return {key: _value_json(value) for key, value in struct.fields.items()}


def _value_json(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return struct_json(value.struct_value)
    if kind == "list_value":
        return [_value_json(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else _finite(number)
    return None if kind in (None, "null_value") else getattr(value, kind)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    return value


def to_struct(document: Json, field: str) -> Struct:
    """A caller's JSON object as a struct; `field` is where the request has it.

    Raises:
        InvalidArgument: nested too deep, a number that is no finite double, text that is not Unicode; it
            names the place.
    """
    struct = Struct()
    with _placed(field) as place:
        _fill_struct(struct, document, place)
    return struct


def to_values(items: list[Any], field: str) -> ListValue:
    """A caller's JSON array as a list of values.

    Raises:
        InvalidArgument: as `to_struct`.
    """
    values = ListValue()
    with _placed(field) as place:
        _fill_list(values, items, place)
    return values


def path_of(place: Iterable[object]) -> str:
    """Where in the body something is, as the services write it: `curve.segments[0].scale`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}"[:_SHOWN_KEY_CHARACTERS] for part in place)
    return "".join(parts).lstrip(".")


@contextmanager
def _placed(field: str) -> Iterator[list[object]]:
    """Where in the request the block is, for it to keep; what it cannot take is refused with that place."""
    place: list[object] = [field]
    try:
        yield place
        return
    except UnicodeEncodeError:
        problem = "not Unicode text: it has half of a surrogate pair"
    except OverflowError:
        problem = "not a finite double"
    except _TooDeep:
        problem = f"nested deeper than {MAX_STRUCT_DEPTH} levels"
        # The place would be longer than any explanation.
        place = [field]
    path = path_of(place)
    raise InvalidArgument(f"{path}: {problem}", violations=[Violation(path, problem)])


class _TooDeep(Exception):
    pass


def _fill_struct(struct: Struct, document: Json, place: list[object]) -> None:
    if len(place) > MAX_STRUCT_DEPTH:
        raise _TooDeep
    for key, item in document.items():
        place.append(key)
        _fill(struct.fields[key], item, place)
        place.pop()


def _fill_list(values: ListValue, items: list[Any], place: list[object]) -> None:
    if len(place) > MAX_STRUCT_DEPTH:
        raise _TooDeep
    for index, item in enumerate(items):
        place.append(index)
        _fill(values.values.add(), item, place)
        place.pop()


def _fill(value: Value, item: Any, place: list[object]) -> None:
    if item is None:
        value.null_value = NullValue.NULL_VALUE
    elif isinstance(item, bool):
        value.bool_value = item
    elif isinstance(item, str):
        value.string_value = item
    elif isinstance(item, dict):
        value.struct_value.SetInParent()
        _fill_struct(value.struct_value, item, place)
    elif isinstance(item, list):
        value.list_value.SetInParent()
        _fill_list(value.list_value, item, place)
    else:
        number = float(item)
        if not math.isfinite(number):
            raise OverflowError
        value.number_value = number


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    entry: Any = field.message_type
    value: FieldDescriptor = entry.fields_by_name["value"]
    return value


def schema(descriptor: Descriptor, components: Json) -> Json:
    """A reference to the message's JSON Schema, which is added to `components` with all it needs."""
    if descriptor.full_name in _WELL_KNOWN:
        return _WELL_KNOWN[descriptor.full_name]
    if descriptor.name not in components:
        components[descriptor.name] = body = {"type": "object", "title": descriptor.name, "properties": {}}
        properties: Json = body["properties"]  # type: ignore[assignment]
        for field in descriptor.fields:
            properties[field.name] = _field_schema(field, components)
    return {"$ref": f"#/components/schemas/{descriptor.name}"}


def _field_schema(field: FieldDescriptor, components: Json) -> Json:
    if _is_map(field):
        return {"type": "object", "additionalProperties": _element_schema(_map_value(field), components)}
    element = _element_schema(field, components)
    return {"type": "array", "items": element} if field.is_repeated else element


def _element_schema(field: FieldDescriptor, components: Json) -> Json:
    if field.message_type is not None:
        return schema(field.message_type, components)
    if field.enum_type is not None:
        return {
            "type": "string",
            "enum": [enum_text(field.enum_type, value.number) for value in field.enum_type.values],
        }
    if field.type in _INTEGERS:
        return {"type": "integer"}
    if field.type in _DOUBLES:
        return {"type": ["number", "null"]}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return {"type": "string"}
