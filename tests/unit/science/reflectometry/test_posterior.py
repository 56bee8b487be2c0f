"""Samples and evidence of posteriors that can be written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from guidehall.science.reflectometry import posterior
from guidehall.science.reflectometry.fit import Mode, descend, merge
from guidehall.science.reflectometry.posterior import Posterior, sample

COUNT = 1000
# Largest distance between the distribution of so many samples, not quite independent, and the true one.
DISTANCE = 0.1


@dataclass(frozen=True)
class Known:
    """Residuals that are a function of the unit cube."""

    parameters: int
    function: Callable[[Tensor], Tensor]

    def residuals(self, unit: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        return self.function(unit)

    def linearise(self, unit: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        with torch.enable_grad():
            leaf = unit.detach().clone().requires_grad_()
            residuals = self.function(leaf)
            slopes = [
                torch.autograd.grad(residuals[:, column].sum(), leaf, retain_graph=True)[0]
                for column in range(residuals.shape[1])
            ]
        return residuals.detach(), torch.stack(slopes, dim=2)

    def modes(self) -> tuple[Mode, ...]:
        starts = torch.rand(20, self.parameters, generator=torch.Generator().manual_seed(1))
        return merge(descend(self, starts, 60), within=20.0)

    def sampled(self, seed: int = 3) -> Posterior:
        return sample(self, self.modes(), COUNT, seed)


def distance(samples: np.ndarray, cumulative: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov's and Smirnov's."""
    ordered = np.sort(samples)
    expected, places = cumulative(ordered), np.arange(len(ordered) + 1) / len(ordered)
    return float(max(np.abs(expected - places[1:]).max(), np.abs(expected - places[:-1]).max()))


def normal(mean: float, deviation: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: torch.special.ndtr(torch.from_numpy((x - mean) / deviation)).numpy()


def uniform(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0.0, 1.0)


def test_a_gaussian() -> None:
    """Correlated, with an exact integral."""
    mixing = torch.tensor([[50.0, 30.0], [0.0, 40.0]], dtype=torch.float64)
    centre = torch.tensor([0.4, 0.55], dtype=torch.float64)
    found = Known(2, lambda unit: (unit - centre) @ mixing.T).sampled()
    covariance = torch.linalg.inv(mixing.T @ mixing).numpy()
    for column, mean in enumerate(centre.tolist()):
        deviation = math.sqrt(covariance[column, column])
        assert distance(found.unit[:, column], normal(mean, deviation)) < DISTANCE
    correlation = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert np.corrcoef(found.unit.T)[0, 1] == pytest.approx(correlation, abs=0.1)
    assert found.log_evidence == pytest.approx(math.log(2.0 * math.pi / (50.0 * 40.0)), abs=0.1)
    assert found.method == "importance"


def test_what_the_data_do_not_say_is_the_prior() -> None:
    found = Known(3, lambda unit: (unit[:, :1] - 0.3) / 0.01).sampled()
    for column in (1, 2):
        assert distance(found.unit[:, column], uniform) < DISTANCE


def test_two_explanations_share_by_their_mass() -> None:
    """The narrow one has the same chi-square and a third of the width."""

    def residuals(unit: Tensor) -> Tensor:
        x = unit[:, 0]
        low, high = ((x - 0.2) / 0.01).square(), ((x - 0.8) / 0.03).square()
        # The lower of the two, smoothly.
        return (-2.0 * torch.logaddexp(-0.5 * low, -0.5 * high)).clamp_min(1e-12).sqrt()[:, None]

    found = Known(1, residuals).sampled()
    assert float((found.unit[:, 0] < 0.5).mean()) == pytest.approx(0.25, abs=0.06)
    assert found.log_evidence == pytest.approx(math.log(math.sqrt(2.0 * math.pi) * 0.04), abs=0.1)


def test_two_thicknesses_of_which_only_the_sum_is_known() -> None:
    """A straight line through the whole cube: each is anywhere, and almost as if nothing were known."""
    deviation = 0.002
    found = Known(2, lambda unit: (unit.sum(1, keepdim=True) - 1.0) / deviation).sampled()
    assert distance(found.unit[:, 0], uniform) < DISTANCE
    assert distance(found.unit.sum(1) - 1.0, normal(0.0, deviation)) < DISTANCE
    assert found.log_evidence == pytest.approx(math.log(deviation * math.sqrt(2.0 * math.pi)), abs=0.15)


def test_two_factors_of_which_only_the_product_is_known() -> None:
    """A valley that bends: the density of one factor is 1 over itself."""
    deviation, product = 0.002, 0.1
    found = Known(4, lambda unit: (unit[:, :1] * unit[:, 1:2] - product) / deviation).sampled()
    whole = math.log(1.0 / product)
    for column in (0, 1):
        true = found.unit[:, column]
        assert distance(true, lambda x: np.clip(np.log(x / product) / whole, 0.0, 1.0)) < DISTANCE
    expected = math.log(deviation * math.sqrt(2.0 * math.pi) * whole)
    assert found.log_evidence == pytest.approx(expected, abs=0.15)
    assert found.method == "sequential"


def test_a_ladder_may_have_as_many_rungs_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one rung less its end is a leap, whose samples nobody may trust."""
    target = Known(2, lambda unit: (unit[:, :1] * unit[:, 1:] - 0.1) / 0.002)
    reached: list[float] = []
    free = sample(target, target.modes(), 200, 3, reached=reached.append)
    # The first was told before the ladder.
    rungs = len(reached) - 1
    assert (free.method, free.mixed) == ("sequential", True)
    monkeypatch.setattr(posterior, "_MOST_RUNGS", rungs)
    allowed = sample(target, target.modes(), 200, 3)
    assert allowed.mixed
    assert np.array_equal(allowed.unit, free.unit)
    monkeypatch.setattr(posterior, "_MOST_RUNGS", rungs - 1)
    assert not sample(target, target.modes(), 200, 3).mixed


def test_a_seed_decides() -> None:
    target = Known(2, lambda unit: (unit[:, :1] * unit[:, 1:] - 0.1) / 0.002)
    first, again, other = (target.sampled(seed) for seed in (3, 3, 4))
    assert np.array_equal(first.unit, again.unit)
    assert not np.array_equal(first.unit, other.unit)


def test_an_end_of_the_prior_is_not_crossed() -> None:
    """Data that ask for more than the bound allows."""
    found = Known(2, lambda unit: (unit - 1.1) / 0.05).sampled()
    assert found.unit.min() > 0.0
    assert found.unit.max() < 1.0
    below = torch.special.ndtr(torch.tensor(-2.0, dtype=torch.float64)).item()

    def truncated(x: np.ndarray) -> np.ndarray:
        return torch.special.ndtr(torch.from_numpy((x - 1.1) / 0.05)).numpy() / below

    assert distance(found.unit[:, 0], truncated) < DISTANCE
