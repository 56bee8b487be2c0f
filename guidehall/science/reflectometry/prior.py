"""What is known before the measurement: a unit cube of free parameters, and the films it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.expressions import Expression, identifier
from guidehall.science.reflectometry.kernel import Media, depth_grid
from guidehall.science.reflectometry.params import SLD_UNIT, LayerPrior, Range, StackPrior, Tie, TrainingProbe
from guidehall.science.reflectometry.resolution import Features, Resolution, quadrature

_FILM = ("sld", "isld", "thickness", "roughness")
_KINDS = (*_FILM, "scale", "background", "q_offset", "footprint_q")
_UNITS = {
    "sld": SLD_UNIT,
    "isld": SLD_UNIT,
    "thickness": "angstrom",
    "roughness": "angstrom",
    "b": "fm",
    "volume": "angstrom^3",
    "area": "angstrom^2",
    "q_offset": "1/angstrom",
    "footprint_q": "1/angstrom",
}
# Behind the key of a quantity: what the film has in its place.
_IN_THE_FILM = " in the film"
# Those of expressions, on tensors of one shape or of none.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "min": lambda *of: reduce(torch.minimum, of),
    "max": lambda *of: reduce(torch.maximum, of),
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
}
# Of all films that are calculated together, points of q: what they take stays in bounds.
_CALCULATED_AT_ONCE = 4_000_000


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
    # Where it goes: one of _KINDS, or nowhere but into expressions.
    kind: str
    # What expressions call it.
    key: str


@dataclass(frozen=True)
class _Tied:
    """A number that an expression gives, kept between `low` and `high`."""

    key: str
    expression: Expression
    low: float
    high: float


@dataclass(frozen=True)
class Segments:
    """Which setting of the instrument each point of one curve was measured in.

    Each further segment has a scale and a background of its own, `scale[2]`, `background[2]` and so on.

    Attributes:
        index: integers [N], from 0 and without gaps.
        bounds: of those, by name; others have the bounds of the first segment.

    Raises:
        ValueError: there are gaps.
    """

    index: np.ndarray
    bounds: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = np.unique(self.index)
        if not np.array_equal(found, np.arange(len(found))):
            raise ValueError(f"segments are counted from 0 without gaps, not {found.tolist()}")

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.index.max()) + 1


def share_on_sample(q: Tensor, footprint_q: Tensor) -> Tensor:
    """Share of the beam that meets the sample, min(1, q / footprint_q).

    A beam of width w covers w / sin(angle) of the sample along its way, which at one wavelength is all of its
    length at q = footprint_q = 4 pi w / (wavelength x length). The share belongs to the reflectivity before
    resolution, scale and background, at the q that the instrument says.

    Args:
        q: in 1/angstrom.
        footprint_q: broadcastable to q; 0 for a sample that is never overfilled.
    """
    # Of the nodes of a wide resolution, some may be negative.
    return (q.abs().clamp_min(1e-12) / footprint_q).clamp_max(1.0)


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
        free: the P parameters with lower < upper that no expression gives: fronting, layers, backing, further
            parameters, scale, background, q_offset, footprint_q, and those of further segments.
        media_names: of each medium of the film, fronting first, repeated layers several times.
        from_backing: whether the beam comes through the backing medium.

    Args:
        segments: of the one curve that is compared with this prior, whose points are then those of `q` and of
            `resolution` below; None for curves with one scale and background.
    """

    def __init__(
        self,
        stack: StackPrior,
        probe: TrainingProbe,
        device: str = "cpu",
        segments: Segments | None = None,
    ) -> None:
        derived = {item.key: item for item in _derived(stack)}
        slots = [
            *_slots(stack, probe, segments),
            *(_Slot(FreeParameter(key, "", 0.0, 0.0), "", key) for key in derived),
        ]
        self._intervals = stack.intervals()
        self._keys = [slot.key for slot in slots]
        ties = {item.key: item.bounds for item in stack.quantities() if isinstance(item.bounds, Tie)}
        self._ties = [
            _Tied(key, Expression(ties[key].expression), ties[key].min, ties[key].max)
            for key in self._intervals
            if key in ties
        ]
        self._ties += derived.values()
        is_free = [slot.parameter.lower < slot.parameter.upper and slot.key not in ties for slot in slots]
        self.free = tuple(slot.parameter for slot, free in zip(slots, is_free, strict=True) if free)
        self.from_backing = stack.beam == "backing"
        self._columns = {kind: [i for i, slot in enumerate(slots) if slot.kind == kind] for kind in _KINDS}
        # In the film, a repeated layer is there several times.
        parts = [stack.fronting, *(stack.layers[index] for index in stack.sequence), stack.backing]
        # Not by their keys, which may be alike where nothing is tied.
        self.media_names = tuple(part.name for part in parts)
        names = [slot.parameter.name for slot in slots]
        for kind in _FILM:
            self._columns[kind] = [
                names.index(key if (key := _film_key(part.name, kind)) in derived else f"{part.name}.{kind}")
                for part in parts
                if hasattr(part, kind)
            ]
        self._free_columns = [i for i, free in enumerate(is_free) if free]

        def tensor(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=device)

        self._defaults = tensor([slot.parameter.lower for slot in slots])
        bounds = [_working(parameter) for parameter in self.free]
        self._lower = tensor([low for low, _ in bounds])
        self._width = tensor([high - low for low, high in bounds])
        self._log = torch.tensor([parameter.log for parameter in self.free], device=device)
        self._shifts = probe.q_offset != Range(min=0.0, max=0.0)
        self._overfills = probe.footprint_q != Range(min=0.0, max=0.0)
        # Ones where a point, [segments, N], belongs to a segment.
        self._members = tensor([1.0])[None]
        if segments is not None:
            self._members = torch.eye(segments.count, dtype=torch.float64, device=device)[:, segments.index]
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

    def sobol(self, count: int, seed: int) -> Tensor:
        """Points that fill the unit cube more evenly than random ones, [count, P].

        Sobol's sequence, scrambled by the seed; most even where `count` is a power of two.

        Raises:
            ValueError: `count` is not between 1 and 2^30, what the sequence has.
        """
        if not 1 <= count <= 2**30:
            raise ValueError(f"count is {count}; allowed: 1 to 2^30")
        sequence = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
            len(self.free), scramble=True, seed=seed
        )
        return sequence.draw(count, dtype=torch.float64).to(self._lower.device)

    def alike(self, unit: Tensor) -> Tensor:
        """The points where all segments are like the first, from those of the same prior without segments.

        All segments must have the bounds of the first.
        """
        names = [parameter.name for parameter in self.free]
        return unit[..., [names.index(name.partition("[")[0]) for name in names]]

    def films(self, values: Tensor) -> Media:
        """Films with these free parameters, fronting medium first."""
        return self._media(self._complete(values))

    def true_q(self, q: Tensor, values: Tensor) -> Tensor:
        """Where the instrument's q, [N], really are with these free parameters, [B, N]."""
        return (q + self._column(self._complete(values), "q_offset")).expand(len(values), len(q))

    def depth_grid(self, points: int) -> Tensor:
        """One depth grid, [points], that holds the profile of every film of this prior."""
        return depth_grid(self._media(self._extremes()), points)

    @cached_property
    def features(self) -> Features:
        """What a quadrature has to follow in the curves of the films of this prior."""
        numbers = self._extremes()
        return Features.of(self._from_the_beam(numbers), float(self._column(numbers, "q_offset").min()))

    def _extremes(self) -> Tensor:
        """Numbers of two films, with all quantities at their lower and at their upper ends."""
        ends = torch.tensor([[0.0], [1.0]], device=self._lower.device)
        numbers = self._complete(self.values(ends.expand(2, len(self.free))))
        for tie in self._ties:
            # What grows with one parameter may shrink with another.
            interval = self._intervals[tie.key.removesuffix(_IN_THE_FILM)]
            numbers[:, self._keys.index(tie.key)] = numbers.new_tensor([interval.low, interval.high])
        return numbers

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
            blurred = self._sharp(q, numbers)
        else:
            shape = (len(values), q.shape[-1])
            q, sigma = q.expand(shape), sigma.expand(shape)
            blurred = torch.cat(
                [
                    self._blurred(q[some], sigma[some], numbers[some], order)
                    for some in _pieces(len(values), q.shape[-1] * order)
                ]
            )
        return self._each(numbers, "scale") * blurred + self._each(numbers, "background")

    def _blurred(self, q: Tensor, sigma: Tensor, numbers: Tensor, order: int) -> Tensor:
        nodes, weights = (torch.from_numpy(array).to(q.device) for array in quadrature(order))
        spread = (q[..., None] + sigma[..., None] * nodes).flatten(-2)
        return self._sharp(spread, numbers).reshape(*q.shape, order) @ weights

    def curves(self, resolution: Resolution, values: Tensor) -> Tensor:
        """The same where all films are measured at the same points, [B, N]."""
        numbers = self._complete(values)
        pieces = _pieces(len(values), len(resolution.q))
        blurred = torch.cat(
            [engine.blur(resolution, self._sharp(resolution.q, numbers[some])) for some in pieces]
        )
        return self._each(numbers, "scale") * blurred + self._each(numbers, "background")

    def linearise(self, resolution: Resolution, unit: Tensor) -> Linearised:
        """`curves` at points of the unit cube, [B, P], and its derivatives there."""
        values = self.values(unit)
        numbers = self._complete(values)
        media = self._from_the_beam(numbers)
        wanted, places, sources = self._rows
        r, by_number = engine.gradient(self._seen(resolution.q, numbers), media, wanted, places)
        rows = torch.cat([r[:, None], by_number], dim=1)
        if self._overfills:
            share, slope = self._share(resolution.q, numbers)
            rows = torch.cat([rows * share[:, None], (r * slope)[:, None]], dim=1)
            sources = torch.cat([sources, sources.new_tensor(self._columns["footprint_q"])])
        blurred = engine.blur(resolution, rows)
        scale = self._each(numbers, "scale")
        shape = (len(unit), len(self._defaults), len(resolution.first))
        slopes = torch.zeros(shape, dtype=torch.float64, device=unit.device)
        slopes[:, sources] = scale[:, None] * blurred[:, 1:]
        slopes[:, self._columns["scale"]] = self._members * blurred[:, :1]
        slopes[:, self._columns["background"]] = self._members.expand(-1, shape[2])
        if self._ties:
            # Each number on its own, in a copy of the batch.
            count = len(self._keys)
            each = torch.eye(count, dtype=values.dtype, device=values.device)
            chain = self._chain(values.repeat(count, 1), each.repeat_interleave(len(values), 0))
            by_free = torch.einsum("cbp,bcn->bpn", chain.reshape(count, *values.shape), slopes)
        else:
            by_free = slopes[:, self._free_columns]
        return Linearised(
            scale * blurred[:, 0] + self._each(numbers, "background"),
            self._stretch(values)[..., None] * by_free,
        )

    def pull(self, resolution: Resolution, unit: Tensor, gradients: Tensor) -> Tensor:
        """Gradients by the unit cube, [B, P], of what has `gradients`, [B, N], by the points of `curves`.

        Costs less than `linearise`, which makes all derivatives.
        """
        values = self.values(unit)
        numbers = self._complete(values)
        media = self._from_the_beam(numbers)
        wanted, places, sources = self._rows
        weights = resolution.spread(self._each(numbers, "scale") * gradients)
        by_number = torch.zeros_like(numbers)
        seen = self._seen(resolution.q, numbers)
        measured = {*self._columns["scale"], *self._columns["footprint_q"]}
        r = None if measured.isdisjoint(self._free_columns) else engine.reflectivity(seen, media)
        if self._overfills:
            share, slope = self._share(resolution.q, numbers)
            if r is not None:
                by_number[:, self._columns["footprint_q"]] = (weights * r * slope).sum(1, keepdim=True)
                r = r * share
            weights = weights * share
        by_number[:, sources] = engine.pull(seen, media, wanted, weights, places)
        if r is not None:
            by_number[:, self._columns["scale"]] = self._by_segment(gradients * engine.blur(resolution, r))
        by_number[:, self._columns["background"]] = self._by_segment(gradients)
        by_free = self._chain(values, by_number) if self._ties else by_number[:, self._free_columns]
        return by_free * self._stretch(values)

    def _chain(self, values: Tensor, weights: Tensor) -> Tensor:
        """Derivatives by the free numbers, [B, P], of the sum of all numbers with `weights`, [B, numbers]."""
        # Callers may have turned derivatives off.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = values.detach().clone().requires_grad_()
            return torch.autograd.grad(self._complete(leaf), leaf, weights.clone())[0]

    def _stretch(self, values: Tensor) -> Tensor:
        """Derivative of each value by its place in the unit cube, [B, P]."""
        return self._width * torch.where(self._log, values, 1.0)

    def _gradient_rows(self) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Which derivatives the engine must give, the row of each, and the number that each row is by.

        A repeated layer has its numbers in several places, whose derivatives add up in one row.
        """
        media = len(self._columns["sld"])
        starts = {"sld": 0, "isld": media, "thickness": 2 * media, "roughness": 3 * media - 2}
        moving = {*self._free_columns, *(self._keys.index(tie.key) for tie in self._ties)}
        wanted, sources = [], []
        for kind, start in starts.items():
            columns = self._columns[kind]
            for place, column in enumerate(columns):
                if column in moving:
                    # The engine counts from the side of the beam.
                    wanted.append(start + (len(columns) - 1 - place if self.from_backing else place))
                    sources.append(column)
        for column in moving.intersection(self._columns["q_offset"]):
            wanted.append(4 * media - 3)
            sources.append(column)
        each, rows = np.unique(np.array(sources, dtype=np.int64), return_inverse=True)
        return np.array(wanted, dtype=np.int64), rows, torch.from_numpy(each).to(self._lower.device)

    def _seen(self, q: Tensor, numbers: Tensor) -> Tensor:
        """Where the curve is calculated: the instrument's q is too small by the offset."""
        return q + self._column(numbers, "q_offset") if self._shifts else q

    def _sharp(self, q: Tensor, numbers: Tensor) -> Tensor:
        """What comes from the sample before resolution, [B, points of q]."""
        r = engine.reflectivity(self._seen(q, numbers), self._from_the_beam(numbers))
        return r * self._share(q, numbers)[0] if self._overfills else r

    def _share(self, q: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """`share_on_sample` and its derivative by footprint_q."""
        footprint = self._column(numbers, "footprint_q")
        share = share_on_sample(q, footprint)
        return share, torch.where(share < 1.0, -share / footprint, 0.0)

    def _each(self, numbers: Tensor, kind: str) -> Tensor:
        """Scale or background of each point, [B, N], or [B, 1] without segments."""
        return self._column(numbers, kind) @ self._members

    def _by_segment(self, weights: Tensor) -> Tensor:
        """Sum over the points, [B, N], of each segment, [B, segments]."""
        return (weights[:, None] * self._members).sum(-1)

    def _column(self, numbers: Tensor, kind: str) -> Tensor:
        return numbers[:, self._columns[kind]]

    def _complete(self, values: Tensor) -> Tensor:
        numbers = self._defaults.repeat(len(values), 1)
        numbers[:, self._free_columns] = values.double()
        if not self._ties:
            return numbers
        known = dict(zip(self._keys, numbers.unbind(1), strict=True))
        for tie in self._ties:
            value = tie.expression.evaluate(known, numbers.new_tensor, _FUNCTIONS)
            known[tie.key] = value.clamp(tie.low, tie.high).expand(len(numbers))
        return torch.stack(list(known.values()), dim=1)

    def _media(self, numbers: Tensor) -> Media:
        return Media(*(numbers[:, self._columns[kind]] for kind in _FILM))

    def _from_the_beam(self, numbers: Tensor) -> Media:
        media = self._media(numbers)
        return media.reversed() if self.from_backing else media


def _film_key(part: str, kind: str) -> str:
    return f"{identifier(part)}.{kind}{_IN_THE_FILM}"


def _pieces(films: int, points: int) -> Iterator[slice]:
    """Films that are calculated together, all of them in turn, where each has so many points."""
    rows = max(1, _CALCULATED_AT_ONCE // points)
    # No films at all are one piece, too: it is what there is to put together.
    return (slice(first, first + rows) for first in range(0, max(films, 1), rows))


def _derived(stack: StackPrior) -> Iterator[_Tied]:
    """Numbers of the film that are not those of its parts alone."""
    dry = Range(min=0.0, max=0.0)
    liquid = stack.fronting if stack.liquid == "fronting" else stack.backing
    solvent = identifier(liquid.name)
    for layer in stack.layers:
        name = identifier(layer.name)
        for kind in ("sld", "isld"):
            absorbs = kind == "sld" or not layer.isld == liquid.isld == dry
            if layer.solvent is not None and layer.solvent != dry and absorbs:
                text = f"(1 - {name}.solvent) * {name}.{kind} + {name}.solvent * {solvent}.{kind}"
                yield _Tied(_film_key(layer.name, kind), Expression(text), -math.inf, math.inf)
    if stack.max_roughness_share is not None:
        yield from _smoothed(stack, stack.max_roughness_share)


def _smoothed(stack: StackPrior, share: float) -> Iterator[_Tied]:
    """Each roughness, but not more than so much of the thickness of the layers beside it."""
    beside: dict[str, set[str]] = {}
    before = None
    for part in (*(stack.layers[index] for index in stack.sequence), stack.backing):
        # A repeated layer has its roughness in common in all its places.
        thin = beside.setdefault(part.name, set())
        thin |= {other.name for other in (before, part) if isinstance(other, LayerPrior)}
        before = part
    for name, others in beside.items():
        limits = ", ".join(f"{share!r} * {identifier(other)}.thickness" for other in sorted(others))
        expression = Expression(f"min({identifier(name)}.roughness, {limits})")
        yield _Tied(_film_key(name, "roughness"), expression, 0.0, math.inf)


def _slots(stack: StackPrior, probe: TrainingProbe, segments: Segments | None) -> Iterator[_Slot]:
    own = {} if segments is None else segments.bounds

    def of_probe(kind: str, name: str) -> _Slot:
        bounds: Range = own.get(name, getattr(probe, kind))
        log = kind == "background" and not bounds.fixed
        return _Slot(FreeParameter(name, _UNITS.get(kind, ""), bounds.min, bounds.max, log), kind, name)

    for item in stack.quantities():
        parameter = FreeParameter(item.name, _UNITS.get(item.kind, ""), item.bounds.min, item.bounds.max)
        yield _Slot(parameter, item.kind, item.key)
    for kind in ("scale", "background", "q_offset", "footprint_q"):
        yield of_probe(kind, kind)
    for number in range(2, 1 + (1 if segments is None else segments.count)):
        for kind in ("scale", "background"):
            yield of_probe(kind, f"{kind}[{number}]")


def _working(parameter: FreeParameter) -> tuple[float, float]:
    """Bounds in the variable that is drawn evenly."""
    bounds = (parameter.lower, parameter.upper)
    return (math.log(bounds[0]), math.log(bounds[1])) if parameter.log else bounds
