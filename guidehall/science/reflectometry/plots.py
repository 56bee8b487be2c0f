"""Pictures of curves, fits, profiles, losses and predicted parameters.

Figures are made without pyplot, so that nothing of them is kept in the process; `attach` adds one to a
result, `picture` makes a file of one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from guidehall.science.pipeline import Context
from guidehall.science.reflectometry.analysis import Analysis, Band, Line
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.params import EpochLosses

_DOTS_PER_INCH = 120
_Q_LABEL, _SLD_LABEL = "q (1/Å)", "SLD ($10^{-6}$/Å$^2$)"
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]


def curve_and_profile(curves: Lines, profiles: Lines) -> Figure:
    """Reflectivity against q, and SLD against depth; labels to (x, y)."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_lines(left, curves)
    left.set(yscale="log", xlabel=_Q_LABEL, ylabel="Reflectivity")
    _draw_lines(right, profiles)
    right.set(xlabel="Depth (Å)", ylabel=_SLD_LABEL)
    return figure


def fit(curve: Curve, calculated: np.ndarray, line: Line | None = None, band: Band | None = None) -> Figure:
    """Measured and calculated reflectivity in logarithmic axes, and what is left in units of dR below it.

    A point that is not above zero has no place there: it is drawn as an upper limit, at two standard
    deviations above it. Without dR, what is left is log10 of measured over calculated.

    Args:
        curve: N points.
        calculated: [N], the model's curve at the same q.
        line: the model's curve to draw; without it, that at the points.
        band: of the model's curve at the points, of which that of 95 % is drawn.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    _draw_fit(figure, curve, calculated, line, band)
    return figure


def answer(curve: Curve, analysis: Analysis) -> Figure:
    """An answer to all points of a curve: the fit with what is left over, and the profile with its bands."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    _draw_fit(left, curve, analysis.calculated, analysis.line, analysis.calculated_band)
    band = analysis.sld_band
    bands = () if band is None else ((band.lower_68, band.upper_68), (band.lower_95, band.upper_95))
    _draw_sld(right.subplots(), analysis.z, analysis.sld, *bands)
    return figure


def joint_answer(names: Sequence[str], curves: Sequence[Curve], analyses: Sequence[Analysis]) -> Figure:
    """An answer to several curves: all fits, each a decade below the one before, what is left, the profiles.

    Args:
        names: of the curves, for the legend.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    upper, lower = left.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    profiles = right.subplots()
    for place, (name, curve, analysis) in enumerate(zip(names, curves, analyses, strict=True)):
        color, shift = f"C{place % 10}", 10.0**-place
        label = name if place == 0 else f"{name}, R × $10^{{-{place}}}$"
        line = analysis.line or (curve.q, analysis.calculated)
        _draw_measured(upper, curve, np.full_like(curve.q, shift), color, label, limit_label="")
        upper.plot(line[0], line[1] * shift, color="black", linewidth=1, zorder=3)
        _draw_residuals(lower, curve, analysis.calculated, color)
        band = analysis.sld_band
        if band is not None:
            profiles.fill_between(
                analysis.z, band.lower_95, band.upper_95, color=color, alpha=0.2, linewidth=0
            )
        profiles.plot(analysis.z, analysis.sld, color=color, label=name)
    upper.set(xscale="log", yscale="log", ylabel="Reflectivity")
    lower.axhline(0.0, color="black", linewidth=1)
    lower.set(xlabel=_Q_LABEL)
    profiles.set(xlabel="Depth (Å)", ylabel=_SLD_LABEL)
    for axes in (upper, lower, profiles):
        axes.grid(True, alpha=0.3)
    for axes in (upper, profiles):
        axes.legend()
    return figure


def _draw_fit(
    figure: FigureBase, curve: Curve, calculated: np.ndarray, line: Line | None, band: Band | None
) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_measured(upper, curve, np.ones_like(curve.q))
    if band is not None:
        upper.fill_between(curve.q, band.lower_95, band.upper_95, color="C1", alpha=0.3, linewidth=0)
    upper.plot(*(line or (curve.q, calculated)), color="C1", zorder=3, label="model")
    upper.set(xscale="log", yscale="log", ylabel="Reflectivity")
    lower.axhline(0.0, color="C1")
    _draw_residuals(lower, curve, calculated, "C0")
    lower.set(xlabel=_Q_LABEL)
    for axes in (upper, lower):
        axes.grid(True, alpha=0.3)
    upper.legend()


def _draw_residuals(axes: Axes, curve: Curve, calculated: np.ndarray, color: str) -> None:
    """What is left, in units of dR; without dR, log10 of measured over calculated."""
    if curve.dr is not None:
        axes.plot(curve.q, (curve.r - calculated) / curve.dr, ".", color=color)
        axes.set(ylabel="(R - model) / dR")
    else:
        positive = (curve.r > 0) & (calculated > 0)
        left = np.log10(curve.r[positive] / calculated[positive])
        axes.plot(curve.q[positive], left, ".", color=color)
        axes.set(ylabel="log$_{10}$ R / model")


def fit_q4(curve: Curve, calculated: np.ndarray, line: Line | None = None) -> Figure:
    """R q^4, which a sharp interface makes level at high q, measured and calculated; arguments as `fit`."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    weight = curve.q**4
    _draw_measured(axes, curve, weight)
    q, r = line or (curve.q, calculated)
    axes.plot(q, r * q**4, color="C1", zorder=3, label="model")
    axes.set(yscale="log", xlabel=_Q_LABEL, ylabel="R q$^4$ (1/Å$^4$)")
    axes.grid(True, alpha=0.3)
    axes.legend()
    return figure


def sld_bands(
    z: np.ndarray,
    sld: np.ndarray,
    within_68: tuple[np.ndarray, np.ndarray] | None = None,
    within_95: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """The SLD profile and the bands that hold it with a probability of 68 and 95 per cent.

    Args:
        z: [Z], depth in angstrom.
        sld: [Z], in 1e-6/angstrom^2.
        within_68, within_95: lower and upper end of each band, [Z] each.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    _draw_sld(figure.subplots(), z, sld, within_68, within_95)
    return figure


def _draw_sld(
    axes: Axes,
    z: np.ndarray,
    sld: np.ndarray,
    within_68: tuple[np.ndarray, np.ndarray] | None = None,
    within_95: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    for band, label, alpha in ((within_95, "95 %", 0.2), (within_68, "68 %", 0.4)):
        if band is not None:
            axes.fill_between(z, *band, color="C0", alpha=alpha, linewidth=0, label=label)
    axes.plot(z, sld, color="C0", label="SLD")
    axes.set(xlabel="Depth (Å)", ylabel=_SLD_LABEL)
    axes.grid(True, alpha=0.3)
    axes.legend()


def chi(actual: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Predicted against actual parameters, one panel each, with the line where both are equal.

    Args:
        actual, predicted: [samples, parameters].
        names: of the parameters, with units where they have one.
    """
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (axes, name) in enumerate(zip(panels, names, strict=False)):
        ends = _ends(actual[:, index], predicted[:, index])
        axes.plot(ends, ends, color="C1")
        axes.plot(actual[:, index], predicted[:, index], ".", color="C0")
        axes.set(title=name, xlabel="actual", ylabel="predicted")
        axes.grid(True, alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def loss_curve(losses: Sequence[EpochLosses]) -> Figure:
    """Losses against epochs."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = np.array([item.epoch for item in losses])
    lines = {
        "training": (epochs, np.array([item.train_loss for item in losses])),
        "validation": (epochs, np.array([item.validation_loss for item in losses])),
    }
    _draw_lines(axes, lines)
    axes.set(yscale="log", xlabel="Epoch", ylabel="Loss")
    return figure


def attach(context: Context, name: str, figure: Figure) -> None:
    """Adds `name`.png and `name`.svg to the result."""
    for filename, data, media_type in files(name, figure):
        context.artifact(filename, data, media_type)


def files(name: str, figure: Figure) -> Iterator[tuple[str, bytes, str]]:
    """`name`.png and `name`.svg: name, content and media type of each."""
    kinds: dict[Literal["png", "svg"], str] = {"png": "image/png", "svg": "image/svg+xml"}
    for suffix, media_type in kinds.items():
        yield f"{name}.{suffix}", picture(figure, suffix, name), media_type


def picture(figure: Figure, suffix: Literal["png", "svg"], name: str = "figure") -> bytes:
    """The figure as a file; the same figure and name give the same bytes."""
    buffer = io.BytesIO()
    # A date and random names would make each one another.
    metadata = {"Date": None} if suffix == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format=suffix, dpi=_DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()


def _draw_lines(axes: Axes, lines: Lines) -> None:
    for label, (x, y) in lines.items():
        axes.plot(x, y, label=label)
    axes.grid(True, alpha=0.3)
    axes.legend()


def _draw_measured(
    axes: Axes,
    curve: Curve,
    weight: np.ndarray,
    color: str = "C0",
    label: str = "measured",
    limit_label: str = "not above 0: upper limit (2 dR)",
) -> None:
    """Points with error bars in a logarithmic axis; `weight` multiplies R."""
    above = curve.r > 0
    r, dr = curve.r * weight, None if curve.dr is None else curve.dr * weight
    bars = None if dr is None else dr[above]
    axes.errorbar(
        curve.q[above], r[above], yerr=bars, fmt=".", markersize=4, linewidth=1, color=color, label=label
    )
    if dr is None:
        return
    limit = r + 2.0 * dr
    limited = ~above & (limit > 0)
    if limited.any():
        axes.plot(curve.q[limited], limit[limited], "v", color=color, alpha=0.5, label=limit_label)


def _ends(*arrays: np.ndarray) -> tuple[float, float]:
    both = np.concatenate(arrays)
    return float(both.min()), float(both.max())
