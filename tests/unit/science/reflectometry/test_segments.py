"""Curves of several angles, each with its own scale and background, and samples that the beam overfills."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.integrate import quad

from guidehall.science.pipeline import field_errors
from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.fit import CurveTarget, descend
from guidehall.science.reflectometry.params import Probe, Range, SimulateParams, TrainingProbe
from guidehall.science.reflectometry.prior import Prior, Segments, share_on_sample
from guidehall.science.reflectometry.resolution import resolution
from guidehall.science.reflectometry.simulate import simulate
from tests.unit.science.reflectometry.test_prior import check_derivatives, tied_stack

PARAMS = film_under_water()
# Three angles that overlap, sorted by q as a curve is.
ANGLES = [np.linspace(0.01, 0.06, 20), np.linspace(0.04, 0.12, 16), np.linspace(0.1, 0.2, 14)]
_ORDER = np.argsort(np.concatenate(ANGLES), kind="stable")
Q = np.concatenate(ANGLES)[_ORDER]
INDEX = np.repeat([0, 1, 2], [len(angle) for angle in ANGLES])[_ORDER]
# Resolution differs from angle to angle.
SIGMA = Q * np.array([0.01, 0.02, 0.03])[INDEX]


def segmented(probe: TrainingProbe = PARAMS.probe) -> Prior:
    return Prior(PARAMS.stack, probe, segments=Segments(INDEX))


def test_each_further_segment_adds_a_scale_and_a_background() -> None:
    plain, prior = Prior(PARAMS.stack, PARAMS.probe), segmented()
    assert prior.free[: len(plain.free)] == plain.free
    added = prior.free[len(plain.free) :]
    assert [free.name for free in added] == ["scale[2]", "background[2]", "scale[3]", "background[3]"]
    assert [(free.lower, free.upper, free.log) for free in added[:2]] == [
        (0.8, 1.2, False),
        (1e-6, 5e-5, True),
    ]
    fixed = PARAMS.probe.model_copy(update={"scale": Range(min=1, max=1)})
    assert [free.name for free in segmented(fixed).free][-2:] == ["background[2]", "background[3]"]


def test_each_segment_is_a_curve_with_its_scale_and_background() -> None:
    plain, prior = Prior(PARAMS.stack, PARAMS.probe), segmented()
    unit = torch.rand(4, len(prior.free), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = prior.values(unit)
    seen = resolution(Q, SIGMA)
    whole = prior.curves(seen, values)
    first = len(plain.free)
    for segment, places in enumerate([(first - 2, first - 1), (first, first + 1), (first + 2, first + 3)]):
        own = torch.cat([values[:, : first - 2], values[:, list(places)]], dim=1)
        points = segment == INDEX
        alone = plain.curves(resolution(Q[points], SIGMA[points]), own)
        torch.testing.assert_close(whole[:, torch.from_numpy(points)], alone, rtol=1e-12, atol=0)
    measured = prior.measured(torch.from_numpy(Q), torch.from_numpy(SIGMA), values)
    torch.testing.assert_close(measured, whole)


def test_segments_alike_are_one_curve() -> None:
    plain, prior = Prior(PARAMS.stack, PARAMS.probe), segmented()
    unit = torch.rand(2, len(plain.free), dtype=torch.float64)
    seen = resolution(Q, SIGMA)
    torch.testing.assert_close(
        prior.curves(seen, prior.values(prior.alike(unit))), plain.curves(seen, plain.values(unit))
    )


def test_a_fit_finds_the_scales_of_the_segments() -> None:
    prior = segmented()
    truth = torch.full((1, len(prior.free)), 0.5, dtype=torch.float64)
    truth[0, -4:] = torch.tensor([0.9, 0.2, 0.1, 0.7])
    r = prior.curves(resolution(Q, SIGMA), prior.values(truth))[0].numpy()
    target = CurveTarget(prior, Q, r, 0.01 * r, SIGMA)
    start = prior.alike(torch.full((1, len(prior.free) - 4), 0.45, dtype=torch.float64))
    found = descend(target, start, 60)
    assert float(found.chi_square) < 1e-6
    torch.testing.assert_close(found.unit[:, -4:], truth[:, -4:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("index", [[1, 1], [0, 2], [-1, 0]])
def test_segments_have_no_gaps(index: list[int]) -> None:
    with pytest.raises(ValueError, match="without gaps"):
        Segments(np.array(index))


def overfilled(low: float, high: float) -> TrainingProbe:
    return PARAMS.probe.model_copy(update={"footprint_q": Range(min=low, max=high)})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("footprint", [(0.0, 0.0), (0.05, 0.05), (0.03, 0.09)])
def test_derivatives_of_segments_and_footprint(footprint: tuple[float, float], tied: bool) -> None:
    stack = tied_stack() if tied else PARAMS.stack
    check_derivatives(Prior(stack, overfilled(*footprint), segments=Segments(np.arange(50) // 17)))


def test_a_footprint_that_is_all_there_is() -> None:
    fixed = {"scale": Range(min=1, max=1), "background": Range(min=0, max=0)}
    check_derivatives(Prior(PARAMS.stack, overfilled(0.03, 0.09).model_copy(update=fixed)))


def test_the_share_is_that_of_the_geometry() -> None:
    width, length, wavelength = 0.3, 50.0, 4.75
    angle = np.radians(np.linspace(0.1, 1.5, 40))
    on_sample = np.minimum(1.0, length * np.sin(angle) / width)
    q = torch.from_numpy(4 * math.pi * np.sin(angle) / wavelength)
    footprint = torch.tensor(4 * math.pi * width / (wavelength * length), dtype=torch.float64)
    np.testing.assert_allclose(share_on_sample(q, footprint).numpy(), on_sample, rtol=1e-12)
    assert float(share_on_sample(q, torch.tensor(0.0)).min()) == 1.0


def test_the_footprint_comes_before_the_resolution() -> None:
    probe = overfilled(0.05, 0.05)
    prior, plain = Prior(PARAMS.stack, probe), Prior(PARAMS.stack, PARAMS.probe)
    values = prior.values(torch.full((1, len(prior.free)), 0.5, dtype=torch.float64))
    bare = values.clone()
    bare[0, -2:] = torch.tensor([1.0, 0.0])
    q, sigma = 0.04, 0.002

    def weighted(x: float) -> float:
        r = float(plain.measured(torch.tensor([x], dtype=torch.float64), None, bare))
        return r * min(1.0, x / 0.05) * math.exp(-0.5 * ((x - q) / sigma) ** 2)

    # To the same 3.5 standard deviations, of an area of 0.99953.
    expected, _ = quad(weighted, q - 3.5 * sigma, q + 3.5 * sigma, epsabs=1e-12)
    expected /= sigma * math.sqrt(2 * math.pi) * math.erf(3.5 / math.sqrt(2))
    point = resolution(np.array([q, 2 * q]), np.array([sigma, sigma]))
    scale, background = values[0, -2:].tolist()
    assert float(prior.curves(point, values)[0, 0]) == pytest.approx(scale * expected + background, rel=1e-6)


def test_simulations_have_offset_and_footprint() -> None:
    def curve(**probe: float) -> np.ndarray:
        stack = {
            "fronting": {"sld": 0},
            "layers": [{"thickness": 200, "sld": 4, "roughness": 3}],
            "backing": {"name": "silicon", "sld": 2.07},
        }
        document = {
            "spacing": "linear",
            "q_min": 0.01,
            "q_max": 0.11,
            "points": 101,
            "resolution": 0,
            **probe,
        }
        return np.array(
            simulate(SimulateParams.model_validate({"stack": stack, "probe": document})).reflectivity
        )

    plain = curve()
    q = np.linspace(0.01, 0.11, 101)
    np.testing.assert_allclose(curve(footprint_q=0.05), plain * np.minimum(1, q / 0.05), rtol=1e-6)
    # By two points of the grid.
    np.testing.assert_allclose(curve(q_offset=0.002)[:-2], plain[2:], rtol=1e-9)
    with pytest.raises(ValidationError) as caught:
        Probe(q_min=0.01, q_offset=-0.006)
    assert field_errors(caught.value)[0][0] == "q_offset"
