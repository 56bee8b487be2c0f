"""Bounded least squares from many starts at once, and the modes that they end in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry.network import compress, compress_slope
from guidehall.science.reflectometry.params import ResolutionMode
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import orders, resolution

# Levenberg and Marquardt: first damping, and how it changes with each step that fails or succeeds.
_DAMPING, _HARDER, _EASIER = 1e-3, 4.0, 0.2
_LEAST_DAMPING, _MOST_DAMPING = 1e-7, 1e10
# Without dr a residual is a difference of log10 R over this.
_LOG10_DEVIATION = 0.01
# Of log10 R, in a first descent: smaller error bars count no more than this.
_LEAST_LOG10_NOISE = 0.05
# A start that gains less than this share in each of so many steps has arrived; and one that gains less than
# this in chi-square, however small that has become.
_GAIN, _PATIENCE = 1e-6, 3
_LEAST_GAIN = 1e-5
# The first descent only has to come near.
_ROUGH_GAIN = 1e-3
# In the unit cube: how far from a guess some starts are.
_NEAR = 0.1
# An explanation that is worse than the best by more chi-square than this is none.
_WORSE = 20.0
# By so many standard deviations chi-square may exceed its mean before data are searched again, and so near to
# each other are two that found the same; each round has so many times the starts of the one before.
_UNLIKELY, _SAME, _MORE = 2.0, 1.0, 4
# Bounds the memory of a long series.
_DATA_AT_ONCE = 32
# The same of many starts: derivatives of curves, in numbers.
_SLOPES_AT_ONCE = 10_000_000


class Target(Protocol):
    """What is to be explained: residuals, whose squares sum to chi-square, as functions of the unit cube.

    `rows` says which data each point of the cube belongs to, where a target holds several.
    """

    parameters: int

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:
        """[B, P] and [B] to [B, N]."""
        ...

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P] and [B] to the residuals, [B, N], and their derivatives, [B, P, N]."""
        ...


class CurveTarget:
    """Curves that were measured at the same points, and the prior of their samples.

    Residuals are (calculated - r) / dr, or without dr differences of log10 R in hundredths (linear around
    zero, see `network.compress`).

    Args:
        q, sigma: [N]; sigma is one standard deviation of q.
        r, dr: [C, N] or, for one curve, [N]; dr is one standard deviation of r, or None.
        exact: whether the quadrature over the resolution is that of a final answer (see `resolution.orders`).
    """

    def __init__(
        self,
        prior: Prior,
        q: np.ndarray,
        r: np.ndarray,
        dr: np.ndarray | None,
        sigma: np.ndarray | None,
        mode: ResolutionMode = "quadrature",
        *,
        exact: bool = False,
    ) -> None:
        self.prior = prior
        self.parameters = len(prior.free)
        order = 1 if sigma is None else orders(q, sigma, prior.features, exact=exact)
        self.resolution = resolution(q, sigma, mode, order)
        # That are calculated for each curve.
        self.points = len(self.resolution.q)
        self.r = _rows_of(r)
        self.dr = None if dr is None else _rows_of(dr)
        self.compressed = compress(self.r)

    def curves(self, unit: Tensor) -> Tensor:
        """Calculated curves, [B, N]."""
        return self.prior.curves(self.resolution, self.prior.values(unit))

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:
        return self._compare(self.curves(unit), rows)

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = self.prior.linearise(self.resolution, unit)
        if self.dr is None:
            slope = compress_slope(found.r) / _LOG10_DEVIATION
        else:
            slope = 1.0 / self.dr[rows]
        return self._compare(found.r, rows), found.slopes * slope[:, None]

    def _compare(self, calculated: Tensor, rows: Tensor) -> Tensor:
        if self.dr is None:
            return (compress(calculated) - self.compressed[rows]) / _LOG10_DEVIATION
        return (calculated - self.r[rows]) / self.dr[rows]


class LogTarget:
    """The same curves on a logarithmic scale: smoother far from the answer, where chi-square has many pits.

    Points whose error bars are as large as they count less.
    """

    def __init__(self, target: CurveTarget) -> None:
        self._target = target
        self.parameters, self.points = target.parameters, target.points
        if target.dr is None:
            self._weight = torch.full_like(target.r, 1.0 / _LOG10_DEVIATION)
        else:
            noise = target.dr * compress_slope(target.r)
            self._weight = 1.0 / (noise.square() + _LEAST_LOG10_NOISE**2).sqrt()

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:
        return (compress(self._target.curves(unit)) - self._target.compressed[rows]) * self._weight[rows]

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = self._target.prior.linearise(self._target.resolution, unit)
        weight = self._weight[rows]
        slope = compress_slope(found.r) * weight
        residuals = (compress(found.r) - self._target.compressed[rows]) * weight
        return residuals, found.slopes * slope[:, None]


class JointTarget:
    """Several curves of samples that share parameters, such as one film in several liquids.

    Args:
        targets: one for each curve.
        columns: for each, the places of its parameters among the joint ones.
        pool: where the curves are calculated beside each other; without it, one after the other.
    """

    def __init__(
        self, targets: Sequence[Target], columns: Sequence[Sequence[int]], pool: Executor | None = None
    ) -> None:
        self._map = map if pool is None else pool.map
        self._targets = list(targets)
        self._columns = [torch.tensor(list(places)) for places in columns]
        self.parameters = int(max(int(places.max()) for places in self._columns)) + 1

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:
        def of(target: Target, places: Tensor) -> Tensor:
            return target.residuals(unit[:, places], rows)

        return torch.cat(list(self._map(of, self._targets, self._columns)), dim=1)

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        def of(target: Target, places: Tensor) -> tuple[Tensor, Tensor]:
            residuals, derivative = target.linearise(unit[:, places], rows)
            whole = torch.zeros(len(unit), self.parameters, residuals.shape[1], dtype=torch.float64)
            whole[:, places] = derivative
            return residuals, whole

        values, slopes = zip(*self._map(of, self._targets, self._columns), strict=True)
        return torch.cat(values, dim=1), torch.cat(slopes, dim=2)


def _rows_of(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_2d(np.ascontiguousarray(array, dtype=np.float64)))


@dataclass(frozen=True)
class Descents:
    """Where each start ended.

    Attributes:
        unit: [B, P] in the unit cube.
        chi_square: [B].
        curvature: [B, P, P], J^T J there.
    """

    unit: Tensor
    chi_square: Tensor
    curvature: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Descents:
        return Descents(self.unit[rows], self.chi_square[rows], self.curvature[rows])

    @classmethod
    def of(cls, parts: Sequence[Descents]) -> Descents:
        """All of them together."""
        return cls(
            torch.cat([part.unit for part in parts]),
            torch.cat([part.chi_square for part in parts]),
            torch.cat([part.curvature for part in parts]),
        )

    def best(self, count: int) -> Descents:
        """The `count` lowest, lowest first."""
        return self[self.chi_square.argsort()[:count]]


@dataclass(frozen=True)
class Search:
    """How hard the lowest chi-square is looked for.

    Attributes:
        starts: of each curve, guesses included: so many points of the unit cube.
        kept: so many of them go on, after a descent on a logarithmic scale.
        steps: of the second descent; half as many of the first.
        rounds: at most. Data whose lowest chi-square is too large for chance are searched again, from four
            times as many points anywhere, until one round confirms what another found.
    """

    starts: int = 12
    kept: int = 6
    steps: int = 60
    rounds: int = 3


_DEFAULT_SEARCH = Search()


def descend(
    target: Target, starts: Tensor, steps: int, rows: Tensor | None = None, gain: float = _GAIN
) -> Descents:
    """Levenberg-Marquardt within the unit cube from every start, all in one batch.

    A parameter at a bound that the gradient pushes outwards rests there. Starts that have arrived leave
    the batch.

    Args:
        target: what to minimise.
        starts: [B, P].
        steps: at most, each with one calculation of curves and derivatives.
        rows: [B] the data that each start belongs to; all to the first when left out.
        gain: relative improvement of chi-square below which a start has arrived.
    """
    rows = torch.zeros(len(starts), dtype=torch.int64) if rows is None else rows
    points = target.residuals(starts[:1].double(), rows[:1]).shape[1]
    size = max(1, _SLOPES_AT_ONCE // (starts.shape[1] * points))
    pieces = [slice(first, first + size) for first in range(0, len(starts), size)]
    parts = [_descend(target, starts[piece], steps, rows[piece], gain) for piece in pieces]
    return parts[0] if len(parts) == 1 else Descents.of(parts)


def _descend(target: Target, starts: Tensor, steps: int, rows: Tensor, gain: float) -> Descents:
    unit = starts.double().clamp(0.0, 1.0).clone()
    residuals, slopes = target.linearise(unit, rows)
    chi_square = residuals.square().sum(1)
    gradient = torch.einsum("bpn,bn->bp", slopes, residuals)
    curvature = slopes @ slopes.transpose(1, 2)
    damping = torch.full((len(unit),), _DAMPING, dtype=torch.float64)
    idle = torch.zeros(len(unit), dtype=torch.int64)
    moving = torch.arange(len(unit))
    for _ in range(steps):
        trial = _step(unit[moving], gradient[moving], curvature[moving], damping[moving])
        new_residuals, new_slopes = target.linearise(trial, rows[moving])
        new_chi = new_residuals.square().sum(1)
        better = new_chi < chi_square[moving]
        gone = moving[better]
        small = (chi_square[gone] - new_chi[better]) <= gain * chi_square[gone] + _LEAST_GAIN
        unit[gone], chi_square[gone] = trial[better], new_chi[better]
        kept = new_slopes[better]
        gradient[gone] = torch.einsum("bpn,bn->bp", kept, new_residuals[better])
        curvature[gone] = kept @ kept.transpose(1, 2)
        idle[gone] = torch.where(small, idle[gone] + 1, 0)
        damping[moving] *= torch.where(better, _EASIER, _HARDER)
        damping.clamp_min_(_LEAST_DAMPING)
        done = (idle[moving] >= _PATIENCE) | (damping[moving] > _MOST_DAMPING)
        moving = moving[~done]
        if not len(moving):
            break
    return Descents(unit, chi_square, curvature)


def _step(unit: Tensor, gradient: Tensor, curvature: Tensor, damping: Tensor) -> Tensor:
    """The next point to try, [B, P], of each start."""
    resting = ((unit <= 0.0) & (gradient > 0)) | ((unit >= 1.0) & (gradient < 0))
    trial = _solve(unit, gradient, curvature, damping, resting)
    # What the step pushes through a bound stays there, and the others move as if it were given.
    crossing = ~resting & ((trial < 0.0) | (trial > 1.0))
    if bool(crossing.any()):
        held = torch.where(crossing, trial.clamp(0.0, 1.0) - unit, 0.0)
        shifted = gradient + torch.einsum("bpk,bk->bp", curvature, held)
        again = _solve(unit, shifted, curvature, damping, resting | crossing)
        trial = torch.where(crossing, unit + held, again)
    return trial.clamp(0.0, 1.0)


def _solve(unit: Tensor, gradient: Tensor, curvature: Tensor, damping: Tensor, fixed: Tensor) -> Tensor:
    free = (~fixed).double()
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    # Marquardt's scaling, with a floor for what the data do not see.
    ridge = damping[:, None] * diagonal + 1e-10 * diagonal.amax(1, keepdim=True) + 1e-12
    matrix = curvature * free[:, :, None] * free[:, None, :] + torch.diag_embed(ridge * free + (1.0 - free))
    change: Tensor = torch.linalg.solve(matrix, -(gradient * free)[..., None])[..., 0]
    return unit + change


@dataclass(frozen=True)
class Mode:
    """One explanation of the data.

    Attributes:
        unit: [P] in the unit cube.
        chi_square: there.
        covariance: [P, P] in the unit cube, from the curvature and the width of the prior.
    """

    unit: np.ndarray
    chi_square: float
    covariance: np.ndarray


def merge(found: Descents, within: float, apart: float = 3.0, most: int = 16) -> tuple[Mode, ...]:
    """The different explanations among what the descents found, best first.

    Two are one when they are less than `apart` standard deviations (of the better one) from each other in
    every parameter.

    Args:
        within: of the lowest chi-square; what is worse is left out.
    """
    order = found.chi_square.argsort()
    lowest = float(found.chi_square[order[0]])
    modes: list[Mode] = []
    for row in order.tolist():
        chi_square, unit = float(found.chi_square[row]), found.unit[row].numpy()
        if len(modes) == most or not chi_square <= lowest + within:
            break
        if any(
            bool((np.abs(unit - mode.unit) < apart * np.sqrt(np.diag(mode.covariance)) + 1e-3).all())
            for mode in modes
        ):
            continue
        modes.append(Mode(unit, chi_square, covariance(found.curvature[row])))
    return tuple(modes)


def covariance(curvature: Tensor) -> np.ndarray:
    """Inverse of J^T J, [P, P], where what the data do not say is as wide as the prior itself."""
    # 12 is the inverse variance of the unit interval.
    matrix = curvature + 12.0 * torch.eye(len(curvature), dtype=torch.float64)
    inverse: np.ndarray = torch.linalg.inv(matrix).numpy()
    symmetric: np.ndarray = 0.5 * (inverse + inverse.T)
    return symmetric


def search(
    target: Target,
    smoother: Target,
    guesses: Tensor,
    seed: int,
    how: Search = _DEFAULT_SEARCH,
    within: float = _WORSE,
) -> list[tuple[Mode, ...]]:
    """The explanations of each of C data, best first.

    From the guesses, from points near them and from points anywhere, all descend on the smoother target; what
    is best there descends on the target itself.

    Args:
        smoother: such as a `LogTarget`.
        guesses: [C, K, P] in the unit cube; K may be 0.
        seed: of the other starts.
        within: what is worse than the best by more, in chi-square, is no explanation.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Mode, ...]] = []
    for first in range(0, len(guesses), _DATA_AT_ONCE):
        own = guesses[first : first + _DATA_AT_ONCE].double()
        rows = first + torch.arange(len(own))
        ends: list[list[Descents]] = [[] for _ in own]
        lowest = torch.full((len(own),), math.inf, dtype=torch.float64)
        left, limit = torch.arange(len(own)), _limit(target, own, rows)
        for turn in range(how.rounds):
            here = replace(how, starts=how.starts * _MORE**turn, kept=how.kept * 2**turn)
            size = max(1, _DATA_AT_ONCE // _MORE**turn)
            for start in range(0, len(left), size):
                some = left[start : start + size]
                near = own[some] if turn == 0 else own[some, :0]
                tried = _round(target, smoother, near, rows[some], here, generator)
                for at, end in zip(some.tolist(), tried, strict=True):
                    ends[at].append(end)
            latest = torch.stack([ends[at][-1].chi_square.min() for at in left.tolist()])
            confirmed = (latest - lowest[left]).abs() <= _SAME
            lowest[left] = torch.minimum(lowest[left], latest)
            left = left[(lowest[left] > limit) & ~confirmed]
            if not len(left):
                break
        found += [merge(Descents.of(parts), within) for parts in ends]
    return found


def _limit(target: Target, guesses: Tensor, rows: Tensor) -> float:
    """A chi-square that right models seldom exceed."""
    somewhere = torch.full((1, guesses.shape[2]), 0.5, dtype=torch.float64)
    points = target.residuals(somewhere, rows[:1]).shape[1]
    return points + _UNLIKELY * math.sqrt(2.0 * points)


def _round(
    target: Target, smoother: Target, guesses: Tensor, rows: Tensor, how: Search, generator: torch.Generator
) -> list[Descents]:
    """Where `how.starts` points, the guesses among them, end for each of the data `rows`."""
    count, given, parameters = guesses.shape
    fresh = torch.rand(count, how.starts, parameters, generator=generator, dtype=torch.float64)
    if given:
        # Half of the rest begins near a guess.
        near = torch.arange(how.starts) % 2 == 0
        centre = guesses[:, torch.arange(how.starts) % given]
        shift = _NEAR * torch.randn(fresh.shape, generator=generator, dtype=torch.float64)
        fresh = torch.where(near[:, None], (centre + shift).clamp(0.0, 1.0), fresh)
    starts = torch.cat([guesses, fresh[:, : max(0, how.starts - given)]], dim=1)
    each = rows.repeat_interleave(starts.shape[1])
    rough = descend(smoother, starts.flatten(0, 1), how.steps // 2, each, _ROUGH_GAIN)
    order = rough.chi_square.view(count, -1).argsort(1)[:, : how.kept]
    picked = (order + starts.shape[1] * torch.arange(count)[:, None]).flatten()
    # A guess may be better than what the logarithmic scale makes of it.
    second = torch.cat([rough.unit[picked].view(count, -1, parameters), guesses], dim=1)
    size = second.shape[1]
    fine = descend(target, second.flatten(0, 1), how.steps, rows.repeat_interleave(size))
    return [fine[at * size : (at + 1) * size] for at in range(count)]


def sharpen(target: Target, modes: Sequence[Mode], steps: int = 20, row: int = 0) -> tuple[Mode, ...]:
    """The same explanations on a target that was calculated more exactly than the one they were found on."""
    starts = torch.from_numpy(np.stack([mode.unit for mode in modes]))
    return merge(descend(target, starts, steps, torch.full((len(starts),), row)), math.inf)
