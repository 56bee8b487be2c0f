"""What the data leave open: samples of the posterior, its evidence, and bands.

Everything happens in z, where each parameter's place in the unit cube is the standard normal distribution of
z: the prior is then a standard normal in all directions, nothing ends at a bound, and a Gaussian around a
mode is a good first guess of the posterior.

The samples come from a mixture of such Gaussians around the modes. Where the mixture resembles the posterior,
weights are enough (importance sampling). Elsewhere particles begin in a wider mixture, one for the posterior
of a weaker likelihood (its power `_WARM`), are led to that posterior and then with growing power to the whole
one, and move at each rung of this ladder (sequential Monte Carlo; Del Moral, Doucet & Jasra 2006): a valley
that is long and bends is filled while it still is wide. Moves are steps along differences of other particles
(ter Braak 2006), which find the scales and the correlations by themselves; half of them in z, half in the
unit cube, where for example two layers whose total thickness is known lie on a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry.fit import Descents, Mode, Target, descend

# Further out than this in z there is 1e-8 of the prior.
_END = 5.6
# As near to an end of the unit interval as z says exactly.
_EDGE = 1e-7
# Degrees of freedom of the mixture's components: tails heavier than those of the posterior.
_TAILS = 7.0
# Of the mixture, this share is the prior itself: nothing it allows is out of reach.
_PRIOR_SHARE = 0.1
_DESCENT_STEPS = 25
# Weights alone do where they are worth so many equal ones, of each hundred.
_ENOUGH_PERCENT = 20.0
# A rung of the ladder leaves the particles worth this share of their number.
_RUNG = 0.5
# So long a ladder has no end: what is left is one rung.
_MOST_RUNGS = 100
# At each rung particles move until their places are this little correlated with where they began there, in
# the worst direction, at the last one less; but not for ever.
_CORRELATION, _LAST_CORRELATION = 0.7, 0.25
_MOVES, _LAST_MOVES = 30, 200
# The mixture is wider than Laplace's Gaussians: it is easier to move inwards.
_WIDER = 1.5
# Some steps are whole differences, which jump from mode to mode.
_JUMPS = 0.1
# Steps have this little noise of their own: standard deviation, in z and in the unit cube.
_NOISE_Z, _NOISE_UNIT = 1e-3, 3e-4
# The ladder begins where the likelihood counts with this power.
_WARM = 0.1


@dataclass(frozen=True)
class Posterior:
    """Samples, all of the same weight.

    Attributes:
        unit: [S, P] in the unit cube.
        log_evidence: of the data under the prior, with residuals of unit variance and without the factor of
            their normalisation, which is the same for all models of the same data.
        effective: how many independent samples these are worth, roughly.
        method: "importance" or "sequential".
        mixed: whether the samples have forgotten where they began.
    """

    unit: np.ndarray
    log_evidence: float
    effective: float
    method: Literal["importance", "sequential"]
    mixed: bool = True


def sample(
    target: Target,
    modes: Sequence[Mode],
    count: int,
    seed: int,
    row: int = 0,
    reached: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> Posterior:
    """Draws `count` samples of the posterior of data `row` of `target`, whose chi-square has these modes.

    The same seed gives the same samples. `reached` is told the share of the way at each rung of the ladder.
    """
    reached(0.0)
    generator = torch.Generator().manual_seed(seed)
    problem = _Problem(target, row)
    found = problem.descend(modes)
    particles = _Particles.of(problem, _mixture(problem, found, 1.0), count, generator)
    log_weights = _log_posterior(particles.z, particles.chi_square) - particles.log_mixture
    effective = _effective(log_weights)
    if effective >= _ENOUGH_PERCENT / 100.0 * count:
        log_evidence = float(torch.logsumexp(log_weights, 0)) - math.log(count)
        z = particles.z[_resample(log_weights, generator)]
        return Posterior(_unit(z).numpy(), log_evidence, effective, "importance")
    return _climb(problem, _mixture(problem, found, _WARM), count, generator, reached)


class _Problem:
    """Chi-square in z; as a target, on the cube that z spans up to `_END`, with the prior as residuals."""

    def __init__(self, target: Target, row: int) -> None:
        self._target, self._row = target, row
        self.parameters = target.parameters

    def rows(self, count: int) -> Tensor:
        """The data of so many points."""
        return torch.full((count,), self._row, dtype=torch.int64)

    def descend(self, modes: Sequence[Mode]) -> Descents:
        """From the modes of the likelihood to those of the posterior."""
        unit = torch.from_numpy(np.stack([mode.unit for mode in modes]))
        return descend(self, 0.5 + 0.5 * _z(unit) / _END, _DESCENT_STEPS, self.rows(len(unit)))

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


def _mixture(problem: _Problem, found: Descents, power: float) -> _Mixture:
    """Around the modes of the posterior, for that of the likelihood to some power."""
    means = _END * (2.0 * found.unit - 1.0)
    # The prior's own part does not weaken.
    own = torch.eye(problem.parameters, dtype=torch.float64)
    curvature = own + power * (found.curvature / (2.0 * _END) ** 2 - own)
    covariance = torch.linalg.inv(curvature)
    scales = torch.linalg.cholesky(0.5 * (covariance + covariance.transpose(1, 2)))
    # Laplace's estimate of how much of the posterior each mode holds.
    log_mass = _log_posterior(means, power * problem.chi_square(means))
    log_mass = log_mass + scales.diagonal(dim1=1, dim2=2).log().sum(1)
    share = torch.softmax(log_mass, 0) + 0.05
    weights = torch.cat([share / share.sum() * (1.0 - _PRIOR_SHARE), torch.tensor([_PRIOR_SHARE])])
    return _Mixture(means, _WIDER * scales, weights.double())


@dataclass(frozen=True)
class _Particles:
    """Points of z, [S, P], with their chi-square and the log density of the mixture there, [S]."""

    z: Tensor
    chi_square: Tensor
    log_mixture: Tensor

    @classmethod
    def of(cls, problem: _Problem, mixture: _Mixture, count: int, generator: torch.Generator) -> _Particles:
        return cls.at(problem, mixture, mixture.draw(count, generator))

    @classmethod
    def at(cls, problem: _Problem, mixture: _Mixture, z: Tensor) -> _Particles:
        return cls(z, problem.chi_square(z), mixture.log_density(z))

    def __getitem__(self, rows: Tensor) -> _Particles:
        return _Particles(self.z[rows], self.chi_square[rows], self.log_mixture[rows])

    def replaced(self, rows: Tensor, new: _Particles) -> _Particles:
        """The same with `new` at `rows`."""
        return _Particles(
            self.z.index_copy(0, rows, new.z),
            self.chi_square.index_copy(0, rows, new.chi_square),
            self.log_mixture.index_copy(0, rows, new.log_mixture),
        )

    def log_density(self, place: float) -> Tensor:
        """Of the distribution at a place of the ladder, not normalised, [S].

        From 0, the mixture, to 1, the posterior with the likelihood to the power `_WARM`, and on to 2, where
        the power is 1.
        """
        power = _WARM + (1.0 - _WARM) * max(place - 1.0, 0.0)
        share = max(1.0 - place, 0.0)
        return share * self.log_mixture + (1.0 - share) * _log_posterior(self.z, power * self.chi_square)


def _climb(
    problem: _Problem,
    mixture: _Mixture,
    count: int,
    generator: torch.Generator,
    reached: Callable[[float], None],
) -> Posterior:
    """From the mixture to the posterior, rung by rung; what is left of the last one counts as independent."""
    particles = _Particles.of(problem, mixture, count, generator)
    place, log_evidence, effective = 0.0, 0.0, float(count)
    rungs = 0
    while place < 2.0:
        end = 1.0 if place < 1.0 else 2.0
        # Linear in the place up to this end.
        gain = (particles.log_density(end) - particles.log_density(place)) / (end - place)
        step = _rung(gain, end - place, count) if rungs < _MOST_RUNGS else end - place
        rungs += 1
        log_weights = step * gain
        log_evidence += float(torch.logsumexp(log_weights, 0)) - math.log(count)
        effective = _effective(log_weights)
        place = end if step == end - place else place + step
        reached(0.5 * place)
        particles = particles[_resample(log_weights, generator)]
        goal, most = (_LAST_CORRELATION, _LAST_MOVES) if place == 2.0 else (_CORRELATION, _MOVES)
        begun = particles.z
        for _ in range(most):
            particles = _move(problem, mixture, particles, place, generator)
            if _correlation(begun, particles.z) < goal:
                break
    # The one rung beyond is as high as all that were left.
    mixed = rungs <= _MOST_RUNGS and _correlation(begun, particles.z) < goal
    return Posterior(_unit(particles.z).numpy(), log_evidence, effective, "sequential", mixed)


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
    problem: _Problem, mixture: _Mixture, particles: _Particles, place: float, generator: torch.Generator
) -> _Particles:
    """One Metropolis step of every particle along the difference of two particles of the other half."""
    count, parameters = particles.z.shape
    half = count // 2
    shuffled = torch.randperm(count, generator=generator)
    for moved, others in ((shuffled[:half], shuffled[half:]), (shuffled[half:], shuffled[:half])):
        old = particles[moved]
        first, second = (
            particles.z[others[torch.randint(len(others), (len(moved),), generator=generator)]]
            for _ in range(2)
        )
        uniform = torch.rand(4, len(moved), generator=generator, dtype=torch.float64)
        # 2.38 / sqrt(2 P) is best for a Gaussian; smaller steps help where the posterior bends.
        length = 2.38 / math.sqrt(2.0 * parameters) * (0.2 + 0.9 * uniform[0])
        length = torch.where(uniform[1] < _JUMPS, 1.0, length)[:, None]
        noise = torch.randn(len(moved), parameters, generator=generator, dtype=torch.float64)
        trial_z = old.z + length * (first - second) + _NOISE_Z * noise
        trial_unit = _unit(old.z) + length * (_unit(first) - _unit(second)) + _NOISE_UNIT * noise
        in_cube = uniform[3] < 0.5
        trial = torch.where(in_cube[:, None], _z(trial_unit), trial_z.clamp(-_END, _END))
        outside = torch.where(in_cube, _beyond(trial_unit - 0.5, 0.5 - _EDGE), _beyond(trial_z, _END))
        new = _Particles.at(problem, mixture, trial)
        gain = new.log_density(place) - old.log_density(place)
        # A step that is even in the cube is not in z: their volumes differ by the normal density.
        gain = gain + torch.where(in_cube, _log_normal(old.z) - _log_normal(trial), 0.0)
        taken = (uniform[2].log() < gain) & ~outside
        particles = particles.replaced(moved[taken], new[taken])
    return particles


def _beyond(points: Tensor, limit: float) -> Tensor:
    """Which points leave the cube of this half width: [S, P] to [S]."""
    return (points.abs() > limit).any(1)


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
    z: Tensor = torch.special.ndtri(unit.clamp(_EDGE, 1.0 - _EDGE))
    return z.clamp(-_END, _END)
