"""The physics against analytic results, its symmetries, two independent packages and the field's suite."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refl1d.lib.python.reflectivity import refl
from refnx.reflect import abeles, reflectivity

from guidehall.science.reflectometry import kernel
from guidehall.science.reflectometry.kernel import Media

Q = np.geomspace(0.005, 0.3, 60)


def curve(media: Media, q: np.ndarray = Q) -> np.ndarray:
    return kernel.reflectivity(torch.from_numpy(q), media)[0].numpy()


def row_of(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def random_film(generator: np.random.Generator) -> dict[str, np.ndarray]:
    layers = int(generator.integers(0, 8))
    media = layers + 2
    absorbing = generator.random() < 0.5
    return {
        "sld": generator.uniform(-2, 8, media),
        "isld": generator.uniform(0, 0.5, media) * absorbing,
        "thickness": generator.uniform(0, 300, layers),
        "roughness": generator.uniform(0, 30, media - 1),
    }


@st.composite
def films(draw: st.DrawFn) -> Media:
    return Media.of(**random_film(np.random.default_rng(draw(st.integers(0, 2**32 - 1)))))


# --- other packages


def test_agrees_with_refl1d() -> None:
    generator = np.random.default_rng(1)
    for _ in range(25):
        film = random_film(generator)
        depth = np.concatenate([[0.0], film["thickness"], [0.0]])
        # Its absorption has the other sign, and must not be zero for the right branch of the root.
        arguments = depth, film["roughness"], film["sld"], film["isld"] + 1e-30
        expected = [abs(refl(len(depth), q / 2, *arguments)) ** 2 for q in Q]
        np.testing.assert_allclose(curve(Media.of(**film)), expected, rtol=1e-10)


def slabs(film: dict[str, np.ndarray]) -> np.ndarray:
    table = np.zeros((len(film["sld"]), 4))
    table[1:-1, 0], table[:, 1], table[:, 2] = film["thickness"], film["sld"], film["isld"]
    table[1:, 3] = film["roughness"]
    return table


def test_agrees_with_refnx() -> None:
    generator = np.random.default_rng(2)
    for _ in range(50):
        film = random_film(generator)
        np.testing.assert_allclose(curve(Media.of(**film)), abeles(Q, slabs(film)), rtol=1e-10)


def test_resolution_agrees_with_refnx() -> None:
    generator = np.random.default_rng(3)
    q = np.linspace(0.03, 0.25, 40)
    fwhm = 0.05 * q
    for _ in range(5):
        film = random_film(generator)
        expected = reflectivity(q, slabs(film), scale=0.9, bkg=1e-6, dq=fwhm, quad_order=101, threads=1)
        measured = kernel.measured_reflectivity(
            torch.from_numpy(q), torch.from_numpy(fwhm / 2.3548200450309493), Media.of(**film), 0.9, 1e-6, 101
        )
        # Its quadrature is not normalised: 0.05 % of the weight lies beyond the cut.
        np.testing.assert_allclose(measured[0].numpy(), expected, rtol=1e-3)


# --- analytic


@pytest.mark.parametrize("sigma", [0.0, 5.0])
def test_one_interface_is_fresnel(sigma: float) -> None:
    contrast = 4e-6 * np.pi * 6.36
    k, k_backing = Q / 2, np.sqrt((Q / 2) ** 2 - contrast + 0j)
    amplitude = (k - k_backing) / (k + k_backing) * np.exp(-2 * k * k_backing * sigma**2)
    media = Media.of(sld=np.array([0.0, 6.36]), thickness=np.zeros(0), roughness=np.array([sigma]))
    np.testing.assert_allclose(curve(media), np.abs(amplitude) ** 2, rtol=1e-12)


def test_total_reflection_is_total() -> None:
    media = Media.of(sld=np.array([2.07, 6.36]), thickness=np.zeros(0), roughness=np.zeros(1))
    critical = np.sqrt(16e-6 * np.pi * (6.36 - 2.07))
    below, above = curve(media, np.linspace(0.1, 0.999, 50) * critical), curve(media, Q[1.01 * critical < Q])
    np.testing.assert_allclose(below, 1.0, rtol=1e-12)
    assert (above < 1.0).all()


def test_high_q_falls_with_the_fourth_power() -> None:
    media = Media.of(sld=np.array([0.0, 2.07]), thickness=np.zeros(0), roughness=np.zeros(1))
    q = np.array([0.5, 1.0])
    expected = (16e-6 * np.pi * 2.07) ** 2 / (16 * q**4)
    np.testing.assert_allclose(curve(media, q), expected, rtol=1e-2)


def test_fringes_tell_the_thickness() -> None:
    thickness = 400.0
    media = Media.of(sld=np.array([0.0, 4.0, 2.07]), thickness=np.array([thickness]), roughness=np.zeros(2))
    q = np.linspace(0.1, 0.3, 4000)
    r = curve(media, q) * q**4
    minima = q[1:-1][(r[1:-1] < r[:-2]) & (r[1:-1] < r[2:])]
    assert np.diff(minima).mean() == pytest.approx(2 * np.pi / thickness, rel=0.01)


# --- symmetries

quick = settings(max_examples=25, deadline=None)


@quick
@given(films())
def test_reflectivity_is_finite_and_not_negative(media: Media) -> None:
    r = curve(media)
    assert np.isfinite(r).all()
    assert (r >= 0).all()


@quick
@given(films(), st.floats(0, 1))
def test_splitting_a_layer_changes_nothing(media: Media, share: float) -> None:
    whole = Media(
        *(
            torch.cat(pair, 1)
            for pair in ((media.sld, media.sld[:, -1:] + 1), (media.isld, media.isld[:, -1:]))
        ),
        torch.cat([media.thickness, row_of(100.0)], 1),
        torch.cat([media.roughness, row_of(5.0)], 1),
    )
    parts = Media(
        torch.cat([whole.sld[:, :-1], whole.sld[:, -2:]], 1),
        torch.cat([whole.isld[:, :-1], whole.isld[:, -2:]], 1),
        torch.cat([whole.thickness[:, :-1], row_of(100.0 * share, 100.0 * (1 - share))], 1),
        torch.cat([whole.roughness[:, :-1], row_of(0.0), whole.roughness[:, -1:]], 1),
    )
    np.testing.assert_allclose(curve(parts), curve(whole), rtol=1e-8, atol=1e-16)


@quick
@given(films(), st.floats(-2, 8))
def test_a_layer_without_thickness_or_roughness_is_not_there(media: Media, sld: float) -> None:
    def insert(row: torch.Tensor, value: float) -> torch.Tensor:
        return torch.cat([row[:, :1], row_of(value), row[:, 1:]], 1)

    smooth = Media(media.sld, media.isld, media.thickness, torch.zeros_like(media.roughness))
    thickness = torch.cat([row_of(0.0), smooth.thickness], 1)
    more = Media(insert(smooth.sld, sld), insert(smooth.isld, 0.0), thickness, insert(smooth.roughness, 0.0))
    np.testing.assert_allclose(curve(more), curve(smooth), rtol=1e-8, atol=1e-16)


@quick
@given(films())
def test_a_film_like_its_surroundings_reflects_nothing(media: Media) -> None:
    flat = Media(
        torch.full_like(media.sld, 3.0), torch.zeros_like(media.isld), media.thickness, media.roughness
    )
    assert (curve(flat) < 1e-25).all()


@quick
@given(films())
def test_without_absorption_both_sides_transmit_alike(media: Media) -> None:
    """Reciprocity: in one medium on both sides, R is the same from both."""
    sld = media.sld.clone()
    sld[:, -1] = sld[:, 0]
    same = Media(sld, torch.zeros_like(sld), media.thickness, torch.zeros_like(media.roughness))
    np.testing.assert_allclose(curve(same), curve(same.reversed()), rtol=1e-7, atol=1e-14)


@quick
@given(films())
def test_absorption_only_takes(media: Media) -> None:
    smooth = Media(media.sld, media.isld + 0.1, media.thickness, torch.zeros_like(media.roughness))
    assert (curve(smooth) <= 1 + 1e-12).all()


def test_batches_equal_single_films() -> None:
    generator = np.random.default_rng(5)
    rows = 4, 3
    media = Media.of(
        sld=generator.uniform(0, 7, (4, 5)),
        thickness=generator.uniform(10, 200, rows),
        roughness=generator.uniform(0, 9, (4, 4)),
    )
    q = torch.from_numpy(np.sort(generator.uniform(0.01, 0.2, (4, 30))))
    scale, background = row_of(1.0, 0.9, 1.1, 1.0)[0], row_of(*[1e-6] * 4)[0]
    batch = kernel.measured_reflectivity(q, 0.02 * q, media, scale, background)
    for row in range(4):
        one = Media(*(a[row : row + 1] for a in (media.sld, media.isld, media.thickness, media.roughness)))
        single = kernel.measured_reflectivity(q[row], 0.02 * q[row], one, float(scale[row]), 1e-6)
        torch.testing.assert_close(batch[row : row + 1], single, rtol=1e-12, atol=0.0)


def test_gradients_are_those_of_differences() -> None:
    sld = torch.tensor([[0.0, 3.5, 1.0, 6.36]], dtype=torch.float64, requires_grad=True)
    thickness = torch.tensor([[20.0, 150.0]], dtype=torch.float64, requires_grad=True)
    roughness = torch.tensor([[3.0, 4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    q = torch.from_numpy(Q[::10])

    def log_r(*parts: torch.Tensor) -> torch.Tensor:
        return kernel.reflectivity(q, Media(parts[0], torch.zeros_like(parts[0]), *parts[1:])).log10()

    assert torch.autograd.gradcheck(log_r, (sld, thickness, roughness), eps=1e-6, atol=1e-5)


# --- profile


def test_profile_runs_from_fronting_to_backing() -> None:
    media = Media.of(
        sld=np.array([2.07, 3.47, 0.5, 6.36]),
        thickness=np.array([15.0, 210.0]),
        roughness=np.array([3.0, 4, 6]),
    )
    z = kernel.depth_grid(media, 401)
    sld = kernel.profile(z, media.sld, media)[0]
    assert float(sld[0]) == pytest.approx(2.07, abs=1e-3)
    assert float(sld[-1]) == pytest.approx(6.36, abs=1e-3)
    middle = kernel.profile(torch.tensor([100.0], dtype=torch.float64), media.sld, media)
    assert float(middle) == pytest.approx(0.5, abs=1e-9)
    at_last_interface = kernel.profile(torch.tensor([225.0], dtype=torch.float64), media.sld, media)
    assert float(at_last_interface) == pytest.approx((0.5 + 6.36) / 2, abs=1e-9)


def test_profile_of_sharp_interfaces_is_steps() -> None:
    media = Media.of(sld=np.array([0.0, 4.0, 2.0]), thickness=np.array([50.0]), roughness=np.zeros(2))
    z = torch.tensor([-1.0, 1.0, 49.0, 51.0], dtype=torch.float64)
    assert kernel.profile(z, media.sld, media)[0].tolist() == [0.0, 4.0, 4.0, 2.0]


# --- the validation suite of the Open Reflectometry Standards Organisation


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6, 7])
def test_orso_validation(number: int) -> None:
    folder = os.environ.get("GUIDEHALL_ORSO_SUITE")
    if not folder:
        pytest.skip("GUIDEHALL_ORSO_SUITE does not name a checkout of the suite")
    root = Path(folder)
    root = root / "unpolarised" if (root / "unpolarised").is_dir() else root
    lines = (root / f"test{number}.txt").read_text().splitlines()
    layers, data = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    rows = np.atleast_2d(np.loadtxt(root / layers))
    q, expected = np.loadtxt(root / data, usecols=(0, 1), unpack=True)
    media = Media.of(sld=rows[:, 1], isld=rows[:, 2], thickness=rows[1:-1, 0], roughness=rows[1:, 3])
    np.testing.assert_allclose(curve(media, q), expected, rtol=8e-5)
