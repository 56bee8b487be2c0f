"""The network: a curve on its own grid in, a point of the prior's unit cube out."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

# Reflectivity at which the compression turns from logarithmic to linear: below it, noise is as large as the
# signal and may be negative.
_FLOOR = 1e-7
_LOG10 = math.log(10.0)
# The least that a point is scaled by: decades.
_LEAST_SPREAD = 0.02
# Errors between these, in decades, are told apart.
_LEAST_ERROR, _LARGEST_ERROR = 1e-4, 1.0


def compress(r: Tensor) -> Tensor:
    """log10 of reflectivity well above 1e-7, linear around zero: no point has to be dropped."""
    return torch.asinh(r / (2.0 * _FLOOR)) / _LOG10 + math.log10(_FLOOR)


def compress_slope(r: Tensor) -> Tensor:
    """Derivative of `compress`."""
    return 1.0 / (_LOG10 * (r * r + (2.0 * _FLOOR) ** 2).sqrt())


def error_level(r: Tensor, dr: Tensor | None) -> Tensor:
    """What the network is told of errors dR: -1 for 1e-4 decades of the compressed curve or less, 1 for 1.

    0 where they are not known, of which the network is told apart.
    """
    if dr is None:
        return torch.zeros_like(r)
    decades = (dr * compress_slope(r)).clamp(_LEAST_ERROR, _LARGEST_ERROR)
    return decades.log10() / 2.0 + 1.0


def resample(q: Tensor, columns: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Brings what was measured to the network's grid by interpolation in log q.

    Args:
        q: [B, N], ascending in each row, NaN only behind the last point.
        columns: [C, B, N], of the points at q.
        grid: [G].

    Returns:
        the columns [C, B, G], and which grid points lie within the curve [B, G]; elsewhere they are 0.
    """
    missing = torch.isnan(q)
    log_q = torch.where(missing, math.inf, q.clamp_min(1e-12).log())
    y = torch.where(missing, 0.0, columns)
    target = grid.log().expand(len(q), -1).contiguous()
    # Rounding must not lose the first and last point of a curve that is measured on the grid itself.
    slack = 1e-6
    last = (~missing).sum(-1, keepdim=True) - 1
    known = (target >= log_q[:, :1] - slack) & (target <= log_q.gather(1, last.clamp_min(0)) + slack)
    right = torch.searchsorted(log_q.contiguous(), target).clamp(min=1)
    right = torch.minimum(right, last.clamp_min(1))
    left = right - 1
    span = log_q.gather(1, right) - log_q.gather(1, left)
    share = ((target - log_q.gather(1, left)) / span.clamp_min(1e-12)).clamp(0.0, 1.0)
    left, right = (place.expand(len(y), -1, -1) for place in (left, right))
    value = y.gather(2, left) * (1.0 - share) + y.gather(2, right) * share
    return torch.where(known, value, 0.0), known


@dataclass(frozen=True)
class Seen:
    """What the network is shown of B curves, on its grid.

    Attributes:
        compressed: [B, G], see `compress`.
        error_level: [B, G], see `error_level`.
        known: [B, G], points within the curve.
        errors_known: [B], whether the errors are.
        relative_sigma: [B], one standard deviation of q over q.
    """

    compressed: Tensor
    error_level: Tensor
    known: Tensor
    errors_known: Tensor
    relative_sigma: Tensor

    @classmethod
    def whole(cls, r: Tensor, dr: Tensor | None, relative_sigma: Tensor) -> Seen:
        """Curves that were measured at every point of the grid, [B, G]."""
        known = torch.ones_like(r, dtype=torch.bool)
        errors_known = torch.full_like(relative_sigma, dr is not None, dtype=torch.bool)
        return cls(compress(r), error_level(r, dr), known, errors_known, relative_sigma)

    def __getitem__(self, rows: slice) -> Seen:
        return Seen(*(getattr(self, item.name)[rows] for item in fields(self)))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change


class Network(nn.Module):
    """A residual network over the standardised curve, its errors, which points are known, and the resolution.

    Args:
        points: G, length of the grid.
        parameters: P, free parameters of the prior.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, points: int, parameters: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * points + 2, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, parameters))
        # Of the compressed curve at each point, see `standardise`.
        self.register_buffer("mean", torch.zeros(points))
        self.register_buffer("spread", torch.ones(points))

    def standardise(self, compressed: Tensor) -> None:
        """Takes mean and spread of the prior's curves from a sample, [B, G]."""
        spread, mean = torch.std_mean(compressed, dim=0)
        self.mean.copy_(mean)
        # Where all curves are alike, as in total reflection, noise must not be blown up.
        self.spread.copy_(spread.clamp_min(_LEAST_SPREAD))

    def forward(self, seen: Seen) -> Tensor:
        """Curves on the grid to [B, P], each within 0..1."""
        known = seen.known.float()
        curve = (seen.compressed.float() - self.mean) / self.spread * known
        errors_known = seen.errors_known.float()[:, None]
        errors = seen.error_level.float() * known * errors_known
        width = 50.0 * seen.relative_sigma.float()[:, None]
        x = self.stem(torch.cat([curve, errors, known, errors_known, width], dim=1))
        answer: Tensor = torch.sigmoid(self.head(self.blocks(x)))
        return answer
