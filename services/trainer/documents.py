"""JSON documents: numbers that survive the wire, one canonical text, its digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from guidehall.core.errors import InvalidArgument

# A Struct carries numbers as doubles: from here on not every integer is one.
EXACT_INTEGERS = 2**53

Document = dict[str, Any]


def plain(value: Any, path: str) -> Any:
    """`value` as JSON holds it: a whole number is an int however it arrived.

    Args:
        value: what json.loads, pydantic's model_dump or a Struct's decoder gives.
        path: of the value, to blame; such as "params".

    Raises:
        InvalidArgument: a number that JSON or a Struct cannot carry exactly, or a text that Postgres cannot.
    """
    match value:
        case None | bool():
            return value
        case str():
            if "\x00" in value:
                raise InvalidArgument.field(path, value, "text without NUL characters")
            return value
        case int():
            if abs(value) >= EXACT_INTEGERS:
                raise InvalidArgument.field(path, value, "an integer below 2^53")
            return value
        case float():
            if not math.isfinite(value):
                raise InvalidArgument.field(path, value, "a finite number")
            return int(value) if value.is_integer() and abs(value) < EXACT_INTEGERS else value
        case Mapping():
            return {plain(key, path): plain(item, f"{path}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{path}: {type(value).__name__} is not JSON")


def canonical(document: Any) -> str:
    """The one text of a document: sorted keys, no spaces, Unicode as it is."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(document: Any) -> str:
    """Lower-case hexadecimal SHA-256 of the canonical text."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def cleaned(text: str, longest: int) -> str:
    """A text of a worker as it may be stored: no NUL, which Postgres refuses, and not too long."""
    text = text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= longest else text[: longest - 1] + "…"
