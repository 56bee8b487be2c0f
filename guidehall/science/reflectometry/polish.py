"""Bounded least squares: from a good guess to the best fit within the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares

from guidehall.science.reflectometry.network import compress
from guidehall.science.reflectometry.prior import Prior

_MAX_EVALUATIONS = 60
# Step of central differences in the unit cube.
_STEP = 1e-6
# A guess on the edge of the cube would be stuck there.
_MARGIN = 0.02
# Closer to a bound than this, a parameter has no error bar: the bound decides, not the data.
_AT_BOUND = 1e-4


@dataclass(frozen=True)
class Polished:
    """The best fit.

    Attributes:
        unit: [P] in the prior's unit cube.
        standard_errors: [P] in the parameters' units; NaN where the data do not say. None without dr.
        evaluations: how often the curve was calculated, derivatives not counted.
    """

    unit: np.ndarray
    standard_errors: np.ndarray | None
    evaluations: int


def polish(
    prior: Prior, q: np.ndarray, r: np.ndarray, dr: np.ndarray | None, sigma: np.ndarray, start: np.ndarray
) -> Polished:
    """Fits all free parameters, scale and background among them, within their bounds.

    Minimises the sum of ((r - calculated) / dr)^2, or without dr that of the differences of log10 R.

    Args:
        q, r, dr, sigma: [N] the curve; sigma is one standard deviation of q.
        start: [P] guess in the unit cube.
    """
    points, widths, measured = (torch.from_numpy(array) for array in (q, sigma, r))
    deviation = None if dr is None else torch.from_numpy(dr)

    @torch.inference_mode()
    def residuals(unit: np.ndarray) -> np.ndarray:
        """[B, P] to [B, N]."""
        calculated = prior.measured(points, widths, prior.values(torch.from_numpy(unit)))
        if deviation is None:
            return (compress(measured) - compress(calculated)).numpy()
        return ((measured - calculated) / deviation).numpy()

    def jacobian(unit: np.ndarray) -> np.ndarray:
        """[P] to [N, P], in one batch."""
        steps = _STEP * np.eye(len(unit))
        both = residuals(np.concatenate([unit + steps, unit - steps]))
        forward, backward = np.split(both, 2)
        derivative: np.ndarray = (forward - backward).T / (2.0 * _STEP)
        return derivative

    found = least_squares(
        lambda unit: residuals(unit[None])[0],
        np.clip(start, _MARGIN, 1.0 - _MARGIN),
        jacobian,
        bounds=(0.0, 1.0),
        max_nfev=_MAX_EVALUATIONS,
    )
    errors = None if dr is None else _standard_errors(prior, found.x, found.jac)
    return Polished(found.x, errors, int(found.nfev))


def _standard_errors(prior: Prior, unit: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """One standard deviation of each parameter in its unit, from the curvature at the best fit."""
    free = (unit > _AT_BOUND) & (unit < 1.0 - _AT_BOUND)
    errors = np.full(len(unit), np.nan)
    curvature = jacobian[:, free].T @ jacobian[:, free]
    try:
        variance = np.diag(np.linalg.inv(curvature))
    except np.linalg.LinAlgError:
        return errors
    # Wider than the prior itself means that the data say nothing.
    told = (variance > 0.0) & (variance < 1.0)
    errors[free] = np.where(told, np.sqrt(np.where(told, variance, 0.0)), np.nan)
    pair = torch.from_numpy(np.stack([unit - _STEP, unit + _STEP]))
    low, high = prior.values(pair).numpy()
    slope = (high - low) / (2.0 * _STEP)
    scaled: np.ndarray = errors * slope
    return scaled
