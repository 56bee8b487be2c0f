"""Pictures of a measured curve, its fit, and the profile behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from guidehall.cli._output import clean
from guidehall.client import Analysis, Band, Curve, Profile, QUnit, Simulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURED = "#3b4252"
_CALCULATED = "#c2410c"
_PROFILE = "#1d4ed8"
_Q_LABEL = "Q (Å⁻¹)"
_DOTS_PER_INCH = 160


def check_plot(path: Path) -> None:
    """Sees to it that a picture can be drawn into `path`, to be called before the work.

    Raises:
        ClickException: matplotlib is missing; it says how to get it.
        BadParameter: there is no such folder, or no such format.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise click.ClickException(
            "--plot needs matplotlib; in a checkout of the project: pip install '.[plot]'"
        ) from error
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path}: there is no folder {path.parent}", param_hint="--plot")
    known = FigureCanvasBase.get_supported_filetypes()
    # Without a suffix matplotlib adds one, and the file is not the one that was asked for.
    if path.suffix[1:].lower() not in known:
        allowed = ", ".join(f".{suffix}" for suffix in known)
        raise click.BadParameter(f"{path}: the suffix is one of {allowed}", param_hint="--plot")


def draw_analysis(curve: Curve, analysis: Analysis, path: Path, title: str) -> None:
    """Draws reflectivity with fit, residuals, and profile, with their bands where there are such.

    The suffix of `path` chooses the format.
    """
    figure = _figure()
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1), width_ratios=(3, 2))
    reflectivity = figure.add_subplot(grid[0, 0])
    residuals = figure.add_subplot(grid[1, 0], sharex=reflectivity)
    _measured(reflectivity, curve, analysis)
    _residuals(residuals, curve, analysis)
    reflectivity.tick_params(labelbottom=False)
    _profile(figure.add_subplot(grid[:, 1]), analysis.profile)
    # A dollar sign in a file name is no formula.
    figure.suptitle(f"{clean(title)}: {_summary(analysis)}".replace("$", r"\$"), fontsize=11)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def draw_simulation(simulation: Simulation, path: Path) -> None:
    """Draws a calculated curve and its profile."""
    figure = _figure()
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    q, r = _angstrom(simulation.curve), simulation.curve.r
    left.plot(q[r > 0], r[r > 0], color=_CALCULATED)
    _log_axes(left)
    left.set_xlabel(_Q_LABEL)
    _profile(right, simulation.profile)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _figure() -> Figure:
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: no display is needed and none is looked for.
    return Figure(figsize=(10, 5.2), layout="constrained")


def _angstrom(curve: Curve) -> Any:
    return curve.q / 10.0 if curve.q_unit is QUnit.INVERSE_NANOMETRE else curve.q


def _measured(axes: Axes, curve: Curve, analysis: Analysis) -> None:
    q, r = _angstrom(curve), curve.r
    used = np.zeros(len(q), dtype=bool)
    used[analysis.used_points] = True
    # A logarithmic axis has no place for what background subtraction left at or below zero.
    positive = r > 0
    for chosen, colour, label in ((used, _MEASURED, "measured"), (~used, "#a3a3a3", "left out")):
        points = chosen & positive
        if not points.any():
            continue
        dr = curve.dr[points] if len(curve.dr) else None
        # An error bar that reaches below zero ends at the axis.
        lower = None if dr is None else np.vstack([np.minimum(dr, 0.999 * r[points]), dr])
        axes.errorbar(
            q[points],
            r[points],
            yerr=lower,
            fmt="o",
            markersize=2.5,
            elinewidth=0.8,
            color=colour,
            label=label,
        )
    calculated = analysis.calculated
    q = _angstrom(calculated)
    _band(axes, q, analysis.calculated_band, _CALCULATED)
    axes.plot(q, calculated.r, color=_CALCULATED, linewidth=1.5, label="calculated", zorder=3)
    _log_axes(axes)
    axes.legend(frameon=False, fontsize=9)


def _band(axes: Axes, x: Any, band: Band | None, colour: str) -> None:
    """What lies within 95 and 68 per cent, the second darker."""
    if band is None:
        return
    for lower, upper, label, alpha in (
        (band.lower_95, band.upper_95, "95 %", 0.2),
        (band.lower_68, band.upper_68, "68 %", 0.35),
    ):
        axes.fill_between(x, lower, upper, color=colour, alpha=alpha, linewidth=0, label=label, zorder=2)


def _log_axes(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("Reflectivity R")
    axes.grid(alpha=0.25)


def _residuals(axes: Axes, curve: Curve, analysis: Analysis) -> None:
    q = _angstrom(analysis.calculated)
    residuals = analysis.normalized_residuals
    if len(residuals) == len(q):
        axes.set_ylabel("(R − calc) / dR")
    else:
        measured, calculated = curve.r[analysis.used_points], analysis.calculated.r
        shown = (measured > 0) & (calculated > 0)
        q, residuals = q[shown], np.log10(measured[shown] / calculated[shown])
        axes.set_ylabel("log₁₀ R / calc")
    axes.axhline(0.0, color=_CALCULATED, linewidth=1.0)
    axes.plot(q, residuals, "o", markersize=2.5, color=_MEASURED)
    axes.set_xlabel(_Q_LABEL)
    axes.grid(alpha=0.25)


def _profile(axes: Axes, profile: Profile) -> None:
    _band(axes, profile.z, profile.sld_band, _PROFILE)
    axes.plot(profile.z, profile.sld, color=_PROFILE, linewidth=1.5, label="real part")
    if np.any(profile.isld):
        axes.plot(
            profile.z, profile.isld, color=_PROFILE, linewidth=1.0, linestyle="--", label="imaginary part"
        )
    if np.any(profile.isld) or profile.sld_band is not None:
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel("Depth from the fronting medium (Å)")
    axes.set_ylabel("SLD (10⁻⁶ Å⁻²)")
    axes.grid(alpha=0.25)


def _summary(analysis: Analysis) -> str:
    words = [analysis.stage.value, f"mean |Δ log₁₀ R| = {analysis.mean_abs_log10_error:.3g}"]
    if analysis.reduced_chi_square is not None:
        words.insert(1, f"χ² per degree of freedom = {analysis.reduced_chi_square:.3g}")
    return ", ".join(words)
