"""Training data: films drawn from the prior, their curves, and what measuring does to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry.network import Seen
from guidehall.science.reflectometry.params import NrSldParams, Range, sigma_of
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import Resolution, order_for, resolution

# Points of the quadrature over the resolution at least: good to 4e-4 in log10 R at 5 % FWHM and for thin
# films, far below the noise that is added.
_LEAST_ORDER = 11
# Enough where a calculated curve is compared with one that was calculated in the same way.
_LEAST_LOSS_ORDER = 5
# Share of measurements that come without dR.
_WITHOUT_ERRORS = 0.2
# Share of the grid (in log q) that a measurement may leave out at the low and at the high end.
_MISSING_LOW, _MISSING_HIGH = 0.15, 0.35


@dataclass(frozen=True)
class Curves:
    """A batch of curves on the network's grid.

    Attributes:
        unit: [B, P] true parameters in the unit cube.
        relative_sigma: [B] resolution.
        r: [B, G] reflectivity with scale and background, without noise.
    """

    unit: Tensor
    relative_sigma: Tensor
    r: Tensor

    def __len__(self) -> int:
        return len(self.unit)

    def __getitem__(self, rows: Tensor | slice) -> Curves:
        return Curves(self.unit[rows], self.relative_sigma[rows], self.r[rows])


@dataclass(frozen=True)
class Seeds:
    """Independent seeds for what a job draws."""

    network: int
    training: int
    validation: int
    fixed_curves: int
    test: int

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """All of them from the seed of the job."""
        return cls(*(int(word) for word in np.random.SeedSequence(seed).generate_state(5, np.uint64)))


class Draw:
    """Draws curves for one set of parameters, all from one generator."""

    def __init__(self, params: NrSldParams, prior: Prior, seed: int, device: str) -> None:
        self.prior, self._seed = prior, seed
        self.generator = torch.Generator(device).manual_seed(seed)
        self.q = torch.from_numpy(params.probe.q()).to(device)
        convention = params.probe.resolution_convention
        widths = params.probe.resolution
        self._sigmas = tuple(sigma_of(width, convention) for width in (widths.min, widths.max))
        self._mode = params.probe.resolution_mode
        self._noise = params.noise
        self._partial = params.probe.partial_curves
        self._order = self._order_for(self._sigmas[1], _LEAST_ORDER)
        self._fixed = self._resolution(_LEAST_ORDER) if widths.fixed else None
        self._loss_resolution = self._resolution(_LEAST_LOSS_ORDER)

    def _order_for(self, relative_sigma: float, least: int) -> int:
        return order_for(relative_sigma * float(self.q[-1]), self.prior.features, least)

    def _resolution(self, least: int) -> Resolution:
        """In the middle of the prior, on the network's grid."""
        q, middle = self.q.cpu().numpy(), 0.5 * sum(self._sigmas)
        order = self._order_for(middle, least)
        return resolution(q, middle * q, self._mode, order).to(self.q.device)

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.q.device)

    def curves(self, count: int) -> Curves:
        """`count` new films, evenly from the prior."""
        return self.curves_of(self._random(count, len(self.prior.free)))

    def spread_films(self, count: int) -> Tensor:
        """`count` films that fill the prior more evenly than random ones, [count, P] in the unit cube."""
        return self.prior.sobol(count, self._seed).to(self.q.device)

    def curves_of(self, unit: Tensor) -> Curves:
        """The curves of these films, at resolutions that are drawn."""
        count = len(unit)
        low, high = self._sigmas
        relative_sigma = low + (high - low) * self._random(count)
        return Curves(unit, relative_sigma, self.calculate(self.prior.values(unit), relative_sigma))

    def calculate(self, values: Tensor, relative_sigma: Tensor) -> Tensor:
        """[B, G], curves of films with these parameters."""
        if self._fixed is not None:
            return self.prior.curves(self._fixed, values)
        sigma = relative_sigma[:, None] * self.q if self._sigmas[1] > 0 else None
        return self.prior.measured(self.q, sigma, values, self._order)

    def compared(self, unit: Tensor) -> Tensor:
        """[B, G], curves at points of the unit cube, [B, P], at the middle resolution; differentiable."""
        curves: Tensor = _Compared.apply(  # type: ignore[no-untyped-call]
            unit, self.prior, self._loss_resolution
        )
        return curves

    def reference(self, unit: Tensor) -> Tensor:
        """The same without derivatives."""
        return self.prior.curves(self._loss_resolution, self.prior.values(unit))

    def errors(self, r: Tensor) -> Tensor:
        """[B, G], one standard deviation of each point of curves that are measured so long."""
        counts = _log_uniform(self._noise.counts, self._random(len(r), 1))
        return ((self._noise.relative_error * r) ** 2 + r / counts).sqrt()

    def scatter(self, r: Tensor, dr: Tensor) -> Tensor:
        """Curves [B, G] with noise of so many standard deviations."""
        return r + dr * torch.randn(r.shape, generator=self.generator, dtype=r.dtype, device=r.device)

    def measured(self, curves: Curves) -> Seen:
        """What is seen of curves that are measured whole, with noise and with its size."""
        dr = self.errors(curves.r)
        return Seen.whole(self.scatter(curves.r, dr), dr, curves.relative_sigma)

    def partly_measured(self, curves: Curves) -> Seen:
        """What is seen of curves as they come: cut at their ends, and some without dR."""
        seen = self.measured(curves)
        known = self._windows(len(curves))
        return replace(seen, known=known, errors_known=self._random(len(curves)) >= _WITHOUT_ERRORS)

    def _windows(self, count: int) -> Tensor:
        """[B, G] masks: measurements seldom cover the whole grid."""
        position = torch.linspace(0.0, 1.0, len(self.q), dtype=torch.float64, device=self.q.device)
        whole = self._random(count, 1) >= self._partial
        low = _MISSING_LOW * self._random(count, 1)
        high = 1.0 - _MISSING_HIGH * self._random(count, 1)
        return whole | ((position >= low) & (position <= high))


class _Compared(torch.autograd.Function):
    """`Prior.curves` with the engine's own derivatives, which costs less than torch's."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, prior: Prior, seen: Resolution) -> Tensor:
        ctx.prior, ctx.seen = prior, seen
        ctx.save_for_backward(unit)
        return prior.curves(seen, prior.values(unit))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (unit,) = ctx.saved_tensors
        return ctx.prior.pull(ctx.seen, unit, gradients[0]), None, None


def _log_uniform(bounds: Range, uniform: Tensor) -> Tensor:
    return bounds.min * (bounds.max / bounds.min) ** uniform
