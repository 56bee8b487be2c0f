"""Pictures of curves, profiles and losses."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from guidehall.science.pipeline import Context
from guidehall.science.reflectometry.params import EpochLosses

_DOTS_PER_INCH = 120
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]


def curve_and_profile(curves: Lines, profiles: Lines) -> Figure:
    """Reflectivity against q, and SLD against depth; labels to (x, y)."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_lines(left, curves)
    left.set(yscale="log", xlabel="q (1/Å)", ylabel="Reflectivity")
    _draw_lines(right, profiles)
    right.set(xlabel="Depth (Å)", ylabel="SLD ($10^{-6}$/Å$^2$)")
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
    for suffix, media_type in (("png", "image/png"), ("svg", "image/svg+xml")):
        buffer = io.BytesIO()
        # Without a date and random names, the same result gives the same bytes.
        metadata = {"Date": None} if suffix == "svg" else None
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(buffer, format=suffix, dpi=_DOTS_PER_INCH, metadata=metadata)
        context.artifact(f"{name}.{suffix}", buffer.getvalue(), media_type)


def _draw_lines(axes: Axes, lines: Lines) -> None:
    for label, (x, y) in lines.items():
        axes.plot(x, y, label=label)
    axes.grid(True, alpha=0.3)
    axes.legend()
