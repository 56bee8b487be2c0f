"""What is known before the measurement: a unit cube of free parameters, and the films it stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from guidehall.science.reflectometry.kernel import Media, depth_grid, measured_reflectivity
from guidehall.science.reflectometry.params import SLD_UNIT, Range, StackPrior, TrainingProbe

_KINDS = ("sld", "isld", "thickness", "roughness", "scale", "background")
_UNITS = {"sld": SLD_UNIT, "isld": SLD_UNIT, "thickness": "angstrom", "roughness": "angstrom"}


@dataclass(frozen=True)
class FreeParameter:
    """One parameter to find.

    Attributes:
        name: such as "film.thickness".
        log: whether it is drawn evenly in its logarithm.
    """

    name: str
    unit: str
    lower: float
    upper: float
    log: bool = False


@dataclass(frozen=True)
class _Slot:
    """A number that a film or its measurement needs, free or not."""

    parameter: FreeParameter
    # Where it goes: "sld", "isld", "thickness", "roughness", "scale" or "background".
    kind: str


class Prior:
    """Maps points of the unit cube, [B, P], to films and their curves.

    Attributes:
        free: the P parameters with lower < upper: fronting, layers, backing, scale, background.
    """

    def __init__(self, stack: StackPrior, probe: TrainingProbe, device: str = "cpu") -> None:
        slots = list(_slots(stack, probe))
        is_free = [slot.parameter.lower < slot.parameter.upper for slot in slots]
        self.free = tuple(slot.parameter for slot, free in zip(slots, is_free, strict=True) if free)
        self._beam_from_backing = stack.beam == "backing"
        self._columns = {kind: [i for i, slot in enumerate(slots) if slot.kind == kind] for kind in _KINDS}
        self._free_columns = [i for i, free in enumerate(is_free) if free]

        def tensor(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=device)

        self._defaults = tensor([slot.parameter.lower for slot in slots])
        bounds = [_working(parameter) for parameter in self.free]
        self._lower = tensor([low for low, _ in bounds])
        self._width = tensor([high - low for low, high in bounds])
        self._log = torch.tensor([parameter.log for parameter in self.free], device=device)

    def values(self, unit: Tensor) -> Tensor:
        """Physical values, [B, P], of points in the unit cube."""
        working = self._lower + unit.double() * self._width
        # exp of what is not a logarithm could overflow, and where() would pass its NaN gradient on.
        return torch.where(self._log, torch.where(self._log, working, 0.0).exp(), working)

    def unit(self, values: Tensor) -> Tensor:
        """Points in the unit cube, [B, P], of physical values; the inverse of `values`."""
        working = torch.where(self._log, torch.where(self._log, values, 1.0).log(), values)
        return (working - self._lower) / self._width

    def films(self, values: Tensor) -> Media:
        """Films with these free parameters, fronting medium first."""
        return self._media(self._complete(values))

    def depth_grid(self, points: int) -> Tensor:
        """One depth grid, [points], that holds the profile of every film of this prior."""
        ends = torch.tensor([[0.0], [1.0]], device=self._lower.device)
        return depth_grid(self.films(self.values(ends.expand(2, len(self.free)))), points)

    def measured(self, q: Tensor, sigma: Tensor | None, values: Tensor, order: int = 33) -> Tensor:
        """Curves of these films, scale and background included; see `kernel.measured_reflectivity`."""
        numbers = self._complete(values)
        media = self._media(numbers)
        if self._beam_from_backing:
            media = media.reversed()
        scale, background = numbers[:, self._columns["scale"][0]], numbers[:, self._columns["background"][0]]
        return measured_reflectivity(q, sigma, media, scale, background, order)

    def _complete(self, values: Tensor) -> Tensor:
        numbers = self._defaults.repeat(len(values), 1)
        numbers[:, self._free_columns] = values.double()
        return numbers

    def _media(self, numbers: Tensor) -> Media:
        return Media(*(numbers[:, self._columns[kind]] for kind in ("sld", "isld", "thickness", "roughness")))


def _slots(stack: StackPrior, probe: TrainingProbe) -> Iterator[_Slot]:
    for part in (stack.fronting, *stack.layers, stack.backing):
        for kind in ("thickness", "sld", "isld", "roughness"):
            bounds: Range | None = getattr(part, kind, None)
            if bounds is not None:
                name = f"{part.name}.{kind}"
                yield _Slot(FreeParameter(name, _UNITS[kind], bounds.min, bounds.max), kind)
    yield _Slot(FreeParameter("scale", "", probe.scale.min, probe.scale.max), "scale")
    background = probe.background
    yield _Slot(
        FreeParameter("background", "", background.min, background.max, not background.fixed), "background"
    )


def _working(parameter: FreeParameter) -> tuple[float, float]:
    """Bounds in the variable that is drawn evenly."""
    bounds = (parameter.lower, parameter.upper)
    return (math.log(bounds[0]), math.log(bounds[1])) if parameter.log else bounds
