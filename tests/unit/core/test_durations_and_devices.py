"""Durations as people write them; device classes and which may stand in for which."""

from __future__ import annotations

import pytest

from guidehall.core.devices import DEVICE_CLASSES, at_or_below, class_of_pool, device_class
from guidehall.core.durations import seconds_in
from guidehall.core.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800),
        ("2h", 7200),
        ("1d12h", 129_600),
        ("7200", 7200),
        ("45s", 45),
        (" 1D 2H 3m 4s ", 93_784),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "h", "12h1d", "1.5h", "-1", "2 hours", "1h1h", "9" * 13, "٣"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidArgument, match="30m") as refusal:
        seconds_in(text, "time_limit")
    assert refusal.value.violations[0].field == "time_limit"


def test_classes_are_known_in_any_case_and_step_down_to_the_cpu() -> None:
    assert device_class("h200") == "H200"
    assert class_of_pool("a100-80gb") == "A100-80GB"
    assert class_of_pool("beamline") == ""
    assert at_or_below("L4") == ("L4", "T4", "cpu")
    assert at_or_below("L4", gpu_only=True) == ("L4", "T4")
    assert at_or_below("B200") == DEVICE_CLASSES
    with pytest.raises(InvalidArgument, match="one of B200"):
        device_class("V100")
