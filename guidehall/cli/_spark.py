"""The course of a number, or a curve, in one line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from guidehall.cli._output import clean, number

COLUMNS = 40
_BLOCKS = "▁▂▃▄▅▆▇█"
# For terminals that have no blocks.
_ASCII = "_.-=*#"
# A loss that falls by more than this is shown by its order of magnitude.
_LOGARITHMIC = 20.0


class Course:
    """The values of a number while it changes, thinned out evenly so that its whole past stays in sight."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._every = 1
        self._seen = 0

    def add(self, value: float) -> None:
        """The newest value; NaN and infinities are left out."""
        if not math.isfinite(value):
            return
        if self._seen % self._every == 0:
            self.values.append(value)
        else:
            # The end of the line is always the newest value.
            self.values[-1] = value
        self._seen += 1
        if len(self.values) == 2 * COLUMNS:
            self.values = self.values[::2]
            self._every *= 2


def sparkline(
    values: Sequence[float], encoding: str = "utf-8", bounds: tuple[float, float] | None = None
) -> str:
    """Values as blocks of different heights, at most `COLUMNS` of them.

    Args:
        values: finite.
        encoding: of the terminal.
        bounds: values of the lowest and the highest block; their own extremes when not given. Positive values
            that differ a lot are then drawn by their logarithms.
    """
    blocks = _BLOCKS if "utf" in encoding.lower() else _ASCII
    shown = (
        [values[index * len(values) // COLUMNS] for index in range(COLUMNS)]
        if (len(values) > COLUMNS)
        else list(values)
    )
    if shown and len(values) > COLUMNS:
        shown[-1] = values[-1]
    low, high = bounds or (min(shown, default=0.0), max(shown, default=0.0))
    if bounds is None and low > 0 and high / low > _LOGARITHMIC:
        shown, low, high = [math.log(value) for value in shown], math.log(low), math.log(high)
    # Half of it each: the difference of two finite numbers need not be one.
    span = high / 2 - low / 2
    scale = (len(blocks) - 1) / span if span > 0 else 0.0
    return "".join(
        blocks[min(len(blocks) - 1, max(0, round((value / 2 - low / 2) * scale)))] for value in shown
    )


def rows_of(document: Mapping[str, Any], encoding: str = "utf-8") -> list[str]:
    """The curves in a preview, such as the true and the predicted profile, below each other.

    Every list of numbers is one; those that rise in equal steps are axes, of which only the range is told.
    The others share one scale, so that they can be compared.
    """
    curves = {clean(name): numbers for name, item in document.items() if (numbers := _numbers(item))}
    axes = {name for name, numbers in curves.items() if len(numbers) > 2 and _is_axis(numbers)}
    drawn = [value for name, numbers in curves.items() if name not in axes for value in numbers]
    bounds = (min(drawn), max(drawn)) if drawn else None
    width = max(map(len, curves), default=0)
    return [
        f"{name:<{width}}  "
        + (
            f"{number(numbers[0])} to {number(numbers[-1])}"
            if name in axes
            else f"{sparkline(numbers, encoding, bounds)} {number(min(numbers))} to {number(max(numbers))}"
        )
        for name, numbers in sorted(curves.items(), key=lambda item: (item[0] not in axes, item[0]))
    ]


def _numbers(item: Any) -> list[float]:
    """A list of two or more finite numbers; empty for anything else."""
    if not isinstance(item, list) or len(item) < 2:
        return []
    plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in item)
    return [float(value) for value in item] if plain and all(map(math.isfinite, item)) else []


def _is_axis(numbers: Sequence[float]) -> bool:
    """Whether they rise in equal steps, or by equal factors."""
    if numbers[0] > 0 and _even([math.log(value) for value in numbers if value > 0]):
        return numbers[-1] > numbers[0]
    return numbers[-1] > numbers[0] and _even(numbers)


def _even(numbers: Sequence[float]) -> bool:
    step = (numbers[-1] - numbers[0]) / (len(numbers) - 1)
    return all(abs(right - left - step) <= 1e-3 * abs(step) for left, right in pairwise(numbers))
