"""Durations as people write them: "30m", "2h", "1d12h", "7200"."""

from __future__ import annotations

import re

from guidehall.core.errors import InvalidArgument

_UNIT_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_ALLOWED = 'a duration such as "30m", "2h" or "1d12h" (d, h, m, s, in this order), or seconds such as "7200"'
# Days of more digits than this are no duration that anybody means.
_PATTERN = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _UNIT_SECONDS))


def seconds_in(text: str, field: str = "timeout") -> int:
    """The seconds that `text` means; spaces around it and between its parts do not count.

    Args:
        text: such as "1d12h", or digits alone for seconds.
        field: to blame.

    Raises:
        InvalidArgument: not a duration.
    """
    compact = "".join(text.split()).lower()
    if re.fullmatch(r"[0-9]{1,12}", compact):
        return int(compact)
    parts = _PATTERN.fullmatch(compact)
    if not compact or parts is None:
        raise InvalidArgument.field(field, text, _ALLOWED)
    numbers = (int(part or 0) for part in parts.groups())
    return sum(number * unit for number, unit in zip(numbers, _UNIT_SECONDS.values(), strict=True))
