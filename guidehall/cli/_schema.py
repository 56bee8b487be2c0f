"""Reads the JSON Schema of a pipeline's parameters as a list of fields with path, type, unit and range."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

# Stands for an index in the path of what is inside a list.
ITEM = "N"
_DEEPEST = 12


class Kind(Enum):
    """What a field's value is."""

    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TEXT = "text"
    CHOICE = "choice"
    # Numbers or words in a row.
    LIST = "list"
    # An object, or anything else that is easiest said in JSON.
    JSON = "json"


class _Missing(Enum):
    MISSING = 0


MISSING = _Missing.MISSING


@dataclass(frozen=True)
class Field:
    """One field of the parameters."""

    path: tuple[str, ...]
    kind: Kind
    title: str = ""
    description: str = ""
    unit: str = ""
    default: Any = MISSING
    required: bool = False
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    choices: tuple[Any, ...] = ()
    # Fewest and most entries of a list.
    fewest: int | None = None
    most: int | None = None
    # Whether other fields say the same in parts: an object, or a list of objects.
    composite: bool = False

    @property
    def dotted(self) -> str:
        """The path as people write it."""
        return ".".join(self.path)

    @property
    def indexed(self) -> str:
        """The path as requests have it, such as "stack.layers[1].thickness"."""
        first, *rest = self.path
        return first + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in rest)


def fields(schema: Mapping[str, Any]) -> list[Field]:
    """Every field of `schema`, objects before what is in them; list items have `ITEM` in their path."""
    return list(_object(schema, Reader(schema), Field((), Kind.JSON), MISSING))


def find(known: Sequence[Field], path: Sequence[str]) -> Field | None:
    """The field at `path`, whose list indices are numbers; None if there is none."""
    for field in known:
        if len(field.path) == len(path) and all(map(_fits, field.path, path)):
            return replace(field, path=tuple(path))
    return None


def setting(known: Sequence[Field], text: str) -> tuple[Field, str]:
    """The field that `PATH=VALUE` names, and the value's text.

    Raises:
        ValueError: not of this form, or there is no such field.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not PATH=VALUE")
    parts = path.strip().replace("[", ".").replace("]", "").replace("-", "_").split(".")
    field = find(known, parts)
    if field is None:
        raise ValueError(f"there is no parameter {path.strip()}")
    return field, value.strip()


def values(field: Field, text: str) -> list[Any]:
    """The values of a field, separated by commas, or as a JSON list.

    Raises:
        ValueError: says which value is wrong and what is allowed.
    """
    if text.startswith("["):
        listed = json.loads(text)
    else:
        listed = [parse(field, part.strip()) for part in text.split(",")]
    if not listed:
        raise ValueError("at least one value is needed")
    return list(listed)


def _fits(known: str, part: str) -> bool:
    return part.isdecimal() if known == ITEM else known == part


class Reader:
    """Follows the references within one JSON Schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """`schema` with its reference followed; what stands beside the reference counts more."""
        for _ in range(_DEEPEST):
            if "$ref" in schema:
                beside = {key: value for key, value in schema.items() if key != "$ref"}
                # The title of a definition is a class name, not the field's.
                target = {key: value for key, value in self._target(schema["$ref"]).items() if key != "title"}
                schema = {**target, **beside}
            elif len(schema.get("allOf", ())) == 1:
                beside = {key: value for key, value in schema.items() if key != "allOf"}
                schema = {**schema["allOf"][0], **beside}
            else:
                return schema
        return {}

    def properties(self, schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The properties of an object in their order, not resolved."""
        properties = schema.get("properties", {})
        # On its way the schema may have lost the order of its keys.
        order = [name for name in schema.get("propertyOrder", ()) if name in properties]
        return {name: properties[name] for name in [*order, *properties]}

    def _target(self, reference: str) -> Mapping[str, Any]:
        node: Any = self._root
        for part in reference.removeprefix("#/").split("/"):
            node = node.get(part.replace("~1", "/").replace("~0", "~"), {})
        return node if isinstance(node, Mapping) else {}


def _object(schema: Mapping[str, Any], reader: Reader, parent: Field, default: Any) -> Iterator[Field]:
    """The fields of an object; `default` is what its parent says it is when left out."""
    required = schema.get("required", ())
    for name, entry in reader.properties(schema).items():
        value = default.get(name, MISSING) if isinstance(default, Mapping) else MISSING
        yield from _field(entry, reader, parent, name, value, name in required)


def _field(
    schema: Mapping[str, Any], reader: Reader, parent: Field, name: str, default: Any, required: bool
) -> Iterator[Field]:
    resolved, nullable = without_null(reader.resolve(schema), reader)
    if default is MISSING:
        default = resolved.get("default", MISSING)
    field = replace(
        _typed(resolved, Field((*parent.path, name), Kind.JSON)),
        title=_title(resolved, parent),
        description=str(resolved.get("description", "")),
        unit=str(resolved.get("unit", parent.unit)),
        default=default,
        required=required and default is MISSING,
        nullable=nullable,
    )
    yield field
    if len(field.path) >= _DEEPEST:
        return
    if field.composite and resolved.get("type") == "array":
        item = Field((*field.path, ITEM), Kind.JSON, unit=field.unit, composite=True)
        yield item
        yield from _object(reader.resolve(resolved["items"]), reader, item, MISSING)
    elif field.composite:
        yield from _object(resolved, reader, field, default)


def _title(schema: Mapping[str, Any], parent: Field) -> str:
    title = str(schema.get("title", ""))
    if not title or not parent.title:
        return title
    # "Lowest" alone says little: "Scale, lowest" does. Signs such as SLD keep their capitals.
    _, _, near = parent.title.rpartition(", ")
    return f"{near}, {title if title[1:2].isupper() else title[:1].lower() + title[1:]}"


def without_null(schema: Mapping[str, Any], reader: Reader) -> tuple[Mapping[str, Any], bool]:
    """What a schema allows beside null, and whether it allows that."""
    variants = [reader.resolve(variant) for variant in schema.get("anyOf", schema.get("oneOf", ()))]
    others = [variant for variant in variants if variant.get("type") != "null"]
    if len(others) != 1:
        return schema, len(others) != len(variants)
    beside = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
    return {**others[0], **beside}, len(variants) > 1


def _typed(schema: Mapping[str, Any], field: Field) -> Field:
    kind = schema.get("type")
    if "enum" in schema or "const" in schema:
        return replace(field, kind=Kind.CHOICE, choices=tuple(schema.get("enum", (schema.get("const"),))))
    if kind in ("integer", "number"):
        exclusive = "exclusiveMinimum" in schema, "exclusiveMaximum" in schema
        return replace(
            field,
            kind=Kind(kind),
            minimum=schema.get("exclusiveMinimum", schema.get("minimum")),
            maximum=schema.get("exclusiveMaximum", schema.get("maximum")),
            exclusive_minimum=exclusive[0],
            exclusive_maximum=exclusive[1],
        )
    if kind == "boolean":
        return replace(field, kind=Kind.BOOLEAN)
    if kind == "string":
        return replace(field, kind=Kind.TEXT)
    if kind == "array":
        items = schema.get("items", {})
        plain = isinstance(items, Mapping) and items.get("type") in ("integer", "number", "string")
        limits = replace(field, fewest=schema.get("minItems"), most=schema.get("maxItems"))
        return replace(limits, kind=Kind.LIST) if plain else replace(limits, composite=bool(items))
    return replace(field, composite="properties" in schema)


def parse(field: Field, text: str) -> Any:
    """The JSON value that `text` means for `field`.

    Raises:
        ValueError: says what is allowed.
    """
    if field.nullable and text == "null":
        return None
    if field.kind in (Kind.INTEGER, Kind.NUMBER):
        return _number(field, text)
    if field.kind is Kind.BOOLEAN:
        return _choice({"true": True, "false": False}, text.lower())
    if field.kind is Kind.CHOICE:
        return _choice({_word(choice): choice for choice in field.choices}, text)
    if field.kind is Kind.TEXT:
        return text
    if field.kind is Kind.LIST and not text.lstrip().startswith("["):
        return [_scalar(part.strip()) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{text!r} is not JSON") from None


def _number(field: Field, text: str) -> int | float:
    try:
        value = int(text) if field.kind is Kind.INTEGER else float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not {'an integer' if field.kind is Kind.INTEGER else 'a number'}"
        ) from None
    low, high = field.minimum, field.maximum
    too_low = low is not None and (value <= low if field.exclusive_minimum else value < low)
    too_high = high is not None and (value >= high if field.exclusive_maximum else value > high)
    if too_low or too_high or value != value:
        raise ValueError(f"{text} is not {limits(field)}")
    return value


def _choice(known: Mapping[str, Any], text: str) -> Any:
    if text not in known:
        raise ValueError(f"{text!r} is not one of {', '.join(known)}")
    return known[text]


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def limits(field: Field) -> str:
    """The range of a number in words, such as "from 1 to 100"; empty without one."""
    low = (
        "" if field.minimum is None else f"{'above' if field.exclusive_minimum else 'from'} {field.minimum:g}"
    )
    high = (
        "" if field.maximum is None else f"{'below' if field.exclusive_maximum else 'to'} {field.maximum:g}"
    )
    if high and not low:
        high = high if field.exclusive_maximum else f"at most {field.maximum:g}"
    return f"{low} {high}".strip()


def describe(field: Field) -> str:
    """A field in one line of help: what it is, its unit, range and default."""
    facts = [field.unit, limits(field)]
    facts.append(_entries(field))
    if field.choices:
        facts.append("|".join(_word(choice) for choice in field.choices))
    if field.required:
        facts.append("required")
    elif field.default is not MISSING and not field.composite and field.default not in ("", None):
        facts.append(f"default {_word(field.default)}")
    said = ". ".join(text.rstrip(".") for text in (field.title, field.description) if text)
    known = "; ".join(fact for fact in facts if fact)
    said = f"{said[:1].upper()}{said[1:]}." if said else ""
    return f"{said} [{known}]".strip() if known else said


def _entries(field: Field) -> str:
    if field.fewest is not None and field.most is not None:
        return f"{field.fewest} to {field.most} entries"
    if field.fewest is not None:
        return f"{field.fewest} or more entries"
    return "" if field.most is None else f"at most {field.most} entries"


def assign(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Puts `value` at `path` of `document`, making what is missing on the way.

    Raises:
        ValueError: a list would get a gap, or something on the way is neither an object nor a list.
    """
    node: Any = document
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        # What a missing container on the way must be is told by the part that follows it.
        fresh: Any = value if last else ([] if path[depth + 1].isdecimal() else {})
        if isinstance(node, dict):
            node[part] = fresh if last else node.get(part, fresh)
            node = node[part]
        elif isinstance(node, list) and part.isdecimal():
            index = int(part)
            if index > len(node):
                raise ValueError(f"{'.'.join(path[:depth])} has {len(node)} entries: the next is {len(node)}")
            if index == len(node):
                node.append(fresh)
            elif last:
                node[index] = fresh
            node = node[index]
        else:
            raise ValueError(f"{'.'.join(path[:depth])} is {json.dumps(node)}, which has no parts")
