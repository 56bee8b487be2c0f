"""Durations as people write them: "30m", "2h", "1d12h", "7200"."""

from __future__ import annotations

import re

from guidehall.core.errors import InvalidArgument

ALLOWED = 'a duration such as "30m", "2h" or "1d12h" (d, h, m, s, in this order), or seconds such as "7200"'

_UNIT_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
# Days of more digits than this are no duration that anybody means.
_PATTERN = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _UNIT_SECONDS))
_LONGEST_SECONDS = 10**12


def seconds_in(value: int | float | str, field: str = "timeout") -> int:
    """The whole seconds that `value` means; spaces around text and between its parts do not count.

    Args:
        value: seconds, or text such as "1d12h", or digits alone for seconds.
        field: to blame.

    Raises:
        InvalidArgument: not a duration.
    """
    seconds = _seconds_of(value) if isinstance(value, str) else value
    # NaN is not within any bounds; True is a number in Python, but no duration.
    if isinstance(value, bool) or seconds is None or not 0 <= seconds < _LONGEST_SECONDS:
        raise InvalidArgument.field(field, value, ALLOWED)
    return round(seconds)


def _seconds_of(text: str) -> int | None:
    compact = "".join(text.split()).lower()
    if re.fullmatch(r"[0-9]{1,12}", compact):
        return int(compact)
    parts = _PATTERN.fullmatch(compact)
    if not compact or parts is None:
        return None
    numbers = (int(part or 0) for part in parts.groups())
    return sum(number * unit for number, unit in zip(numbers, _UNIT_SECONDS.values(), strict=True))
