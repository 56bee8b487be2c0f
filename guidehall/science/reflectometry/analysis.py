"""A measured curve in, physics out: the network's answer, or the fit that starts from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.params import sigma_of
from guidehall.science.reflectometry.polish import polish
from guidehall.science.reflectometry.predictor import PROFILE_POINTS, PhysicalArguments, PhysicalPredictor
from guidehall.science.reflectometry.prior import Prior

ANALYSIS_VERSION = "1"
# More than this share of the points outside the trained range, and the curve is not one for this model.
MAX_CUT = 0.2
# From here on an answer is no description of the curve: of the mean |log10 R|, and of a fit's chi-square per
# degree of freedom, which is 1 where model and error bars are right.
_POOR_LOG10_ERROR = 0.15
_POOR_REDUCED_CHI_SQUARE = 10.0
# Rounding of a q that was written with few digits must not cut it.
_SLACK = 1e-4
# Quadrature points of the resolution in what is reported: enough for sharp edges of total reflection.
_FINAL_ORDER = 101

Stage = Literal["network", "refined"]


@dataclass(frozen=True)
class Parameter:
    """A parameter that was found; bounds are the prior's, the error one standard deviation."""

    name: str
    unit: str
    value: float
    lower: float
    upper: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Note:
    """What a reader of the answer must know. `code` is for programs and stays the same."""

    code: str
    message: str


@dataclass(frozen=True)
class Analysis:
    """What was found, and how well it explains the points that were used.

    Attributes:
        unit: [P] the parameters in the prior's unit cube; `refine` starts from it.
        z, sld, isld: the profile, from fronting to backing medium.
        used_points: [U] indices into the curve.
        q, calculated: [U] the curve of the answer, at the measured q.
        residuals: [U] (measured - calculated) / dr; None without dr, like the two chi-squares.
        reduced_chi_square: None also when there are not more points than parameters.
        mean_abs_log10_error: mean of |log10 measured - log10 calculated| where both are positive; NaN if
            nowhere.
    """

    stage: Stage
    parameters: tuple[Parameter, ...]
    unit: np.ndarray
    z: np.ndarray
    sld: np.ndarray
    isld: np.ndarray
    used_points: np.ndarray
    q: np.ndarray
    calculated: np.ndarray
    residuals: np.ndarray | None
    chi_square: float | None
    reduced_chi_square: float | None
    mean_abs_log10_error: float
    notes: tuple[Note, ...]

    @property
    def points_cut(self) -> bool:
        """Whether points were left out."""
        return any(note.code == "POINTS_CUT" for note in self.notes)


@dataclass(frozen=True)
class _Prepared:
    """The points of a curve that a model can use; sigma is one standard deviation of q."""

    q: np.ndarray
    r: np.ndarray
    dr: np.ndarray | None
    sigma: np.ndarray
    used_points: np.ndarray
    notes: tuple[Note, ...]


def analyse(model: PhysicalPredictor, curve: Curve, field: str = "curve") -> Analysis:
    """The network's answer to one curve. Takes milliseconds.

    Raises:
        UserError: the curve is wrong or not one for this model; the path starts with `field`.
    """
    prepared = _prepare(model.arguments, curve, field)
    with torch.inference_mode():
        q, r = (torch.from_numpy(array)[None] for array in (prepared.q, prepared.r))
        relative = torch.tensor([float(np.median(prepared.sigma / prepared.q))])
        device = model.device
        unit = (
            model.unit(q.to(device), r.to(device), relative.to(device), f"{field}.q")[0]
            .double()
            .cpu()
            .numpy()
        )
    return _describe(model.arguments, prepared, unit, "network", None)


def refine(arguments: PhysicalArguments, curve: Curve, start: np.ndarray, field: str = "curve") -> Analysis:
    """The least-squares fit that starts at `start`, an `Analysis.unit`. Takes up to seconds.

    Needs no network: arguments, curve and start can be sent to another process.

    Raises:
        UserError: as `analyse`.
    """
    prepared = _prepare(arguments, curve, field)
    prior = Prior(arguments.stack, arguments.probe)
    best = polish(prior, prepared.q, prepared.r, prepared.dr, prepared.sigma, start)
    return _describe(arguments, prepared, best.unit, "refined", best.standard_errors)


def _prepare(arguments: PhysicalArguments, curve: Curve, field: str) -> _Prepared:
    curve.check(field)
    side = arguments.stack.beam
    if curve.beam_side not in (None, side):
        raise UserError(
            f"{field}.beam_side", curve.beam_side, f"the model was trained for a beam through the {side}"
        )
    low, high = arguments.probe.q_min, arguments.probe.q_max
    inside = (curve.q >= low * (1 - _SLACK)) & (curve.q <= high * (1 + _SLACK))
    cut = len(curve.q) - int(inside.sum())
    notes = []
    if cut > MAX_CUT * len(curve.q):
        allowed = f"at most {MAX_CUT:.0%} may lie outside {low:g} to {high:g} 1/angstrom, the trained range"
        raise UserError(f"{field}.q", f"{cut} of {len(curve.q)} points outside", allowed)
    if cut:
        message = (
            f"{cut} of {len(curve.q)} points lie outside {low:g} to {high:g} 1/angstrom and were left out"
        )
        notes.append(Note("POINTS_CUT", message))
    sigma, more = _resolution(arguments, curve)
    if curve.dr is None:
        notes.append(Note("NO_ERROR_BARS", "the curve has no dr, so there is no chi-square"))
    return _Prepared(
        q=curve.q[inside],
        r=curve.r[inside],
        dr=None if curve.dr is None else curve.dr[inside],
        sigma=sigma[inside],
        used_points=np.flatnonzero(inside),
        notes=(*notes, *more),
    )


def _resolution(arguments: PhysicalArguments, curve: Curve) -> tuple[np.ndarray, list[Note]]:
    """One standard deviation of each q, and what to say about it."""
    notes = []
    if curve.dq is not None:
        sigma = curve.dq
    elif curve.relative_dq is not None:
        sigma = curve.relative_dq * curve.q
    else:
        relative = arguments.middle_resolution
        sigma = relative * curve.q
        message = f"the curve has no dq; {relative:.4g} q (one standard deviation) was assumed"
        notes.append(Note("RESOLUTION_ASSUMED", message))
    bounds, convention = arguments.probe.resolution, arguments.probe.resolution_convention
    low, high = (sigma_of(end, convention) for end in (bounds.min, bounds.max))
    typical = float(np.median(sigma / curve.q))
    if not 0.99 * low <= typical <= 1.01 * high:
        message = f"dq/q is {typical:.4g} (one standard deviation); trained were {low:.4g} to {high:.4g}"
        notes.append(Note("RESOLUTION_OUTSIDE_TRAINING", message))
    return sigma, notes


@torch.inference_mode()
def _describe(
    arguments: PhysicalArguments,
    prepared: _Prepared,
    unit: np.ndarray,
    stage: Stage,
    standard_errors: np.ndarray | None,
) -> Analysis:
    prior = Prior(arguments.stack, arguments.probe)
    values = prior.values(torch.from_numpy(unit)[None])
    q, sigma = torch.from_numpy(prepared.q), torch.from_numpy(prepared.sigma)
    calculated = prior.measured(q, sigma, values, _FINAL_ORDER)[0].numpy()
    films, z = prior.films(values), prior.depth_grid(PROFILE_POINTS)
    residuals = None if prepared.dr is None else (prepared.r - calculated) / prepared.dr
    chi_square = None if residuals is None else float(residuals @ residuals)
    freedom = len(calculated) - len(unit)
    positive = (prepared.r > 0) & (calculated > 0)
    errors = np.abs(np.log10(prepared.r[positive] / calculated[positive]))
    error = float(errors.mean()) if len(errors) else float("nan")
    reduced = None if chi_square is None or freedom <= 0 else chi_square / freedom
    return Analysis(
        stage=stage,
        parameters=_parameters(prior, values[0].numpy(), standard_errors),
        unit=unit,
        z=z.numpy(),
        sld=profile(z, films.sld, films)[0].numpy(),
        isld=profile(z, films.isld, films)[0].numpy(),
        used_points=prepared.used_points,
        q=prepared.q,
        calculated=calculated,
        residuals=residuals,
        chi_square=chi_square,
        reduced_chi_square=reduced,
        mean_abs_log10_error=error,
        notes=(*prepared.notes, *_doubts(stage, error, reduced)),
    )


def _doubts(stage: Stage, mean_abs_log10_error: float, reduced_chi_square: float | None) -> Iterator[Note]:
    """What to say of an answer that does not explain the curve."""
    poor = mean_abs_log10_error > _POOR_LOG10_ERROR
    why = f"mean |log10 R| between curve and answer is {mean_abs_log10_error:.2g}"
    # The network alone is judged on a scale where the few brightest points do not decide everything.
    if stage == "refined" and reduced_chi_square is not None:
        poor = poor or reduced_chi_square > _POOR_REDUCED_CHI_SQUARE
        why += f", chi-square per degree of freedom {reduced_chi_square:.3g}"
    if poor:
        yield Note("POOR_FIT", f"{why}: the sample may not be one that this model was trained for")


def _parameters(
    prior: Prior, values: np.ndarray, standard_errors: np.ndarray | None
) -> tuple[Parameter, ...]:
    errors = np.full(len(values), np.nan) if standard_errors is None else standard_errors
    return tuple(
        Parameter(
            name=free.name,
            unit=free.unit,
            value=float(value),
            lower=free.lower,
            upper=free.upper,
            standard_error=None if np.isnan(error) else float(error),
        )
        for free, value, error in zip(prior.free, values, errors, strict=True)
    )
