"""JSON documents: numbers that survive the wire, one canonical text, its digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guidehall.core.errors import InvalidArgument

# A Struct carries numbers as doubles: from here on not every integer is one.
EXACT_INTEGERS = 2**53
MAX_DEPTH = 64
# Longer arrays are data, which a list of entries does without.
LARGE_ARRAY_ITEMS = 32


@dataclass(frozen=True)
class Document:
    """A JSON object, and the size and SHA-256 of its canonical text."""

    value: dict[str, Any]
    size_bytes: int
    sha256: str


def document(field: str, value: Mapping[str, Any], max_bytes: int) -> Document:
    """Checks what a Struct held.

    Raises:
        InvalidArgument: too large or too deep, or something in it that JSON or the database cannot carry.
    """
    checked: dict[str, Any] = _plain(value, field, 0)
    text = canonical(checked).encode()
    if len(text) > max_bytes:
        raise InvalidArgument.field(field, f"{len(text)} bytes", f"at most {max_bytes} bytes as JSON")
    return Document(checked, len(text), hashlib.sha256(text).hexdigest())


def canonical(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, Unicode as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Lower-case hexadecimal SHA-256 of the canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def without_large_arrays(value: Any) -> Any:
    """A copy in which arrays of more than 32 items, and objects that held nothing else, are left out."""
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            smaller = without_large_arrays(item)
            if not (_is_large(item) or (isinstance(item, dict) and item and not smaller)):
                kept[key] = smaller
        return kept
    if isinstance(value, list):
        return [without_large_arrays(item) for item in value if not _is_large(item)]
    return value


def _is_large(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LARGE_ARRAY_ITEMS


def _plain(value: Any, path: str, depth: int) -> Any:
    """`value` as JSON holds it: a whole number is an int however it arrived."""
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"{path[:200]}: nested more than {MAX_DEPTH} deep")
    match value:
        case None | bool():
            return value
        case str():
            return _storable(value, path)
        case float() | int():
            if not math.isfinite(value):
                raise InvalidArgument.field(path, value, "a finite number")
            return int(value) if abs(value) < EXACT_INTEGERS and int(value) == value else value
        case Mapping():
            return {
                _storable(key, path): _plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()
            }
        case list():
            return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise TypeError(f"{path}: {type(value).__name__} is not JSON")


def _storable(text: str, path: str) -> str:
    if "\x00" in text:
        raise InvalidArgument.field(path, text, "text without NUL characters")
    return text
