"""The network: a curve on its own grid in, a point of the prior's unit cube out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Reflectivity at which the compression turns from logarithmic to linear: below it, noise is as large as the
# signal and may be negative.
_FLOOR = 1e-7
_LOG10 = math.log(10.0)
# Of compressed curves in general, and the least that a point is scaled by: decades.
_MEAN, _SPREAD, _LEAST_SPREAD = -3.0, 3.0, 0.02


def compress(r: Tensor) -> Tensor:
    """log10 of reflectivity well above 1e-7, linear around zero: no point has to be dropped."""
    return torch.asinh(r / (2.0 * _FLOOR)) / _LOG10 + math.log10(_FLOOR)


def compress_slope(r: Tensor) -> Tensor:
    """Derivative of `compress`."""
    return 1.0 / (_LOG10 * (r * r + (2.0 * _FLOOR) ** 2).sqrt())


def resample(q: Tensor, r: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Brings curves to the network's grid by interpolation of the compressed reflectivity in log q.

    Args:
        q, r: [B, N], q ascending in each row, NaN only behind the last point.
        grid: [G].

    Returns:
        compressed reflectivity [B, G], and which grid points lie within the curve [B, G]; elsewhere it is 0.
    """
    missing = torch.isnan(q) | torch.isnan(r)
    log_q = torch.where(missing, math.inf, q.clamp_min(1e-12).log())
    y = torch.where(missing, 0.0, compress(r))
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
    value = y.gather(1, left) * (1.0 - share) + y.gather(1, right) * share
    return torch.where(known, value, 0.0), known


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
    """A residual network over the standardised curve, the mask of known points and the resolution.

    Args:
        points: G, length of the grid.
        parameters: P, free parameters of the prior.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, points: int, parameters: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(2 * points + 1, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, parameters))
        # Of the compressed curve at each point; typical curves fall from 0 to -6.
        self.register_buffer("mean", torch.full((points,), _MEAN))
        self.register_buffer("spread", torch.full((points,), _SPREAD))

    def standardise(self, compressed: Tensor) -> None:
        """Takes mean and spread of the prior's curves from a sample, [B, G]."""
        spread, mean = torch.std_mean(compressed, dim=0)
        self.mean.copy_(mean)
        # Where all curves are alike, as in total reflection, noise must not be blown up.
        self.spread.copy_(spread.clamp_min(_LEAST_SPREAD))

    def forward(self, compressed: Tensor, known: Tensor, relative_sigma: Tensor) -> Tensor:
        """[B, G], [B, G] and [B] to [B, P], each within 0..1."""
        mask = known.float()
        curve = (compressed.float() - self.mean) / self.spread * mask
        width = 50.0 * relative_sigma.float()[:, None]
        x = self.stem(torch.cat([curve, mask, width], dim=1))
        answer: Tensor = torch.sigmoid(self.head(self.blocks(x)))
        return answer


def standard_scale(points: int) -> dict[str, Tensor]:
    """The scale of the input of networks that were made before it was one of their weights."""
    return {"mean": torch.full((points,), _MEAN), "spread": torch.full((points,), _SPREAD)}
