"""What is known before the measurement: a unit cube of free parameters, and the films it stands for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.kernel import Media, depth_grid
from guidehall.science.reflectometry.params import SLD_UNIT, Range, StackPrior, TrainingProbe
from guidehall.science.reflectometry.resolution import Resolution, quadrature

_FILM = ("sld", "isld", "thickness", "roughness")
_KINDS = (*_FILM, "scale", "background", "q_offset")
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
    # Where it goes: one of _KINDS.
    kind: str


@dataclass(frozen=True)
class Linearised:
    """Curves and their derivatives by the free parameters of the unit cube.

    Attributes:
        r: [B, N].
        slopes: [B, P, N].
    """

    r: Tensor
    slopes: Tensor


class Prior:
    """Maps points of the unit cube, [B, P], to films and their curves.

    Attributes:
        free: the P parameters with lower < upper: fronting, layers, backing, scale, background, q_offset.
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
        self._shifts = any(
            slot.kind == "q_offset" and (free or slot.parameter.lower != 0)
            for slot, free in zip(slots, is_free, strict=True)
        )
        self._rows = self._gradient_rows()

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
        """Curves of these films as an instrument sees them, scale x (blurred reflectivity) + background.

        Args:
            q: [N] or [B, N], in 1/angstrom.
            sigma: standard deviation of q, broadcastable to q; None for perfect resolution.
            values: [B, P].
            order: points of the quadrature over the resolution.

        Returns:
            [B, N].
        """
        numbers = self._complete(values)
        if sigma is None:
            sharp = engine.reflectivity(self._seen(q, numbers), self._from_the_beam(numbers))
        else:
            nodes, weights = (torch.from_numpy(array).to(q.device) for array in quadrature(order))
            spread = (q[..., None] + sigma[..., None] * nodes).flatten(-2)
            sharp = engine.reflectivity(self._seen(spread, numbers), self._from_the_beam(numbers))
            sharp = sharp.reshape(len(values), -1, order) @ weights
        return self._column(numbers, "scale") * sharp + self._column(numbers, "background")

    def curves(self, resolution: Resolution, values: Tensor) -> Tensor:
        """The same where all films are measured at the same points, [B, N]."""
        numbers = self._complete(values)
        sharp = engine.reflectivity(self._seen(resolution.q, numbers), self._from_the_beam(numbers))
        blurred = engine.blur(resolution, sharp)
        return self._column(numbers, "scale") * blurred + self._column(numbers, "background")

    def linearise(self, resolution: Resolution, unit: Tensor) -> Linearised:
        """`curves` at points of the unit cube, [B, P], and its derivatives there."""
        values = self.values(unit)
        numbers = self._complete(values)
        media = self._from_the_beam(numbers)
        wanted, sources = self._rows
        r, by_number = engine.gradient(self._seen(resolution.q, numbers), media, wanted)
        blurred = engine.blur(resolution, torch.cat([r[:, None], by_number], dim=1))
        scale = self._column(numbers, "scale")
        shape = (len(unit), len(self._defaults), len(resolution.first))
        slopes = torch.zeros(shape, dtype=torch.float64, device=unit.device)
        slopes[:, sources] = scale[..., None] * blurred[:, 1:]
        slopes[:, self._columns["scale"]] = blurred[:, :1]
        slopes[:, self._columns["background"]] = 1.0
        by_free = slopes[:, self._free_columns]
        return Linearised(
            scale * blurred[:, 0] + self._column(numbers, "background"),
            self._stretch(values)[..., None] * by_free,
        )

    def pull(self, resolution: Resolution, unit: Tensor, gradients: Tensor) -> Tensor:
        """Gradients by the unit cube, [B, P], of what has `gradients`, [B, N], by the points of `curves`.

        Costs less than `linearise`, which makes all derivatives.
        """
        values = self.values(unit)
        numbers = self._complete(values)
        media = self._from_the_beam(numbers)
        wanted, sources = self._rows
        sharp = resolution.spread(gradients)
        scale = self._column(numbers, "scale")
        by_number = torch.zeros_like(numbers)
        seen = self._seen(resolution.q, numbers)
        by_number[:, sources] = scale * engine.pull(seen, media, wanted, sharp)
        if not set(self._columns["scale"]).isdisjoint(self._free_columns):
            by_number[:, self._columns["scale"]] = (sharp * engine.reflectivity(seen, media)).sum(
                1, keepdim=True
            )
        by_number[:, self._columns["background"]] = gradients.sum(1, keepdim=True)
        return by_number[:, self._free_columns] * self._stretch(values)

    def _stretch(self, values: Tensor) -> Tensor:
        """Derivative of each value by its place in the unit cube, [B, P]."""
        return self._width * torch.where(self._log, values, 1.0)

    def _gradient_rows(self) -> tuple[np.ndarray, list[int]]:
        """Which derivatives the engine must give, and the columns of the numbers that they belong to."""
        media = len(self._columns["sld"])
        starts = {"sld": 0, "isld": media, "thickness": 2 * media, "roughness": 3 * media - 2}
        wanted, sources = [], []
        for column in self._free_columns:
            for kind, start in starts.items():
                if column in self._columns[kind]:
                    place = self._columns[kind].index(column)
                    # The engine counts from the side of the beam.
                    count = len(self._columns[kind])
                    wanted.append(start + (count - 1 - place if self._beam_from_backing else place))
                    sources.append(column)
            if column in self._columns["q_offset"]:
                wanted.append(4 * media - 3)
                sources.append(column)
        return np.array(wanted, dtype=np.int64), sources

    def _seen(self, q: Tensor, numbers: Tensor) -> Tensor:
        """Where the curve is calculated: the instrument's q is too small by the offset."""
        return q + self._column(numbers, "q_offset") if self._shifts else q

    def _column(self, numbers: Tensor, kind: str) -> Tensor:
        return numbers[:, self._columns[kind]]

    def _complete(self, values: Tensor) -> Tensor:
        numbers = self._defaults.repeat(len(values), 1)
        numbers[:, self._free_columns] = values.double()
        return numbers

    def _media(self, numbers: Tensor) -> Media:
        return Media(*(numbers[:, self._columns[kind]] for kind in _FILM))

    def _from_the_beam(self, numbers: Tensor) -> Media:
        media = self._media(numbers)
        return media.reversed() if self._beam_from_backing else media


def _slots(stack: StackPrior, probe: TrainingProbe) -> Iterator[_Slot]:
    for part in (stack.fronting, *stack.layers, stack.backing):
        for kind in ("thickness", "sld", "isld", "roughness"):
            bounds: Range | None = getattr(part, kind, None)
            if bounds is not None:
                name = f"{part.name}.{kind}"
                yield _Slot(FreeParameter(name, _UNITS[kind], bounds.min, bounds.max), kind)
    yield _Slot(FreeParameter("scale", "", probe.scale.min, probe.scale.max), "scale")
    background, offset = probe.background, probe.q_offset
    yield _Slot(
        FreeParameter("background", "", background.min, background.max, not background.fixed), "background"
    )
    yield _Slot(FreeParameter("q_offset", "1/angstrom", offset.min, offset.max), "q_offset")


def _working(parameter: FreeParameter) -> tuple[float, float]:
    """Bounds in the variable that is drawn evenly."""
    bounds = (parameter.lower, parameter.upper)
    return (math.log(bounds[0]), math.log(bounds[1])) if parameter.log else bounds
