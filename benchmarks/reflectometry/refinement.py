"""The network's answer and the fit from it on five layers: how often the truth is found, and what it costs.

Error bars are 3 % of R. The true mode is the minimum of chi-square in which a descent from the truth ends. It
is listed when one of the listed modes is within 3 of its standard deviations of it in every parameter, or has
its SLD profile to 0.05e-6/angstrom^2 everywhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.reflectometry import five_layers
from benchmarks.reflectometry.training import STEPS
from benchmarks.rows import Row, at_least, at_most, single_thread
from guidehall.science.reflectometry.fit import CurveTarget, LogTarget, Mode, Search, descend, search
from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.legacy_five_layers import legacy_q
from guidehall.science.reflectometry.network import Network

_SEED = 5
_NOISE = 0.03
_NEAR, _SAME_PROFILE = 3.0, 0.05
_PROFILE_POINTS = 200


def run(quick: bool, *, curves: int | None = None, steps: int = STEPS) -> list[Row]:
    """2,000 curves without and with noise; 100 when quick."""
    count = curves or (100 if quick else 2000)
    with single_thread():
        network = five_layers.trained_network(steps)
        clean = measure(network, count, noise=0.0)
        noisy = measure(network, count, noise=_NOISE)
    note = f"{count} curves"
    alone = f"network and search, {noisy.network_milliseconds:.2g} of it the network; {note}"
    return [
        at_most("median log10 R error, no noise", float(clean.error.median()), "decades", 1e-4, note),
        at_least("log10 R error below 0.01, no noise", _share(clean.error < 0.01), "of curves", 0.90, note),
        at_least(
            "chi-square at most 1.05 of the truth's, 3 % noise",
            _share(noisy.chi_square <= 1.05 * noisy.true_chi_square),
            "of curves",
            0.95,
            note,
        ),
        at_least("true mode listed, no noise", _share(clean.listed), "of curves", 0.98, note),
        at_least("true mode listed, 3 % noise", _share(noisy.listed), "of curves", 0.98, note),
        Row("modes listed, 3 % noise", noisy.modes, "per curve", note=note),
        at_most("answer, no noise", clean.milliseconds, "CPU-ms/curve", 150, note),
        at_most("answer, 3 % noise", noisy.milliseconds, "CPU-ms/curve", 150, alone),
    ]


@dataclass(frozen=True)
class Measured:
    """What came out, [C] each or one number.

    Attributes:
        error: mean |log10 R| between the answer and the truth without noise.
    """

    error: Tensor
    chi_square: Tensor
    true_chi_square: Tensor
    listed: Tensor
    modes: float
    milliseconds: float
    network_milliseconds: float


def measure(network: Network, count: int, noise: float, how: Search | None = None) -> Measured:
    """Answers to `count` curves with this relative noise."""
    prior, seen = five_layers.prior(), five_layers.seen()
    unit = five_layers.films(count, _SEED)
    truth = prior.curves(seen, prior.values(unit))
    generator = torch.Generator().manual_seed(_SEED + 1)
    r = truth * (1.0 + noise * torch.randn(truth.shape, generator=generator, dtype=torch.float64))
    start = time.process_time()
    guesses = five_layers.answer(network, r)
    network_seconds = time.process_time() - start
    target = CurveTarget(
        prior, legacy_q(), r.numpy(), (_NOISE * truth).numpy(), five_layers.sigma(), "refl1d"
    )
    modes = search(target, LogTarget(target), guesses[:, None], _SEED, how or Search())
    seconds = time.process_time() - start
    best = torch.stack([torch.from_numpy(own[0].unit) for own in modes])
    rows = torch.arange(count)
    return Measured(
        error=(target.curves(best).log10() - truth.log10()).abs().mean(1),
        chi_square=torch.tensor([own[0].chi_square for own in modes], dtype=torch.float64),
        true_chi_square=target.residuals(unit, rows).square().sum(1),
        listed=_listed(target, modes, unit),
        modes=sum(len(own) for own in modes) / count,
        milliseconds=1000.0 * seconds / count,
        network_milliseconds=1000.0 * network_seconds / count,
    )


def _listed(target: CurveTarget, modes: list[tuple[Mode, ...]], truth: Tensor) -> Tensor:
    """Whether the true mode of each curve is among its modes, [C]."""
    z = target.prior.depth_grid(_PROFILE_POINTS)

    def profiles(unit: Tensor) -> Tensor:
        films = target.prior.films(target.prior.values(unit))
        return profile(z, films.sld, films)

    found = torch.zeros(len(truth), dtype=torch.bool)
    for first in range(0, len(truth), 100):
        rows = torch.arange(first, min(first + 100, len(truth)))
        true_modes = descend(target, truth[rows], 60, rows).unit
        for row, true_mode in zip(rows.tolist(), true_modes, strict=True):
            units = torch.stack([torch.from_numpy(mode.unit) for mode in modes[row]])
            spread = torch.stack([torch.from_numpy(mode.covariance).diagonal().sqrt() for mode in modes[row]])
            near = ((units - true_mode).abs() <= _NEAR * spread + 1e-3).all(1)
            same = (profiles(units) - profiles(true_mode[None])).abs().amax(1) <= _SAME_PROFILE
            found[row] = bool((near | same).any())
    return found


def _share(which: Tensor) -> float:
    return float(which.double().mean())
