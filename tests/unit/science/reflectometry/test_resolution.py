"""How finely the resolution is integrated: by the film's own fringes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.fit import CurveTarget
from guidehall.science.reflectometry.infer_params import Instrument, probe_of
from guidehall.science.reflectometry.params import FWHM_PER_SIGMA, SimulateParams, StackPrior, TrainingProbe
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import Features, orders, resolution
from guidehall.science.reflectometry.simulate import media_of, simulate

Q = np.geomspace(0.008, 0.2, 150)
REFERENCE = 2001


def thick_film(thickness: float, backing: float = 6.36) -> StackPrior:
    return StackPrior.model_validate(
        {
            "fronting": {"name": "silicon", "sld": 2.07},
            "layers": [
                {
                    "name": "film",
                    "thickness": {"min": 0.9 * thickness, "max": 1.1 * thickness},
                    "sld": {"min": 2.5, "max": 5},
                    "roughness": {"min": 1, "max": 8},
                }
            ],
            "backing": {"name": "liquid", "sld": backing, "roughness": {"min": 1, "max": 8}},
        }
    )


@pytest.mark.parametrize("thickness", [100, 1000, 3000])
@pytest.mark.parametrize("fwhm", [0.03, 0.1])
def test_fits_follow_fringes(thickness: float, fwhm: float) -> None:
    """With error bars of 1 % of R, chi-square at the truth must hardly tell the rules apart."""
    prior = Prior(thick_film(thickness), probe_of(Instrument()))
    unit = torch.rand(5, len(prior.free), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = fwhm / FWHM_PER_SIGMA * Q
    truth = prior.curves(resolution(Q, sigma, order=REFERENCE), prior.values(unit))
    dr = 0.01 * truth + 1e-8
    rows = torch.arange(len(unit))
    for exact, most in ((False, 0.5), (True, 0.05)):
        target = CurveTarget(prior, Q, truth.numpy(), dr.numpy(), sigma, exact=exact)
        assert float(target.residuals(unit, rows).square().sum(1).median()) < most


def test_rows_with_points_of_their_own_are_those_of_each_alone() -> None:
    sigma = 0.03 * Q
    each = np.random.default_rng(1).integers(5, 40, len(Q))
    together = resolution(Q, sigma, order=each)
    film = torch.rand(2, len(together.q), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = engine.blur(together, film)
    torch.testing.assert_close(seen, together.apply(film), rtol=1e-12, atol=0.0)
    end = 0
    for place, count in enumerate(each):
        alone = resolution(Q[place : place + 1], sigma[place : place + 1], order=int(count))
        torch.testing.assert_close(together.q[end : end + count], alone.q)
        torch.testing.assert_close(seen[:, place], alone.apply(film[:, end : end + count])[:, 0])
        end += count


def test_more_points_where_total_reflection_may_end_and_never_too_many() -> None:
    sigma = 0.02 * Q
    edge = orders(Q, sigma, Features(100.0, 0.015), exact=False)
    assert set(edge[Q - 3.5 * sigma <= 0.015]) == {65}
    assert set(edge[Q > 0.02]) <= {32, 48}
    assert set(orders(Q, sigma, Features(100.0, 0.0), exact=True)) <= {101, 117}
    assert set(orders(Q, sigma, Features(100.0, 0.015), exact=True)) == {301, 117}
    assert orders(Q, sigma, Features(1e9, 0.0), exact=True).max() == 2000
    many = np.geomspace(0.008, 0.2, 100_000)
    assert orders(many, 0.02 * many, Features(1e9, 0.0), exact=True).sum() < 5_000_000


def test_the_edge_is_that_of_the_side_of_the_beam() -> None:
    media = media_of(SimulateParams.model_validate(FILM).stack)
    assert Features.of(media).thickness == 6000
    assert Features.of(media).edge == pytest.approx(4 * np.sqrt(np.pi * 4e-6))
    assert Features.of(media, 0.001).edge == pytest.approx(Features.of(media).edge - 0.001)
    assert Features.of(media.reversed(), 0.001).edge < Features.of(media.reversed()).edge
    assert Features.of(media.reversed()).edge == pytest.approx(4 * np.sqrt(np.pi * 1.93e-6))


@pytest.mark.parametrize("offset", [-0.004, 0.004])
def test_an_offset_of_q_moves_the_edge_of_total_reflection(offset: float) -> None:
    """Points whose window holds the kink only because of the offset, against a dense quadrature."""
    stack = thick_film(100)
    probe = {"q_min": 0.01, "q_offset": offset, "scale": 1.0, "background": 0.0}
    prior = Prior(stack, TrainingProbe.model_validate(probe))
    kink = Features.of(prior.films(prior.values(torch.ones(1, len(prior.free))))).edge
    assert prior.features.edge == pytest.approx(kink - offset)
    q = kink - offset + np.linspace(-0.001, 0.005, 31)
    sigma = np.full(len(q), 0.0008)
    each = orders(q, sigma, prior.features, exact=True)
    assert set(each[q - 3.5 * sigma <= kink - offset]) == {301}
    unit = torch.rand(5, len(prior.free), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    unit[:, [free.name for free in prior.free].index("film.thickness")] = 1.0
    dense = prior.curves(resolution(q, sigma, order=REFERENCE), prior.values(unit))

    def error(order: np.ndarray) -> float:
        found = prior.curves(resolution(q, sigma, order=order), prior.values(unit))
        return float((found / dense - 1.0).abs().max())

    assert error(each) < 1.5e-3
    # The edge of the true q is the wrong one for measured q: it misses windows, or takes them for nothing.
    elsewhere = orders(q, sigma, Features(prior.features.thickness, kink), exact=True)
    if offset < 0:
        assert error(elsewhere) > 2.0 * error(each)
    else:
        assert elsewhere.sum() > each.sum()


def test_a_range_of_offsets_takes_the_edge_that_reaches_furthest() -> None:
    bounds = {"q_min": 0.01, "q_offset": {"min": -0.002, "max": 0.003}}
    moved, still = (
        Prior(thick_film(100), TrainingProbe.model_validate(document)).features.edge
        for document in (bounds, {})
    )
    assert moved == pytest.approx(still + 0.002)


FILM = {
    "stack": {
        "fronting": {"name": "air", "sld": 0},
        "layers": [{"name": "film", "sld": 4, "thickness": 6000, "roughness": 5}],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": 3},
    }
}


def test_a_simulated_thick_film_is_blurred_well() -> None:
    params = SimulateParams.model_validate(FILM)
    found = simulate(params)
    q, sigma = np.array(found.q), np.array(found.resolution)
    seen = resolution(q, sigma, order=REFERENCE)
    exact = engine.blur(seen, engine.reflectivity(seen.q, media_of(params.stack)))[0].numpy()
    np.testing.assert_allclose(
        np.array(found.reflectivity) - params.probe.background, params.probe.scale * exact, rtol=5e-3
    )
