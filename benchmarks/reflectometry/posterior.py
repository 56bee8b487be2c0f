"""Whether posteriors are right: coverage over films from the prior, and doubts where they are not.

Curves have 100 points, error bars of 3 % of R (and 1e-8), and a resolution of 1.25 % (one standard deviation)
by the rule of refl1d. The search does not know the truth. Every curve counts, flagged or not.

Where the model is wrong, the SLD profile of the true film is compared with its band: of all depths between
the first and the last interface, the share where the truth lies within the 95 % band, widened at both sides
by 0.02e-6/angstrom^2. A curve with a doubt counts as one that holds, because its reader is warned.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import Row, at_least, at_most, single_thread
from guidehall.science.reflectometry.fit import CurveTarget, LogTarget, Mode, search
from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.legacy_five_layers import legacy_probe, legacy_stack
from guidehall.science.reflectometry.params import ResolutionMode, StackPrior, TrainingProbe
from guidehall.science.reflectometry.posterior import sample
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.verdict import doubts

_SEED = 11
_Q = np.geomspace(0.0081, 0.1975, 100)
_RELATIVE_SIGMA = 0.0125
_NOISE, _LEAST_NOISE = 0.03, 1e-8
# By how much the curve's own resolution is larger than what is said of it.
_WRONG_DQ = 1.2
_SLACK = 0.02
_PROFILE_POINTS = 200
_LEVELS = {68: (0.16, 0.84), 95: (0.025, 0.975)}


def run(quick: bool, *, two: int | None = None, five: int | None = None, samples: int = 500) -> list[Row]:
    """Two and five layers, then two kinds of wrong models.

    Args:
        two, five: films of so many layers; a fifth of those of two layers for each wrong model.
        samples: of each posterior.
    """
    two, five = two or (40 if quick else 1000), five or (4 if quick else 1000)
    with single_thread():
        rows = [
            *coverage("two layers", _films(2), two, samples, 0.03),
            *coverage("five layers", Prior(legacy_stack(), legacy_probe()), five, samples, 0.05),
        ]
        wrong = max(two // 5, 1)
        for name, share, flagged, seconds in (
            ("dQ wrong by 20 %", *_holds(_films(2), _films(2), _WRONG_DQ, wrong, samples)),
            ("one layer too few", *_holds(_films(3), _films(2), 1.0, wrong, samples)),
        ):
            note = f"{wrong} curves, {flagged:.1%} flagged, {seconds:.2g} CPU-s per curve"
            rows.append(at_least(f"{name}: band holds or flagged", share, "", 0.95, note))
    return rows


def _films(layers: int) -> Prior:
    """A film of two layers with usual bounds, and one with a third between them."""

    def between(low: float, high: float) -> dict[str, float]:
        return {"min": low, "max": high}

    def layer(name: str) -> dict[str, object]:
        bounds = {"sld": between(1, 6), "thickness": between(50, 300), "roughness": between(2, 20)}
        return {"name": name, **bounds}

    stack = StackPrior.model_validate(
        {
            "fronting": {"name": "air", "sld": 0},
            "layers": [layer(f"layer{place}") for place in range(1, layers + 1)],
            "backing": {"name": "silicon", "sld": 2.07, "roughness": between(1, 8)},
        }
    )
    probe = TrainingProbe.model_validate({"scale": between(0.95, 1.05), "background": between(1e-8, 1e-5)})
    return Prior(stack, probe)


@dataclass(frozen=True)
class _Curves:
    """Films and what was measured of them: [C, P] and a target of C curves."""

    unit: Tensor
    target: CurveTarget
    modes: list[tuple[Mode, ...]]
    cpu_seconds: float


def _measured(
    truth: Prior,
    model: Prior,
    wider: float,
    count: int,
    *,
    relative_sigma: float = _RELATIVE_SIGMA,
    mode: ResolutionMode = "refl1d",
) -> _Curves:
    """Curves of films of `truth`, seen with a resolution so many times wider, and fits of `model` to them."""
    generator = torch.Generator().manual_seed(_SEED)
    unit = torch.rand(count, len(truth.free), generator=generator, dtype=torch.float64)
    sigma = relative_sigma * _Q
    blank = np.ones((1, len(_Q)))
    clean = CurveTarget(truth, _Q, blank, blank, wider * sigma, mode, exact=True).curves(unit)
    dr = _NOISE * clean + _LEAST_NOISE
    r = clean + dr * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    start = time.process_time()
    target = CurveTarget(model, _Q, r.numpy(), dr.numpy(), sigma, mode)
    guesses = torch.zeros(count, 0, len(model.free), dtype=torch.float64)
    modes = search(target, LogTarget(target), guesses, _SEED)
    return _Curves(unit, target, modes, time.process_time() - start)


def _flagged(curves: _Curves, row: int) -> bool:
    return any(doubts(curves.target, curves.modes[row][0], row))


def coverage(
    name: str, prior: Prior, count: int, samples: int, within: float, **resolution: Any
) -> list[Row]:
    """Rows of coverage; `within` is how far a share may be from its level, `resolution` as in `_measured`."""
    curves = _measured(prior, prior, 1.0, count, **resolution)
    start = time.process_time()
    inside: dict[int, list[np.ndarray]] = {level: [] for level in _LEVELS}
    methods: list[str] = []
    for row in range(count):
        posterior = sample(curves.target, curves.modes[row], samples, seed=row, row=row)
        methods.append(posterior.method)
        truth = curves.unit[row].numpy()
        for level, ends in _LEVELS.items():
            low, high = np.quantile(posterior.unit, ends, axis=0)
            inside[level].append((low <= truth) & (truth <= high))
    seconds = (time.process_time() - start + curves.cpu_seconds) / count
    flagged = sum(_flagged(curves, row) for row in range(count)) / count
    rows = []
    for level, found in inside.items():
        by_parameter = np.mean(found, axis=0)
        note = f"{count} curves; {by_parameter.min():.3f} to {by_parameter.max():.3f} for single parameters"
        share = float(np.mean(found))
        bar = f"{level / 100 - within:.2f} to {min(level / 100 + within, 1.0):.2f}"
        met = abs(share - level / 100) <= within
        rows.append(Row(f"{name}: coverage of {level} % intervals", share, "", bar, met, note))
    rows.append(
        at_most(f"{name}: false flags", flagged, "of curves", 0.02, "the model is right: all flags are false")
    )
    ladder = methods.count("sequential") / count
    rows.append(
        Row(
            f"{name}: search and {samples} samples",
            seconds,
            "CPU-s/curve",
            note=f"{ladder:.0%} needed the sequential method",
        )
    )
    return rows


def _holds(truth: Prior, model: Prior, wider: float, count: int, samples: int) -> tuple[float, float, float]:
    """Share of depths where bands hold or the curve is flagged, share flagged, CPU seconds per curve."""
    curves = _measured(truth, model, wider, count)
    start = time.process_time()
    held, flagged = [], 0
    z = truth.depth_grid(_PROFILE_POINTS)
    true_films = truth.films(truth.values(curves.unit))
    true_profiles = profile(z, true_films.sld, true_films).numpy()
    ends = true_films.thickness.sum(1).numpy()
    for row in range(count):
        if _flagged(curves, row):
            flagged += 1
            held.append(1.0)
            continue
        unit = torch.from_numpy(sample(curves.target, curves.modes[row], samples, seed=row, row=row).unit)
        films = model.films(model.values(unit))
        low, high = np.quantile(profile(z, films.sld, films).numpy(), _LEVELS[95], axis=0)
        within = (low - _SLACK <= true_profiles[row]) & (true_profiles[row] <= high + _SLACK)
        held.append(float(within[(z.numpy() >= 0) & (z.numpy() <= ends[row])].mean()))
    seconds = (time.process_time() - start + curves.cpu_seconds) / count
    return float(np.mean(held)), flagged / count, seconds
