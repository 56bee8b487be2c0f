"""Lengths of time: every form that is taken, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from guidehall.core.durations import seconds_in
from guidehall.core.errors import InvalidArgument


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (90, 90),
        (89.6, 90),
        ("", None),
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        (" 30 M ", 1800),
        ("2h", 7200),
        ("1.5h", None),
        ("1h30m", 5400),
        ("30d", 2_592_000),
        ("1d 2h", 93_600),
        ("30m1h", None),
        (10**12 - 1, 10**12 - 1),
        (10**12, None),
        (-1, None),
        (math.nan, None),
        (math.inf, None),
        (True, None),
        ("-5m", None),
        ("5 parsecs", None),
        ("30m5", None),
        ("m", None),
        ("1e3s", None),
        ("9" * 40, None),
        ("999999999999d", None),
        ("\u0665m", None),
    ],
)
def test_a_length_of_time_is_read_or_refused(value: int | float | str, seconds: int | None) -> None:
    if seconds is not None:
        assert seconds_in(value, "timeout") == seconds
        return
    with pytest.raises(InvalidArgument) as caught:
        seconds_in(value, "timeout")
    assert [violation.field for violation in caught.value.violations] == ["timeout"]
