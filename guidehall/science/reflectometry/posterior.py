"""What the data leave open: samples of the posterior, its evidence, and bands.

Everything happens in z, where each parameter's place in the unit cube is the standard normal distribution of
z: the prior is then a standard normal in all directions, nothing ends at a bound, and a Gaussian around a
mode is a good first guess of the posterior.

The samples come from a mixture of such Gaussians around the modes. Where the mixture resembles the posterior,
weights are enough (importance sampling). Elsewhere the particles are led from it to the posterior through a
ladder of distributions in between, moving at each rung (sequential Monte Carlo; Del Moral, Doucet & Jasra
2006). Moves are steps along differences of other particles (ter Braak 2006), which find the scales and the
correlations by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry.fit import Descents, Mode, Target, descend

# Further out than this in z there is 1e-8 of the prior.
_END = 5.6
# Degrees of freedom of the mixture's components: tails heavier than those of the posterior.
_TAILS = 7.0
# Of the mixture, this share is the prior itself: nothing it allows is out of reach.
_PRIOR_SHARE = 0.1
_DESCENT_STEPS = 25
# Weights alone do where they are worth so many equal ones, of each hundred.
_ENOUGH_PERCENT = 20.0
# A rung of the ladder leaves the particles worth this share of their number.
_RUNG = 0.5
_MOST_RUNGS = 60
# At each rung particles move until their places are this little correlated with where they began there, in
# the worst direction, at the last one less; but not for ever.
_CORRELATION, _LAST_CORRELATION = 0.7, 0.25
_MOVES, _LAST_MOVES = 30, 200
# The mixture is wider than Laplace's Gaussians: it is easier to move inwards.
_WIDER = 1.5
# Some steps are whole differences, which jump from mode to mode.
_JUMPS = 0.1


@dataclass(frozen=True)
class Posterior:
    """Samples, all of the same weight.

    Attributes:
        unit: [S, P] in the unit cube.
        log_evidence: of the data under the prior, with residuals of unit variance and without the factor of
            their normalisation, which is the same for all models of the same data.
        effective: how many independent samples these are worth, roughly.
        method: "importance" or "sequential".
    """

    unit: np.ndarray
    log_evidence: float
    effective: float
    method: Literal["importance", "sequential"]


def sample(target: Target, modes: Sequence[Mode], count: int, seed: int, row: int = 0) -> Posterior:
    """Draws `count` samples of the posterior of data `row` of `target`, whose chi-square has these modes.

    The same seed gives the same samples.
    """
    generator = torch.Generator().manual_seed(seed)
    problem = _Problem(target, row)
    mixture = _mixture(problem, modes)
    z = mixture.draw(count, generator)
    chi_square = problem.chi_square(z)
    log_mixture = mixture.log_density(z)
    log_weights = _log_posterior(z, chi_square) - log_mixture
    effective = _effective(log_weights)
    if effective >= _ENOUGH_PERCENT / 100.0 * count:
        log_evidence = float(torch.logsumexp(log_weights, 0)) - math.log(count)
        return Posterior(
            _unit(z[_resample(log_weights, generator)]).numpy(), log_evidence, effective, "importance"
        )
    z, log_evidence, effective = _climb(problem, mixture, z, chi_square, log_mixture, generator)
    return Posterior(_unit(z).numpy(), log_evidence, effective, "sequential")


class _Problem:
    """Chi-square in z; as a target, on the cube that z spans up to `_END`, with the prior as residuals."""

    def __init__(self, target: Target, row: int) -> None:
        self._target, self._row = target, row
        self.parameters = target.parameters

    def rows(self, count: int) -> Tensor:
        """The data of so many points."""
        return torch.full((count,), self._row, dtype=torch.int64)

    def chi_square(self, z: Tensor) -> Tensor:
        """[S, P] to [S]."""
        return self._target.residuals(_unit(z), self.rows(len(z))).square().sum(1)

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:
        z = _END * (2.0 * unit - 1.0)
        return torch.cat([self._target.residuals(_unit(z), rows), z], dim=1)

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        z = _END * (2.0 * unit - 1.0)
        residuals, slopes = self._target.linearise(_unit(z), rows)
        density = (-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi)
        own = torch.eye(self.parameters, dtype=torch.float64).expand(len(z), -1, -1)
        both = torch.cat([slopes * density[..., None], own], dim=2)
        return torch.cat([residuals, z], dim=1), 2.0 * _END * both


@dataclass(frozen=True)
class _Mixture:
    """Student distributions around the modes, and the prior: means [K, P], scales [K, P, P] (triangular)."""

    means: Tensor
    scales: Tensor
    weights: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        size, parameters = self.means.shape
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, parameters, generator=generator, dtype=torch.float64)
        # Chi-square of `_TAILS` degrees of freedom, the same for all coordinates of a sample.
        squares = torch.randn(count, int(_TAILS), generator=generator, dtype=torch.float64).square().sum(1)
        component = which.clamp_max(size - 1)
        spread = (self.scales[component] @ normal[..., None])[..., 0] * (_TAILS / squares).sqrt()[:, None]
        z = torch.where((which < size)[:, None], self.means[component] + spread, normal)
        return z.clamp(-_END, _END)

    def log_density(self, z: Tensor) -> Tensor:
        parameters = z.shape[1]
        norm = (
            math.lgamma(0.5 * (_TAILS + parameters))
            - math.lgamma(0.5 * _TAILS)
            - 0.5 * parameters * math.log(_TAILS * math.pi)
        )
        parts = [self.weights[-1].log() + _log_normal(z)]
        for mean, scale, weight in zip(self.means, self.scales, self.weights[:-1], strict=True):
            away = torch.linalg.solve_triangular(scale, (z - mean).T, upper=False).square().sum(0)
            log_t = (
                norm - scale.diagonal().log().sum() - 0.5 * (_TAILS + parameters) * (away / _TAILS).log1p()
            )
            parts.append(weight.log() + log_t)
        return torch.logsumexp(torch.stack(parts), 0)


def _mixture(problem: _Problem, modes: Sequence[Mode]) -> _Mixture:
    unit = torch.from_numpy(np.stack([mode.unit for mode in modes]))
    starts = 0.5 + 0.5 * _z(unit) / _END
    found: Descents = descend(problem, starts, _DESCENT_STEPS, problem.rows(len(starts)))
    curvature = found.curvature / (2.0 * _END) ** 2
    covariance = torch.linalg.inv(curvature)
    scales = torch.linalg.cholesky(0.5 * (covariance + covariance.transpose(1, 2)))
    # Laplace's estimate of how much of the posterior each mode holds.
    log_mass = -0.5 * found.chi_square + scales.diagonal(dim1=1, dim2=2).log().sum(1)
    share = torch.softmax(log_mass, 0) + 0.05
    weights = torch.cat([share / share.sum() * (1.0 - _PRIOR_SHARE), torch.tensor([_PRIOR_SHARE])])
    return _Mixture(_END * (2.0 * found.unit - 1.0), _WIDER * scales, weights.double())


def _climb(
    problem: _Problem,
    mixture: _Mixture,
    z: Tensor,
    chi_square: Tensor,
    log_mixture: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, float, float]:
    """From the mixture to the posterior: particles, log evidence, and what the last rung left of them."""
    count, done, log_evidence = len(z), 0.0, 0.0
    effective = float(count)
    for _ in range(_MOST_RUNGS):
        gain = _log_posterior(z, chi_square) - log_mixture
        step = _rung(gain, 1.0 - done, count)
        log_weights = step * gain
        log_evidence += float(torch.logsumexp(log_weights, 0)) - math.log(count)
        effective = _effective(log_weights)
        done += step
        kept = _resample(log_weights, generator)
        z, chi_square, log_mixture = z[kept], chi_square[kept], log_mixture[kept]
        last = done >= 1.0
        goal, most = (_LAST_CORRELATION, _LAST_MOVES) if last else (_CORRELATION, _MOVES)
        begun = z
        for _ in range(most):
            z, chi_square, log_mixture = _move(problem, mixture, z, chi_square, log_mixture, done, generator)
            if _correlation(begun, z) < goal:
                break
        if last:
            break
    return z, log_evidence, effective


def _correlation(before: Tensor, after: Tensor) -> float:
    """How much particles still are where they were, in the coordinate where they are it most."""
    a, b = before - before.mean(0), after - after.mean(0)
    return float(((a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt().clamp_min(1e-300)).max())


def _rung(gain: Tensor, left: float, count: int) -> float:
    """By bisection the largest step that leaves the particles worth `_RUNG` of their number."""
    if _effective(left * gain) >= _RUNG * count:
        return left
    low, high = 0.0, left
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _effective(middle * gain) >= _RUNG * count else (low, middle)
    # A step of nothing would never arrive.
    return max(low, 1e-4 * left)


def _move(
    problem: _Problem,
    mixture: _Mixture,
    z: Tensor,
    chi_square: Tensor,
    log_mixture: Tensor,
    done: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """One Metropolis step of every particle along the difference of two particles of the other half."""
    count, parameters = z.shape
    half = count // 2
    shuffled = torch.randperm(count, generator=generator)
    z, chi_square, log_mixture = z.clone(), chi_square.clone(), log_mixture.clone()
    for moved, others in ((shuffled[:half], shuffled[half:]), (shuffled[half:], shuffled[:half])):
        first, second = (
            z[others[torch.randint(len(others), (len(moved),), generator=generator)]] for _ in range(2)
        )
        uniform = torch.rand(3, len(moved), generator=generator, dtype=torch.float64)
        # 2.38 / sqrt(2 P) is best for a Gaussian; smaller steps help where the posterior bends.
        length = 2.38 / math.sqrt(2.0 * parameters) * (0.2 + 0.9 * uniform[0])
        length = torch.where(uniform[1] < _JUMPS, 1.0, length)
        small = 1e-3 * torch.randn(len(moved), parameters, generator=generator, dtype=torch.float64)
        trial = z[moved] + length[:, None] * (first - second) + small
        outside = (trial.abs() > _END).any(1)
        trial = trial.clamp(-_END, _END)
        new_chi, new_mixture = problem.chi_square(trial), mixture.log_density(trial)
        old = done * _log_posterior(z[moved], chi_square[moved]) + (1.0 - done) * log_mixture[moved]
        new = done * _log_posterior(trial, new_chi) + (1.0 - done) * new_mixture
        taken = (uniform[2].log() < new - old) & ~outside
        rows = moved[taken]
        z[rows], chi_square[rows], log_mixture[rows] = trial[taken], new_chi[taken], new_mixture[taken]
    return z, chi_square, log_mixture


def _log_posterior(z: Tensor, chi_square: Tensor) -> Tensor:
    return -0.5 * chi_square + _log_normal(z)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2.0 * math.pi))


def _effective(log_weights: Tensor) -> float:
    weights = torch.softmax(log_weights, 0)
    return float(1.0 / weights.square().sum())


def _resample(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling: [S] indices."""
    count = len(log_weights)
    places = (
        torch.arange(count, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)
    ) / count
    total = torch.softmax(log_weights, 0).cumsum(0)
    return torch.searchsorted(total, places).clamp_max(count - 1)


def _unit(z: Tensor) -> Tensor:
    unit: Tensor = torch.special.ndtr(z)
    return unit


def _z(unit: Tensor) -> Tensor:
    z: Tensor = torch.special.ndtri(unit.clamp(1e-7, 1.0 - 1e-7))
    return z.clamp(-_END, _END)
