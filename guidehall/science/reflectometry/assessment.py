"""How good the answers of a trained network are, and how long they took: the same of every kind."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from guidehall.science.reflectometry.params import ChannelErrors, Residuals, Seconds


def channel_errors(name: str, unit: str, answer: np.ndarray, truth: np.ndarray) -> ChannelErrors:
    """Errors over all numbers of two arrays of one shape, in their unit."""
    difference = np.asarray(answer, dtype=np.float64) - truth
    mean_square = float(np.mean(difference**2))
    variance = float(np.var(truth, dtype=np.float64))
    return ChannelErrors(
        name=name,
        rmse=mean_square**0.5,
        mae=float(np.mean(np.abs(difference))),
        r2=1.0 - mean_square / variance if variance > 0 else None,
        unit=unit,
    )


def metrics_of(channels: Iterable[ChannelErrors], between: str) -> dict[str, float]:
    """The same as `<channel><between><rmse, mae or r2>`, for a manifest."""
    return {
        f"{channel.name}{between}{kind}": value
        for channel in channels
        for kind in ("rmse", "mae", "r2")
        if (value := getattr(channel, kind)) is not None
    }


def residuals_of(
    log10_differences: np.ndarray | Sequence[np.ndarray],
    unphysical: int = 0,
    chi_square_per_point: np.ndarray | None = None,
) -> Residuals:
    """A summary of what calculated curves miss.

    Args:
        log10_differences: [B, N], or B of any lengths: log10 R of the answer's curve less that of the truth.
        unphysical: answers that have no curve, beside these.
        chi_square_per_point: [B], of each curve.
    """
    if not len(log10_differences):
        return Residuals(
            curves=0, unphysical=unphysical, mean=None, mean_abs=None, median_abs=None, percentile_95_abs=None
        )
    of_curves = np.array([np.abs(item).mean() for item in log10_differences])
    return Residuals(
        curves=len(of_curves),
        unphysical=unphysical,
        mean=float(np.concatenate(log10_differences).mean()),
        mean_abs=float(of_curves.mean()),
        median_abs=float(np.median(of_curves)),
        percentile_95_abs=float(np.quantile(of_curves, 0.95)),
        chi_square_per_point=None if chi_square_per_point is None else float(np.median(chi_square_per_point)),
    )


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._spent = {"generation": 0.0, "training": 0.0, "evaluation": 0.0, "inference": 0.0}

    def lap(self, phase: Literal["generation", "training", "evaluation", "inference"]) -> None:
        """What passed since the last lap was this phase."""
        now = time.monotonic()
        self._spent[phase] += now - self._last
        self._last = now

    def seconds(self) -> Seconds:
        """What was spent; the whole until now."""
        return Seconds(**self._spent, total=time.monotonic() - self._began)
