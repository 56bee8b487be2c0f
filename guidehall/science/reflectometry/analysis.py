"""A measured curve in, physics out: the network's answer, or the fit that starts from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import CurveTarget, LogTarget, Mode, search, sharpen
from guidehall.science.reflectometry.kernel import Media, depth_grid, profile
from guidehall.science.reflectometry.params import (
    FWHM_PER_SIGMA,
    Note,
    ResolutionMode,
    TrainingProbe,
    sigma_of,
)
from guidehall.science.reflectometry.posterior import Posterior, sample
from guidehall.science.reflectometry.predictor import PhysicalArguments, PhysicalPredictor
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import orders, resolution
from guidehall.science.reflectometry.validity import unphysical
from guidehall.science.reflectometry.verdict import SIGNAL, doubts, poor_fit
from guidehall.science.reflectometry.watched import Pulse, Watched, nothing

ANALYSIS_VERSION = "2"
# More than this share of the points outside the trained range, and the curve is not one for this model.
MAX_CUT = 0.2
# Rounding of a q that was written with few digits must not cut it.
_SLACK = 1e-4
# Closer to a bound than this, a parameter has no error bar: the bound decides, not the data.
_AT_BOUND = 1e-4
# Of the curves and profiles of samples, so many points at once.
_AT_ONCE = 4_000_000
# Of a profile that is shown, in angstrom, and points of its grid.
_DEPTH_STEP = 1.0
_LEAST_DEPTHS, _MOST_DEPTHS = 256, 2048
# Fewer do not even tell an interval of 68 %.
_FEW_SAMPLES = 100
# In the unit cube, for a derivative.
_STEP = 1e-6
# Of a drawn curve, so many points at least: more are not seen.
_DRAWN = 600

Stage = Literal["network", "refined"]


@dataclass(frozen=True)
class Parameter:
    """A parameter that was found; bounds are the prior's, the error one standard deviation.

    Attributes:
        interval_68, interval_95: central credible intervals, where the posterior was sampled.
        at_bound: where the value rests at a bound of the prior, which the bound chose and not the curve.
    """

    name: str
    unit: str
    value: float
    lower: float
    upper: float
    standard_error: float | None = None
    interval_68: tuple[float, float] | None = None
    interval_95: tuple[float, float] | None = None
    at_bound: Literal["", "at lower bound", "at upper bound"] = ""


@dataclass(frozen=True)
class Explanation:
    """A film that the curve allows: a local minimum of chi-square (without dr, of the log10 misfit)."""

    values: tuple[float, ...]
    chi_square: float


@dataclass(frozen=True)
class Band:
    """Central credible band of a curve or a profile: [N] each."""

    lower_68: np.ndarray
    upper_68: np.ndarray
    lower_95: np.ndarray
    upper_95: np.ndarray


class Line(NamedTuple):
    """A calculated curve, to be drawn: [D] each."""

    q: np.ndarray
    r: np.ndarray


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
        mean_abs_log10_error: mean of |log10 measured - log10 calculated| where both are positive and the
            measured is above its noise; NaN if nowhere.
        explanations: of a refined answer, best first; values in the order of `parameters`.
        sld_band, calculated_band: of `sld` and `calculated`, where the posterior was sampled.
        samples: [S, P] of the posterior, in the order of `parameters`.
    """

    stage: Stage
    parameters: tuple[Parameter, ...]
    unit: np.ndarray
    z: np.ndarray
    sld: np.ndarray
    isld: np.ndarray
    used_points: np.ndarray
    q: np.ndarray
    # One standard deviation of q that was reckoned with.
    sigma: np.ndarray
    calculated: np.ndarray
    residuals: np.ndarray | None
    chi_square: float | None
    reduced_chi_square: float | None
    mean_abs_log10_error: float
    notes: tuple[Note, ...]
    explanations: tuple[Explanation, ...] = ()
    sld_band: Band | None = None
    calculated_band: Band | None = None
    samples: np.ndarray | None = None
    # How many independent samples the posterior's are worth.
    effective_samples: float | None = None
    # The calculated curve between the points too, for pictures; None where there is none but at the points.
    line: Line | None = None

    @property
    def points_cut(self) -> bool:
        """Whether points were left out."""
        return any(note.code == "POINTS_CUT" for note in self.notes)


@dataclass(frozen=True)
class Prepared:
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

        def row(column: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(column)[None].to(model.device)

        dr = None if prepared.dr is None else row(prepared.dr)
        relative = torch.tensor([float(np.median(prepared.sigma / prepared.q))], device=model.device)
        found = model.unit(row(prepared.q), row(prepared.r), dr, relative, f"{field}.q")
        unit = found[0].double().cpu().numpy()
    prior = Prior(model.arguments.stack, model.arguments.probe)
    exact = target_of(prior, prepared, model.arguments.probe.resolution_mode, exact=True)
    return describe(prepared, exact, exact, unit, "network")


def refine(
    arguments: PhysicalArguments,
    curve: Curve,
    start: np.ndarray,
    field: str = "curve",
    *,
    samples: int = 0,
    seed: int = 0,
) -> Analysis:
    """The best fit, looked for from `start`, an `Analysis.unit`, and from elsewhere. Takes up to seconds.

    Needs no network: arguments, curve and start can be sent to another process.

    Args:
        samples: of the posterior, for intervals and bands; needs dr. 0 leaves them out.
        seed: of the other starts and of the samples.

    Raises:
        UserError: as `analyse`.
    """
    prepared = _prepare(arguments, curve, field)
    prior = Prior(arguments.stack, arguments.probe)
    mode = arguments.probe.resolution_mode
    target, exact = (target_of(prior, prepared, mode, exact=exact) for exact in (False, True))
    watched, smoother = Watched(target), Watched(LogTarget(target))
    modes = search(watched, smoother, torch.from_numpy(start)[None, None], seed)[0]
    modes = sharpen(Watched(exact), modes)
    posterior = None
    if samples and prepared.dr is not None:
        posterior = sample(watched, modes, samples, seed)
    analysis = describe(prepared, target, exact, modes[0].unit, "refined", modes, posterior)
    more = () if prepared.dr is None else tuple(doubts(exact, modes[0]))
    return replace(analysis, notes=(*analysis.notes, *more))


def target_of(prior: Prior, prepared: Prepared, mode: ResolutionMode, *, exact: bool) -> CurveTarget:
    """What a fit of the points minimises, or, `exact`, what its last steps do."""
    return CurveTarget(prior, prepared.q, prepared.r, prepared.dr, prepared.sigma, mode, exact=exact)


@torch.inference_mode()
def drawn_line(prior: Prior, prepared: Prepared, mode: ResolutionMode, unit: np.ndarray) -> Line | None:
    """The curve of the point `unit`, [P], at the measured q and evenly between them.

    The resolution between two points is between theirs. None where the points are dense enough, and in the
    mode `refl1d`, in which a curve depends on the points that it is calculated at.
    """
    q, place = np.unique(prepared.q, return_inverse=True)
    gaps = len(q) - 1
    if not 0 < gaps < _DRAWN or mode == "refl1d":
        return None
    # Of several points at one q, which angles have in common, the middle.
    sigma = np.bincount(place, prepared.sigma) / np.bincount(place)
    number = np.linspace(0.0, gaps, -(-_DRAWN // gaps) * gaps + 1)
    fine = np.interp(number, np.arange(len(q)), q)
    between = np.interp(fine, q, sigma)
    seen = resolution(fine, between, mode, orders(fine, between, prior.features, exact=True))
    return Line(fine, prior.curves(seen, prior.values(torch.from_numpy(unit)[None]))[0].numpy())


def _prepare(arguments: PhysicalArguments, curve: Curve, field: str) -> Prepared:
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
    return Prepared(
        q=curve.q[inside],
        r=curve.r[inside],
        dr=None if curve.dr is None else curve.dr[inside],
        sigma=sigma[inside],
        used_points=np.flatnonzero(inside),
        notes=(*file_notes(curve), *notes, *more),
    )


def file_notes(curve: Curve) -> list[Note]:
    """How the file of a curve was understood."""
    return [Note("FILE_READ", text) for text in curve.metadata.notes]


def given_resolution(probe: TrainingProbe, curve: Curve) -> tuple[np.ndarray, list[Note]]:
    """One standard deviation of each q, [N]: the curve's own, or the middle of the probe's and a note."""
    if curve.sigma is not None:
        return curve.sigma, _without_resolution(curve.sigma)
    relative = sigma_of(0.5 * (probe.resolution.min + probe.resolution.max), probe.resolution_convention)
    return relative * curve.q, [assumed_resolution(relative)]


def _without_resolution(sigma: np.ndarray) -> list[Note]:
    """NO_RESOLUTION, where a curve's own dq is 0: often that stands for what nobody knows."""
    count = int((sigma == 0).sum())
    if not count:
        return []
    where = "every point" if count == len(sigma) else f"{count} of {len(sigma)} points"
    message = f"dq is 0 at {where}: the answer is that of a perfect instrument; leave dq out if it is unknown"
    return [Note("NO_RESOLUTION", message)]


def assumed_resolution(relative_sigma: float) -> Note:
    """RESOLUTION_ASSUMED, of a curve without dq."""
    message = (
        f"the curve has no dq; {relative_sigma:.4g} q (one standard deviation; full width at half maximum"
        f" {relative_sigma * FWHM_PER_SIGMA:.3g} q) was assumed"
    )
    return Note("RESOLUTION_ASSUMED", message)


def _resolution(arguments: PhysicalArguments, curve: Curve) -> tuple[np.ndarray, list[Note]]:
    """One standard deviation of each q, and what to say about it."""
    sigma, notes = given_resolution(arguments.probe, curve)
    bounds, convention = arguments.probe.resolution, arguments.probe.resolution_convention
    low, high = (sigma_of(end, convention) for end in (bounds.min, bounds.max))
    typical = float(np.median(sigma / curve.q))
    if not 0.99 * low <= typical <= 1.01 * high:
        message = f"dq/q is {typical:.4g} (one standard deviation); trained were {low:.4g} to {high:.4g}"
        notes.append(Note("OUTSIDE_TRAINED_RANGE", message))
    return sigma, notes


@torch.inference_mode()
def describe(
    prepared: Prepared,
    target: CurveTarget,
    exact: CurveTarget,
    unit: np.ndarray,
    stage: Stage,
    modes: tuple[Mode, ...] = (),
    posterior: Posterior | None = None,
    pulse: Pulse = nothing,
) -> Analysis:
    """What the point `unit` of the prior's cube, [P], says of a curve.

    Args:
        target, exact: `target_of` the points of `prepared`; one is for the curves of samples, the other for
            that of the answer.
        pulse: called now and then.
    """
    prior, point = exact.prior, torch.from_numpy(unit)[None]
    values = prior.values(point)
    calculated = exact.curves(point)[0].numpy()
    films = prior.films(values)
    residuals = None if prepared.dr is None else (prepared.r - calculated) / prepared.dr
    chi_square = None if residuals is None else float(residuals @ residuals)
    freedom = len(calculated) - len(unit)
    positive = (prepared.r > 0) & (calculated > 0)
    if prepared.dr is not None and np.any(clear := positive & (prepared.r > SIGNAL * prepared.dr)):
        # The logarithm of what is mostly noise says nothing of the answer.
        positive = clear
    errors = np.abs(np.log10(prepared.r[positive] / calculated[positive]))
    error = float(errors.mean()) if len(errors) else float("nan")
    reduced = None if chi_square is None or freedom <= 0 else chi_square / freedom
    sampled = None if posterior is None else prior.values(torch.from_numpy(posterior.unit))
    # What is shown, not all that the prior holds: a thin layer must not fall between two points.
    z = _fine_grid(prior.films(values if sampled is None else torch.cat([values, sampled])))
    profiles = curves = None
    if posterior is not None and sampled is not None:
        drawn: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        size = max(1, _AT_ONCE // (target.points + len(z)))
        for first in range(0, len(sampled), size):
            pulse()
            some = prior.films(sampled[first : first + size])
            drawn[0].append(profile(z, some.sld, some).numpy())
            drawn[1].append(target.curves(torch.from_numpy(posterior.unit[first : first + size])).numpy())
        profiles, curves = (_band(np.concatenate(parts)) for parts in drawn)
    errors = None if not modes or prepared.dr is None else _standard_errors(prior, modes[0])
    parameters = _parameters(prior, unit, values[0].numpy(), errors, sampled)
    return Analysis(
        stage=stage,
        parameters=parameters,
        unit=unit,
        z=z.numpy(),
        sld=profile(z, films.sld, films)[0].numpy(),
        isld=profile(z, films.isld, films)[0].numpy(),
        used_points=prepared.used_points,
        q=prepared.q,
        sigma=prepared.sigma,
        calculated=calculated,
        residuals=residuals,
        chi_square=chi_square,
        reduced_chi_square=reduced,
        mean_abs_log10_error=error,
        notes=(
            *prepared.notes,
            *unphysical(
                prior.true_q(torch.from_numpy(prepared.q), values)[0],
                films,
                prior.media_names,
                from_backing=prior.from_backing,
            ),
            *poor_fit(exact, point, error),
            *_several(modes, known_errors=prepared.dr is not None),
            *(() if posterior is None else _of_sampling(posterior)),
            *_atypical(parameters),
        ),
        explanations=tuple(_explanation(prior, mode) for mode in modes),
        sld_band=profiles,
        calculated_band=curves,
        samples=None if sampled is None else sampled.numpy(),
        effective_samples=None if posterior is None else posterior.effective,
    )


def _fine_grid(films: Media) -> torch.Tensor:
    """A depth grid for all films, in steps of `_DEPTH_STEP` where that does not take too many points."""
    ends = depth_grid(films, 2)
    wanted = 1 + math.ceil(float(ends[1] - ends[0]) / _DEPTH_STEP)
    return depth_grid(films, min(max(wanted, _LEAST_DEPTHS), _MOST_DEPTHS))


def _of_sampling(posterior: Posterior) -> Iterator[Note]:
    if len(posterior.unit) < _FEW_SAMPLES:
        yield Note(
            "FEW_SAMPLES",
            f"the intervals are those of {len(posterior.unit)} samples: {_FEW_SAMPLES} are the least for"
            " intervals of 68 %, 500 for those of 95 %",
        )
    if not posterior.mixed:
        yield Note(
            "SAMPLES_NOT_MIXED",
            "the samples of the posterior still depend on where they began: intervals may be too narrow",
        )


def _several(modes: Sequence[Mode], *, known_errors: bool) -> Iterator[Note]:
    if len(modes) > 1:
        told = "without error bars of the data nothing says which are likely"
        if known_errors:
            more = modes[1].chi_square - modes[0].chi_square
            told = f"the next one with a chi-square that is higher by {more:.3g}: error bars are those of the"
            told += " best alone"
        yield Note("SEVERAL_FILMS", f"{len(modes)} films explain the data, {told}")


def _atypical(parameters: Sequence[Parameter]) -> Iterator[Note]:
    """BEST_FIT_ATYPICAL: a minimum in a corner of what the data allow is no good summary of it."""
    outside = [
        item.name
        for item in parameters
        if item.interval_95
        and not item.interval_95[0] <= item.value <= item.interval_95[1]
        and not item.at_bound
    ]
    if outside:
        yield Note(
            "BEST_FIT_ATYPICAL",
            f"the best fit lies outside the 95 % interval of {', '.join(outside)}: most films that explain"
            " the curve are elsewhere, so trust the intervals",
        )


def _explanation(prior: Prior, mode: Mode) -> Explanation:
    values = prior.values(torch.from_numpy(mode.unit)[None])[0]
    return Explanation(tuple(values.tolist()), mode.chi_square)


def _band(samples: np.ndarray) -> Band:
    """[S, N] to bands of [N]."""
    ends = np.quantile(samples, [0.16, 0.84, 0.025, 0.975], axis=0)
    return Band(*ends)


def _standard_errors(prior: Prior, mode: Mode) -> np.ndarray:
    """One standard deviation of each parameter in its unit; NaN where a bound or the prior decides."""
    inside = (mode.unit > _AT_BOUND) & (mode.unit < 1.0 - _AT_BOUND)
    # The prior alone has a variance of 1/12.
    told = np.diag(mode.covariance) < 0.5 / 12.0
    unit = torch.from_numpy(mode.unit)
    pair = prior.values(torch.stack([unit - _STEP, unit + _STEP])).numpy()
    slope = (pair[1] - pair[0]) / (2.0 * _STEP)
    errors: np.ndarray = np.where(inside & told, np.sqrt(np.diag(mode.covariance)) * slope, np.nan)
    return errors


def _at_bound(coordinate: float) -> Literal["", "at lower bound", "at upper bound"]:
    if coordinate <= _AT_BOUND:
        return "at lower bound"
    return "at upper bound" if coordinate >= 1.0 - _AT_BOUND else ""


def _parameters(
    prior: Prior,
    unit: np.ndarray,
    values: np.ndarray,
    standard_errors: np.ndarray | None,
    samples: torch.Tensor | None,
) -> tuple[Parameter, ...]:
    errors = np.full(len(values), np.nan) if standard_errors is None else standard_errors
    found = []
    for place, (free, value, error) in enumerate(zip(prior.free, values, errors, strict=True)):
        narrow = wide = None
        if samples is not None:
            ends = np.quantile(samples[:, place].numpy(), [0.16, 0.84, 0.025, 0.975]).tolist()
            narrow, wide = (ends[0], ends[1]), (ends[2], ends[3])
        found.append(
            Parameter(
                name=free.name,
                unit=free.unit,
                value=float(value),
                lower=free.lower,
                upper=free.upper,
                standard_error=None if np.isnan(error) else float(error),
                interval_68=narrow,
                interval_95=wide,
                at_bound=_at_bound(unit[place]),
            )
        )
    return tuple(found)
