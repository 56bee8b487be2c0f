"""Specular reflectivity and SLD profiles of batches of layered films, in float64 and differentiable.

Parratt's recursion with Nevot-Croce roughness. A medium of real SLD rho and absorption beta has

    k^2 = (q/2)^2 - 4 pi (rho - rho_fronting - i beta),

and the principal root has Im k >= 0, so waves decay along the beam and nothing here overflows. The absorption
of the fronting medium is left out: k in it is q/2, because q is what was measured there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# From 1e-6/angstrom^2 to 4 pi rho in 1/angstrom^2.
_POTENTIAL = 4.0e-6 * math.pi
# Keeps k off 0, where its root has no derivative; 24 orders of magnitude below any real absorption.
_TINY_ABSORPTION = 1e-30
# Below this, reflection is total.
_SMALLEST_Q = 1e-10
# Spacing in angstrom of the nodes of a sampled profile.
_NODE = 0.1


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


# A complex number in real arithmetic, which torch does several times as fast: (real part, imaginary part).
_Complex = tuple[Tensor, Tensor]


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
    # Not abs, which has no slope at 0, where most films are.
    absorption = _POTENTIAL * (torch.where(media.isld < 0, -media.isld, media.isld) + _TINY_ABSORPTION)

    def wavenumber(medium: int) -> _Complex:
        if medium == 0:
            return k_squared.sqrt(), torch.zeros_like(k_squared)
        return _root(k_squared - contrast[:, medium, None], absorption[:, medium, None])

    last = media.sld.shape[1] - 1
    below = wavenumber(last)
    amplitude: _Complex | None = None
    for upper in range(last - 1, -1, -1):
        above = wavenumber(upper)
        blur = -2.0 * media.roughness[:, upper, None] ** 2
        product = _times(above, below)
        damped = _exp((blur * product[0], blur * product[1]))
        total = (above[0] + below[0], above[1] + below[1])
        # Fresnel's coefficient times `total`, so that one division does.
        step = _times((above[0] - below[0], above[1] - below[1]), damped)
        if amplitude is None:
            amplitude = _divide(step, total)
        else:
            path = 2.0 * media.thickness[:, upper, None]
            arriving = _times(amplitude, _exp((-path * below[1], path * below[0])))
            scaled, back = _times(arriving, total), _times(step, arriving)
            amplitude = _divide(
                (step[0] + scaled[0], step[1] + scaled[1]), (total[0] + back[0], total[1] + back[1])
            )
        below = above
    assert amplitude is not None  # noqa: S101 (a film has at least two media)
    return amplitude[0] ** 2 + amplitude[1] ** 2


def _root(x: Tensor, y: Tensor) -> _Complex:
    """The root of x + iy with Im >= 0, for y > 0."""
    large = (0.5 * ((x * x + y * y).sqrt() + x.abs())).sqrt()
    small = 0.5 * y / large
    forward = x >= 0
    return torch.where(forward, large, small), torch.where(forward, small, large)


def _times(a: _Complex, b: _Complex) -> _Complex:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _divide(a: _Complex, b: _Complex) -> _Complex:
    scale = 1.0 / (b[0] * b[0] + b[1] * b[1])
    return (a[0] * b[0] + a[1] * b[1]) * scale, (a[1] * b[0] - a[0] * b[1]) * scale


def _exp(z: _Complex) -> _Complex:
    size = z[0].exp()
    return size * z[1].cos(), size * z[1].sin()


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


def sampled_profile(media: Media, values: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """The profile as refl1d samples it, on an even grid of each film's own.

    From 10 angstrom, or three times the roughness if that is more, before the first interface to as much
    behind the last. Between nodes 0.1 angstrom apart it is a straight line, which is what remains of an
    interface that is sharper than that.

    Args:
        media: B films.
        values: [B, M], `media.sld` or `media.isld`.
        points: of the grid.

    Returns:
        z in angstrom and the profile, each [B, points].
    """
    depth = interfaces(media)
    left = (depth - 3.0 * media.roughness).amin(-1).clamp_max(-10.0)
    right = torch.maximum((depth + 3.0 * media.roughness).amax(-1), depth[:, -1] + 10.0)
    last = torch.ceil((right + 0.05 - left) / _NODE) - 1.0
    place = last[:, None] * torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=values.device)
    node = place.floor()
    part = place - node
    before, after = (profile(left[:, None] + _NODE * at, values, media) for at in (node, node + 1.0))
    return left[:, None] + _NODE * place, (1.0 - part) * before + part * after
