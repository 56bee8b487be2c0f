"""Resolution: a constant banded matrix from a calculated curve to what an instrument sees of it.

For fixed q and dq both rules below are linear in the curve, so their weights are made once and reused for
every film.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.params import ResolutionMode

# Points of the quadrature when nothing else is asked: good for films up to some 500 angstrom.
DEFAULT_ORDER = 33
# Points over one window: so many, and more for each radian of phase that the fringes of a film turn in it. A
# polynomial needs half a point for each; the rest is for what reflects more than once. In steps, so that few
# numbers of points, whose nodes take a while to find, do for all curves.
_EXACT, _QUICK = 101, 16
_PER_RADIAN, _STEP = 0.75, 16
# The same where total reflection may end: no polynomial follows the kink well.
_EXACT_AT_EDGE, _QUICK_AT_EDGE = 301, 65
# At most, over one window and over all of a curve: what is calculated must fit into memory.
_MOST, _MOST_OF_CURVE = 2000, 4_000_000
# Where the Gaussian is cut, in standard deviations.
_CUT = 3.5
# refl1d's cut: where it has fallen to a thousandth.
_REFL1D_CUT = math.sqrt(-2.0 * math.log(1e-3))


@dataclass(frozen=True)
class Resolution:
    """measured[n] = sum over k of weights[n, k] calculated[first[n] + k].

    Attributes:
        q: [C] where the curve is calculated, in 1/angstrom.
        first: [N] int64.
        weights: [N, K]; each row sums to one.
    """

    q: Tensor
    first: Tensor
    weights: Tensor

    @cached_property
    def first_int32(self) -> Tensor:
        """`first` as the compiled engine reads it."""
        return self.first.to(torch.int32)

    @cached_property
    def _columns(self) -> Tensor:
        return self.first[:, None] + torch.arange(self.weights.shape[1], device=self.first.device)

    def apply(self, curves: Tensor) -> Tensor:
        """[..., C] to [..., N], differentiable."""
        return (curves[..., self._columns] * self.weights).sum(-1)

    def spread(self, gradients: Tensor) -> Tensor:
        """Gradients by measured points, [B, N], to those by calculated ones, [B, C]: the transpose."""
        parts = (gradients[..., None] * self.weights).flatten(1)
        shape = (len(gradients), len(self.q))
        return torch.zeros(shape, dtype=parts.dtype, device=parts.device).index_add_(
            1, self._columns.flatten(), parts
        )

    def to(self, device: str | torch.device) -> Resolution:
        """The same on another device."""
        return Resolution(self.q.to(device), self.first.to(device), self.weights.to(device))


@dataclass(frozen=True)
class Features:
    """What a quadrature has to follow in the curves of some films.

    Attributes:
        thickness: of the thickest film, in angstrom: that of the finest fringes.
        edge: up to which measured q total reflection may end, in 1/angstrom; 0 without any.
    """

    thickness: float
    edge: float

    @classmethod
    def of(cls, media: Media, q_offset: float = 0.0) -> Features:
        """Those of films that are seen from their first medium, by an instrument whose q is too small by at
        least `q_offset`, in 1/angstrom."""
        # Of a thick layer, too: little gets through it to the backing.
        contrast = float((media.sld.max() - media.sld[:, 0].min()).clamp_min(0.0))
        edge = 4.0 * math.sqrt(1e-6 * math.pi * contrast)
        return cls(float(media.thickness.sum(-1).max()), max(edge - q_offset, 0.0) if edge else 0.0)


def orders(q: np.ndarray, sigma: np.ndarray, features: Features, *, exact: bool) -> np.ndarray:
    """Points of the quadrature over the resolution of each measured point, [N].

    For error bars of 1 % of R and films up to 4000 angstrom at 10 % FWHM, chi-square is off by less than one
    in the median of random films, and with `exact` by less than 0.2: it costs up to three times as much.

    Args:
        q, sigma: [N], in 1/angstrom; sigma is one standard deviation.
    """
    reach = _CUT * sigma
    anywhere, at_edge = (_EXACT, _EXACT_AT_EDGE) if exact else (_QUICK, _QUICK_AT_EDGE)
    wanted = anywhere + _STEP * np.ceil(_PER_RADIAN / _STEP * reach * features.thickness)
    wanted = np.where(q - reach <= features.edge, np.maximum(wanted, at_edge), wanted)
    most = min(_MOST, max(DEFAULT_ORDER, _MOST_OF_CURVE // len(q)))
    found: np.ndarray = np.minimum(wanted, most).astype(np.int64)
    return found


def order_for(sigma: float, features: Features, least: int) -> int:
    """One number of points for a whole curve whose largest sigma is so wide, in 1/angstrom.

    At least so many, which do for fringes of up to half a turn over the window.
    """
    fringes = math.ceil(_PER_RADIAN * _CUT * sigma * features.thickness)
    return min(max(least, least // 2 + fringes), _MOST)


def resolution(
    q: np.ndarray,
    sigma: np.ndarray | None,
    mode: ResolutionMode = "quadrature",
    order: int | np.ndarray = DEFAULT_ORDER,
) -> Resolution:
    """The matrix for measured points.

    Args:
        q: [N], in 1/angstrom; ascending for the mode "refl1d".
        sigma: [N] standard deviations of q; None or all zero for perfect resolution.
        mode: "quadrature" integrates over 3.5 standard deviations by Gauss and Legendre, normalised to one.
            "refl1d" is that package's rule without oversampling: the curve is a straight line between the
            measured points.
        order: of the quadrature, points for each measured one, or [N], for each its own.
    """
    if sigma is None or not np.any(sigma > 0):
        return _tensors(q, np.arange(len(q)), np.ones((len(q), 1)))
    if mode == "refl1d":
        return _piecewise_linear(q, sigma)
    each = np.broadcast_to(order, q.shape)
    ends = np.cumsum(each)
    width = int(each.max())
    calculated = np.empty(ends[-1])
    # The band of each row is as wide as the widest, and must lie within the curve.
    first = np.minimum(ends - each, ends[-1] - width)
    weights = np.zeros((len(q), width))
    for row, (end, count) in enumerate(zip(ends, each, strict=True)):
        nodes, share = quadrature(int(count))
        calculated[end - count : end] = q[row] + sigma[row] * nodes
        weights[row, end - count - first[row] :][:count] = share
    return _tensors(calculated, first, weights)


@lru_cache(maxsize=1024)
def quadrature(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in standard deviations, and the weights there of a Gaussian, which sum to one."""
    x, gauss = np.polynomial.legendre.leggauss(order)
    nodes = _CUT * x
    weights = gauss * np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def _piecewise_linear(q: np.ndarray, sigma: np.ndarray) -> Resolution:
    """Integrals of a Gaussian times a curve that is straight between its points, divided by its area.

    Only the points from the last one at or below q - L to the first one at or above q + L are used, L = 3.717
    standard deviations, and what of the window lies beyond the ends of the data is left out.
    """
    nodes = np.unique(q)
    reach = _REFL1D_CUT * sigma
    first = np.maximum(np.searchsorted(nodes, q - reach, side="right") - 1, 0)
    last = np.minimum(np.searchsorted(nodes, q + reach, side="left"), len(nodes) - 1)
    width = int((last - first).max()) + 1
    # The band must lie within the curve for every row.
    start = np.minimum(first, len(nodes) - width)
    weights = np.zeros((len(q), width))
    blurred = (sigma > 0) & (last > first)
    spread = np.where(blurred, sigma, 1.0)
    for k in range(width - 1):
        # The interval from node k to node k + 1 of the band, where it belongs to the window.
        left, right = nodes[start + k], nodes[start + k + 1]
        inside = blurred & (start + k >= first) & (start + k < last)
        t, u = ((x - q) / (math.sqrt(2.0) * spread) for x in (left, right))
        area = np.where(inside, 0.5 * (_erf(u) - _erf(t)), 0.0)
        # Of (x - q) times the Gaussian.
        moment = spread / math.sqrt(2.0 * math.pi) * (np.exp(-(t**2)) - np.exp(-(u**2)))
        share = np.where(inside, (moment - (left - q) * area) / (right - left), 0.0)
        weights[:, k] += area - share
        weights[:, k + 1] += share
    weights[~blurred, (np.searchsorted(nodes, q) - start)[~blurred]] = 1.0
    weights /= weights.sum(1, keepdims=True)
    return _tensors(nodes, start, weights)


def _erf(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = torch.special.erf(torch.from_numpy(x)).numpy()
    return found


def _tensors(q: np.ndarray, first: np.ndarray, weights: np.ndarray) -> Resolution:
    return Resolution(
        torch.from_numpy(np.ascontiguousarray(q, dtype=np.float64)),
        torch.from_numpy(first.astype(np.int64)),
        torch.from_numpy(np.array(weights, dtype=np.float64, order="C")),  # what was broadcast is read-only
    )
