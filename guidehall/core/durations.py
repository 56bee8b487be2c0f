"""Lengths of time as people write them: whole seconds, or numbers with units, such as "30m" or "1h30m"."""

from __future__ import annotations

import re

from guidehall.core.errors import InvalidArgument

ALLOWED = 'seconds, or numbers with the units s, m, h, d, such as "90", "30m" or "1h30m"'

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([smhd])")
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+")
# What a signed 64-bit field and a JSON number both hold.
_LONGEST_SECONDS = 2**53 - 1


def whole_seconds(value: int | float | str, field: str) -> int:
    """The length of time that `value` means, in seconds, rounded to whole ones.

    Raises:
        InvalidArgument: no such form, negative, or longer than 2^53 seconds; names `field`.
    """
    seconds = _parse(value.strip().lower()) if isinstance(value, str) else value
    # A comparison with NaN is false.
    if isinstance(value, bool) or seconds is None or not 0 <= seconds <= _LONGEST_SECONDS:
        raise InvalidArgument.field(field, value, ALLOWED)
    return round(seconds)


def _parse(text: str) -> float | None:
    if re.fullmatch(r"[0-9]{1,16}", text):
        return int(text)
    if not _WHOLE.fullmatch(text):
        return None
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(text))
