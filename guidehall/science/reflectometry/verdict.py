"""Whether an answer may be believed: tests of what a fit leaves over."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from guidehall.science.reflectometry.fit import CurveTarget, Mode
from guidehall.science.reflectometry.network import compress
from guidehall.science.reflectometry.params import Note

# Chances below which a right model with right error bars is doubted: of so large a chi-square, and of
# residuals that so much resemble their neighbours.
_CHI_SQUARE_CHANCE = 2e-3
_NEIGHBOUR_CHANCE = 2e-3
# The same of so small a chi-square. Rarer, for error bars on the safe side mislead nobody much.
_SMALL_CHI_SQUARE_CHANCE = 1e-4
# By how much chi-square would fall if the parameters might leave their bounds, to blame the bounds.
_PRIOR_GAIN = 16.0
# From here on an answer without error bars is no description of the curve: mean |log10 R|.
_POOR_LOG10_ERROR = 0.15
# In error bars: a curve without any point like that shows nothing.
SIGNAL = 3.0


def poor_fit(target: CurveTarget, unit: torch.Tensor, mean_abs_log10_error: float) -> Iterator[Note]:
    """POOR_FIT or NO_SIGNAL, when the answer at `unit`, [1, P], does not describe the target's curve at all.

    Args:
        mean_abs_log10_error: as in `Analysis`.
    """
    error = mean_abs_log10_error
    if target.dr is None:
        # Nothing says that what is not positive is noise, so it counts too.
        whole = float((compress(target.curves(unit)) - target.compressed).abs().mean())
        error = whole if math.isnan(error) else max(error, whole)
    elif not _has_signal(target.r, target.dr):
        yield Note(
            "NO_SIGNAL",
            f"no point of the curve lies above zero by {SIGNAL:g} error bars; are R and dR in each other's"
            " column?",
        )
        return
    if error > _POOR_LOG10_ERROR:
        yield Note(
            "POOR_FIT",
            f"mean |log10 R| between curve and answer is {error:.2g}: the sample may not be one that this"
            " model was made for",
        )


def _has_signal(r: torch.Tensor, dr: torch.Tensor) -> bool:
    return bool((r > SIGNAL * dr).any())


def doubts(target: CurveTarget, mode: Mode, row: int = 0) -> Iterator[Note]:
    """What is wrong with the best fit of data `row`, which have error bars; the codes are in its parts."""
    rows = torch.tensor([row])
    residuals, slopes = target.linearise(torch.from_numpy(mode.unit)[None], rows)
    left, jacobian = residuals[0].numpy(), slopes[0].numpy()
    for note in _structure(left, jacobian, mode.covariance):
        # Of a curve that shows nothing an answer is not better known than it seems.
        if note.code != "ERROR_BARS_TOO_LARGE" or (
            target.dr is not None and _has_signal(target.r[row], target.dr[row])
        ):
            yield note
    yield from _bounds(target, mode, left, jacobian)


def _structure(left: np.ndarray, jacobian: np.ndarray, covariance: np.ndarray) -> Iterator[Note]:
    # Parameters that the prior holds rather than this curve, or other curves of the same fit, take no freedom
    # from its points.
    used = float(np.trace(covariance @ (jacobian @ jacobian.T)))
    if len(left) < used + 1.0:
        yield Note(
            "TOO_FEW_POINTS",
            f"{len(left)} points for {len(jacobian)} parameters: any film of the model explains them, and"
            " nothing tests the answer",
        )
        return
    freedom = len(left) - used
    chi_square = float(left @ left)
    # Not all parameters: chi-square per degree of freedom, which stands beside this, counts each as one.
    less = f"{len(left)} points less the {used:.3g} parameters that they decide"
    expected = f"{freedom:.3g} ± {math.sqrt(2.0 * freedom):.2g} ({less})"
    if _chance_of_more(chi_square, freedom) < _CHI_SQUARE_CHANCE:
        yield Note(
            "MODEL_INSUFFICIENT",
            f"chi-square is {chi_square:.4g} where a right model gives {expected}: the film has more"
            " structure than the model, or the error bars or the resolution are not those given",
        )
        return
    if 1.0 - _chance_of_more(chi_square, freedom) < _SMALL_CHI_SQUARE_CHANCE:
        yield Note(
            "ERROR_BARS_TOO_LARGE",
            f"chi-square is {chi_square:.4g} where a right model gives {expected}: the curve scatters less"
            " than its error bars say, so the answer may be better known than it seems",
        )
        return
    resemblance = float(left[1:] @ left[:-1]) / max(chi_square, 1e-300) * math.sqrt(len(left))
    if 0.5 * math.erfc(resemblance / math.sqrt(2.0)) < _NEIGHBOUR_CHANCE:
        yield Note(
            "MODEL_INSUFFICIENT",
            f"neighbouring residuals resemble each other, {resemblance:.2g} standard deviations more than by"
            " chance: the model misses a feature of the curve",
        )


def _chance_of_more(chi_square: float, freedom: float) -> float:
    """That chi-square of so many degrees of freedom exceeds a value."""
    half = torch.tensor([freedom, chi_square], dtype=torch.float64) / 2.0
    return float(torch.special.gammaincc(half[0], half[1]))


def _bounds(target: CurveTarget, mode: Mode, left: np.ndarray, jacobian: np.ndarray) -> Iterator[Note]:
    gradient = jacobian @ left
    pushed = ((mode.unit <= 0.0) & (gradient > 0)) | ((mode.unit >= 1.0) & (gradient < 0))
    for place in np.flatnonzero(pushed):
        # No more than there is, which the curvature at one point may promise.
        gain = min(float(gradient[place] ** 2 * mode.covariance[place, place]), float(left @ left))
        if gain > _PRIOR_GAIN:
            free = target.prior.free[place]
            bound = free.lower if mode.unit[place] <= 0.0 else free.upper
            yield Note(
                "OUTSIDE_PRIOR",
                f"{free.name} would go beyond {bound:g} {free.unit}".rstrip()
                + f", its bound: chi-square would fall by about {gain:.3g}",
            )
