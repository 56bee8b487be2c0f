"""The rules for what callers may put into a field; each refusal names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping

from guidehall.core.errors import InvalidArgument

# What is created: 1 to 63 of a-z, 0-9, "-", "_", ".".
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9_-]{1,63}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(;[ -~]{0,127})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
MAX_FILENAME_BYTES = 255
DEFAULT_MEDIA_TYPE = "application/octet-stream"


def text(field: str, value: str, longest: int) -> str:
    """A text for people, which the database can hold."""
    if len(value) > longest or "\x00" in value:
        raise InvalidArgument.field(field, value, f"at most {longest} characters, none of them NUL")
    return value


def identifier(field: str, value: str) -> str:
    """The last part of the name of something new."""
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidArgument.field(
            field, value, 'a letter or digit, then at most 62 of a-z, 0-9, "-", "_", "."'
        )
    return value


def labels(field: str, values: Mapping[str, str]) -> dict[str, str]:
    """Labels, as a filter can ask for them."""
    if len(values) > MAX_LABELS:
        raise InvalidArgument.field(field, f"{len(values)} labels", f"at most {MAX_LABELS}")
    for key, value in values.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidArgument.field(field, key, "keys of 1 to 63 letters, digits, - and _")
        text(f"{field}.{key}", value, MAX_LABEL_CHARACTERS)
    return dict(values)


def filename(field: str, value: str) -> str:
    """The name of a plain file: a receiver may write it into a folder."""
    bad = _CONTROL.search(value) or "/" in value or "\\" in value or value in ("", ".", "..")
    if bad or len(value.encode()) > MAX_FILENAME_BYTES:
        raise InvalidArgument.field(
            field, value, f"a file name of 1 to {MAX_FILENAME_BYTES} bytes without a folder"
        )
    return value


def media_type(field: str, value: str) -> str:
    """A media type; application/octet-stream when empty."""
    if value and not _MEDIA_TYPE.fullmatch(value):
        raise InvalidArgument.field(field, value, "a media type such as text/plain")
    return value or DEFAULT_MEDIA_TYPE


def sha256(field: str, value: str) -> str:
    """A digest as it is written here."""
    if not _SHA256.fullmatch(value):
        raise InvalidArgument.field(field, value, "64 lower-case hexadecimal digits")
    return value


def readable(told: str, most_characters: int) -> str:
    """What others say of themselves, as it is kept: in one line, cut to a length."""
    return "".join(sign if sign.isprintable() else " " for sign in told)[:most_characters]
