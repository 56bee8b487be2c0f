"""Specular reflectivity and SLD profiles of batches of layered films, in float64 and differentiable.

Parratt's recursion with Nevot-Croce roughness. A medium of real SLD rho and absorption beta has

    k^2 = (q/2)^2 - 4 pi (rho - rho_fronting - i beta),

and the principal root has Im k >= 0, so waves decay along the beam and nothing here overflows. The absorption
of the fronting medium is left out: k in it is q/2, because q is what was measured there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# From 1e-6/angstrom^2 to 4 pi rho in 1/angstrom^2.
_POTENTIAL = 4.0e-6 * math.pi
# Keeps k off 0, where its root has no derivative; 24 orders of magnitude below any real absorption.
_TINY_ABSORPTION = 1e-30
# Below this, reflection is total.
_SMALLEST_Q = 1e-10
# The resolution function is cut here, in standard deviations.
_CUT = 3.5


@dataclass(frozen=True)
class Media:
    """A batch of B films of M media, fronting first, all float64.

    Attributes:
        sld, isld: [B, M], in 1e-6/angstrom^2.
        thickness: [B, M - 2], in angstrom.
        roughness: [B, M - 1], one per interface, in angstrom.
    """

    sld: Tensor
    isld: Tensor
    thickness: Tensor
    roughness: Tensor

    def reversed(self) -> Media:
        """The same films seen from the other side."""
        return Media(self.sld.flip(-1), self.isld.flip(-1), self.thickness.flip(-1), self.roughness.flip(-1))

    @classmethod
    def of(
        cls,
        sld: np.ndarray,
        thickness: np.ndarray,
        roughness: np.ndarray,
        isld: np.ndarray | None = None,
        device: str = "cpu",
    ) -> Media:
        """Films given as numpy arrays: [M], [M - 2], [M - 1] for one film or with a batch in front."""
        arrays = (sld, np.zeros_like(sld) if isld is None else isld, thickness, roughness)
        return cls(*(torch.as_tensor(np.atleast_2d(a), dtype=torch.float64, device=device) for a in arrays))


def reflectivity(q: Tensor, media: Media) -> Tensor:
    """Reflectivity without resolution; the beam comes through the first medium.

    Args:
        q: [N] or [B, N], in 1/angstrom.
        media: B films.

    Returns:
        [B, N].
    """
    k_fronting = 0.5 * q.abs().clamp_min(_SMALLEST_Q)
    k_squared = (k_fronting * k_fronting).expand(media.sld.shape[0], -1)
    contrast = _POTENTIAL * (media.sld - media.sld[:, :1])
    absorption = _POTENTIAL * (media.isld.abs() + _TINY_ABSORPTION)

    def wavenumber(medium: int) -> Tensor:
        if medium == 0:
            return torch.complex(k_squared.sqrt(), torch.zeros_like(k_squared))
        real = k_squared - contrast[:, medium, None]
        return torch.complex(real, absorption[:, medium, None].expand_as(real)).sqrt()

    last = media.sld.shape[1] - 1
    k_below = wavenumber(last)
    amplitude: Tensor | None = None
    for upper in range(last - 1, -1, -1):
        k_above = wavenumber(upper)
        variance = media.roughness[:, upper, None] ** 2
        fresnel = (k_above - k_below) / (k_above + k_below) * _exp(-2.0 * k_above * k_below * variance)
        if amplitude is None:
            amplitude = fresnel
        else:
            amplitude = amplitude * _exp(2j * k_below * media.thickness[:, upper, None])
            amplitude = (fresnel + amplitude) / (1.0 + fresnel * amplitude)
        k_below = k_above
    assert amplitude is not None  # noqa: S101 (a film has at least two media)
    return amplitude.real**2 + amplitude.imag**2


def _exp(z: Tensor) -> Tensor:
    # Three times as fast as torch.exp, which does not vectorise complex numbers on a CPU.
    size = z.real.exp()
    return torch.complex(size * z.imag.cos(), size * z.imag.sin())


def measured_reflectivity(
    q: Tensor,
    sigma: Tensor | None,
    media: Media,
    scale: Tensor | float,
    background: Tensor | float,
    order: int = 33,
) -> Tensor:
    """What an instrument sees: scale x (reflectivity blurred by a Gaussian in q) + background.

    The blur is a Gauss-Legendre quadrature over 3.5 standard deviations on each side, normalised to one.

    Args:
        q: [N] or [B, N], in 1/angstrom.
        sigma: standard deviation of q, broadcastable to q; None for perfect resolution.
        media: B films.
        scale, background: numbers or [B].
        order: points of the quadrature.

    Returns:
        [B, N].
    """
    if sigma is None:
        sharp = reflectivity(q, media)
    else:
        nodes, weights = (torch.from_numpy(array).to(q.device) for array in _quadrature(order))
        spread = q[..., None] + sigma[..., None] * nodes
        sharp = reflectivity(spread.flatten(-2), media).reshape(len(media.sld), -1, order) @ weights
    return _column(scale) * sharp + _column(background)


def _column(value: Tensor | float) -> Tensor | float:
    return value[:, None] if isinstance(value, Tensor) else value


@lru_cache(maxsize=16)
def _quadrature(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in standard deviations, and weights of a Gaussian that sum to one."""
    x, w = np.polynomial.legendre.leggauss(order)
    nodes = _CUT * x
    weights = w * np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def profile(z: Tensor, values: Tensor, media: Media) -> Tensor:
    """SLD against depth: error functions at the interfaces, the first of which is at z = 0.

    Args:
        z: [Z] or [B, Z], in angstrom, growing from fronting to backing.
        values: [B, M], `media.sld` or `media.isld`.
        media: B films.

    Returns:
        [B, Z], in the unit of `values`.
    """
    total = values[:, :1].expand(-1, z.shape[-1])
    for index, position in enumerate(interfaces(media).unbind(-1)):
        # A sharp interface is one of a ten-thousandth of an angstrom.
        width = math.sqrt(2.0) * media.roughness[:, index, None].clamp_min(1e-4)
        step = 0.5 + 0.5 * torch.erf((z - position[:, None]) / width)
        total = total + (values[:, index + 1, None] - values[:, index, None]) * step
    return total


def interfaces(media: Media) -> Tensor:
    """Depth of each interface below the first, [B, M - 1], in angstrom."""
    return torch.cat([torch.zeros_like(media.roughness[:, :1]), media.thickness.cumsum(-1)], dim=-1)


def depth_grid(media: Media, points: int) -> Tensor:
    """One depth grid, [points], that holds every interface of every film with its tails."""
    depth, tail = interfaces(media), 4.0 * media.roughness
    low = min(float((depth - tail).min()), -10.0)
    high = max(float((depth + tail).max()), float(depth.max()) + 10.0)
    return torch.linspace(low, high, points, dtype=torch.float64, device=media.sld.device)
