"""Long calculations that somebody may want to leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from guidehall.science.reflectometry.fit import CurveTarget, LogTarget

Pulse = Callable[[], object]
# Told what a long calculation is at, in words.
Tell = Callable[[str], None]
# In calculated points of curves: about half a second.
_AT_ONCE = 4_000_000


def nothing() -> None:
    """A pulse that never leaves."""


def silent(stage: str) -> None:
    """Tells nobody."""


class Watched:
    """A target that does its work in pieces, which bounds memory, and calls `pulse` before each.

    What `pulse` raises, a fit or the sampling that uses the target passes on.
    """

    def __init__(self, target: CurveTarget | LogTarget, pulse: Pulse = nothing) -> None:
        self._target, self._pulse = target, pulse
        self.parameters = target.parameters
        self._size = max(1, _AT_ONCE // target.points)

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([self._target.residuals(*part) for part in self._pieces(unit, rows, self._size)])

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, self._size // (1 + self.parameters))
        found = [self._target.linearise(*part) for part in self._pieces(unit, rows, size)]
        values, slopes = zip(*found, strict=True)
        return torch.cat(values), torch.cat(slopes)

    def _pieces(self, unit: Tensor, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # At least one, so that no points give results of the right shape.
        for first in range(0, max(1, len(unit)), size):
            self._pulse()
            yield unit[first : first + size], rows[first : first + size]
