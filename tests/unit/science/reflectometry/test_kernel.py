"""The physics against analytic results, its symmetries, two independent packages and the field's suite."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refl1d.lib.python.reflectivity import refl
from refnx.reflect import abeles, reflectivity

from guidehall.science.reflectometry import engine, kernel
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.params import FWHM_PER_SIGMA
from guidehall.science.reflectometry.resolution import resolution
from tests.missing import missing

Q = np.geomspace(0.005, 0.3, 60)


def _engines() -> list[str]:
    """All that this machine can run: every case is solved by each."""
    found = ["torch", "any"]
    for name in ("avx2", "avx512"):
        with contextlib.suppress(ValueError):
            engine.use(name)
            found.append(name)
    return found


@pytest.fixture(scope="module", params=_engines(), autouse=True)
def solver(request: pytest.FixtureRequest) -> Iterator[None]:
    engine.use(request.param)
    yield
    engine.use(_engines()[-1])


def curve(media: Media, q: np.ndarray = Q) -> np.ndarray:
    return engine.reflectivity(torch.from_numpy(q), media)[0].numpy()


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
        seen = resolution(q, fwhm / FWHM_PER_SIGMA, order=101)
        measured = 0.9 * engine.blur(seen, engine.reflectivity(seen.q, Media.of(**film)))[0].numpy() + 1e-6
        # Its quadrature is not normalised: 0.05 % of the weight lies beyond the cut.
        np.testing.assert_allclose(measured, expected, rtol=1e-3)


def test_resolutions_of_the_engine_and_of_torch_are_the_same() -> None:
    curves = torch.rand(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for q in (np.linspace(0.01, 0.2, 30), np.array([0.1])):
        for mode in ("quadrature", "refl1d"):
            seen = resolution(q, 0.02 * q, mode, 9)
            many = curves * torch.arange(1.0, len(seen.q) + 1, dtype=torch.float64)
            torch.testing.assert_close(engine.blur(seen, many), seen.apply(many), rtol=1e-12, atol=0.0)
            gradients = torch.linspace(0, 1, 3 * len(q), dtype=torch.float64).reshape(3, -1)
            # The transpose: <W a, b> = <a, W^T b>.
            left, right = (seen.apply(many) * gradients).sum(), (many * seen.spread(gradients)).sum()
            torch.testing.assert_close(left, right)


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


@pytest.mark.parametrize("points_of_each", [False, True])
def test_batches_equal_single_films(points_of_each: bool) -> None:
    generator = np.random.default_rng(5)
    media = Media.of(
        sld=generator.uniform(0, 7, (4, 5)),
        thickness=generator.uniform(10, 200, (4, 3)),
        roughness=generator.uniform(0, 9, (4, 4)),
    )
    # Not a multiple of any vector's length.
    q = torch.from_numpy(np.sort(generator.uniform(0.001, 0.2, (4, 37))))
    batch = engine.reflectivity(q if points_of_each else q[0], media)
    for row in range(4):
        one = Media(*(a[row : row + 1] for a in (media.sld, media.isld, media.thickness, media.roughness)))
        single = engine.reflectivity(q[row if points_of_each else 0], one)
        torch.testing.assert_close(batch[row : row + 1], single, rtol=1e-12, atol=0.0)


@quick
@given(films())
def test_the_engine_gives_the_derivatives_of_torch(media: Media) -> None:
    leaves = [
        part.clone().requires_grad_() for part in (media.sld, media.isld, media.thickness, media.roughness)
    ]
    count = 4 * media.sld.shape[1] - 2
    q = torch.from_numpy(Q[::7])
    r, slopes = engine.gradient(q, media, np.arange(count))
    weights = torch.linspace(1.0, 2.0, len(q), dtype=torch.float64)[None]
    moved = q.clone().requires_grad_()
    expected = torch.autograd.grad(
        (kernel.reflectivity(moved, Media(*leaves)) * weights).sum(),
        [*leaves, moved],
        allow_unused=True,
        materialize_grads=True,
    )
    found = (slopes * weights).sum(-1)[0]
    torch.testing.assert_close(r, kernel.reflectivity(q, media), rtol=1e-10, atol=1e-15)
    sizes = [part.shape[1] for part in leaves]
    for part, wanted in zip(found[:-1].split(sizes), expected[:4], strict=True):
        torch.testing.assert_close(part, wanted[0], rtol=1e-6, atol=1e-9 * float(found.abs().max()))
    torch.testing.assert_close(slopes[0, -1] * weights[0], expected[4], rtol=1e-6, atol=1e-9)
    pulled = engine.pull(q, media, np.arange(count), weights)
    torch.testing.assert_close(pulled[0], found, rtol=1e-9, atol=1e-12)


def test_derivatives_that_share_a_row_add_up() -> None:
    q, media = torch.linspace(0.01, 0.2, 21, dtype=torch.float64), small_films()
    each = engine.gradient(q, media, np.arange(10))[1]
    wanted, rows = np.array([1, 2, 6, 9]), np.array([1, 0, 1, 2])
    shared = engine.gradient(q, media, wanted, rows)[1]
    expected = torch.stack([each[:, 2], each[:, 1] + each[:, 6], each[:, 9]], dim=1)
    torch.testing.assert_close(shared, expected, rtol=1e-12, atol=0.0)
    weights = torch.linspace(1.0, 2.0, 21, dtype=torch.float64).expand(3, 21)
    pulled = engine.pull(q, media, wanted, weights, rows)
    torch.testing.assert_close(pulled, (expected * weights[:, None]).sum(2), rtol=1e-10, atol=1e-18)


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


@pytest.mark.parametrize("number", range(8))
def test_orso_validation(number: int) -> None:
    folder = os.environ.get("GUIDEHALL_ORSO_SUITE")
    if not folder:
        missing("GUIDEHALL_ORSO_SUITE does not name a checkout of the suite")
    root = Path(folder)
    root = root / "unpolarised" if (root / "unpolarised").is_dir() else root
    lines = (root / f"test{number}.txt").read_text().splitlines()
    layers, data = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    rows = np.atleast_2d(np.loadtxt(root / layers))
    columns = np.loadtxt(root / data, unpack=True)
    q, expected = columns[:2]
    media = Media.of(sld=rows[:, 1], isld=rows[:, 2], thickness=rows[1:-1, 0], roughness=rows[1:, 3])
    if len(columns) < 4:
        np.testing.assert_allclose(curve(media, q), expected, rtol=8e-5)
        return
    # The suite's own tolerance for blurred curves.
    seen = resolution(q, columns[3], order=101)
    blurred = engine.blur(seen, engine.reflectivity(seen.q, media))[0].numpy()
    np.testing.assert_allclose(blurred, expected, rtol=0.03)


def test_thousands_of_slabs_are_the_layer_that_they_make_up() -> None:
    whole = Media.of(np.array([0.0, 4.0, 2.07]), np.array([600.0]), np.array([5.0, 3.0]))
    slabs = Media.of(
        np.concatenate([[0.0], np.full(3000, 4.0), [2.07]]),
        np.full(3000, 0.2),
        np.concatenate([[5.0], np.zeros(2999), [3.0]]),
    )
    q = torch.from_numpy(np.geomspace(0.008, 0.3, 60))
    expected = kernel.reflectivity(q, whole)
    for calculate in (kernel.reflectivity, engine.reflectivity):
        torch.testing.assert_close(calculate(q, slabs), expected, rtol=1e-9, atol=0.0)


def small_films() -> Media:
    return Media.of(
        np.array([[0.0, 3.0, 2.0]] * 3),
        np.array([[50.0], [60.0], [70.0]]),
        np.array([[3.0, 4.0]] * 3),
    )


def test_one_row_of_q_serves_all_films() -> None:
    q, media = torch.linspace(0.01, 0.2, 21, dtype=torch.float64), small_films()
    assert torch.equal(engine.reflectivity(q[None], media), engine.reflectivity(q, media))
    of_row, of_points = (engine.gradient(points, media, np.arange(10))[1] for points in (q[None], q))
    assert torch.equal(of_row, of_points)


def test_arrays_that_do_not_fit_are_refused() -> None:
    q, media = torch.linspace(0.01, 0.2, 21, dtype=torch.float64), small_films()
    for wrong in (q.expand(2, -1), q.expand(4, -1)):
        with pytest.raises(RuntimeError):
            engine.reflectivity(wrong, media)
    with pytest.raises(RuntimeError):
        engine.reflectivity(q, replace(media, roughness=media.roughness[:2]))
    with pytest.raises(ValueError, match="5 points"):
        engine.blur(resolution(q.numpy(), 0.02 * q.numpy()), torch.zeros(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("part", ["sld", "isld", "thickness", "roughness"])
def test_what_is_no_number_is_not_hidden(part: str) -> None:
    q, media = torch.linspace(0.01, 0.2, 21, dtype=torch.float64), small_films()
    # The last: absorption of the fronting medium is left out.
    getattr(media, part)[1, -1] = math.nan
    r = engine.reflectivity(q, media)
    assert not r[1].isfinite().any()
    assert r[[0, 2]].isfinite().all()
    if part in ("thickness", "roughness"):
        _, profile = engine.sampled_profile(media, media.sld, 50)
        assert not profile[1].isfinite().all()
        assert profile[[0, 2]].isfinite().all()


def test_negative_roughness_counts_as_positive() -> None:
    q, media = torch.linspace(0.01, 0.2, 21, dtype=torch.float64), small_films()
    mirrored = replace(media, roughness=-media.roughness)
    assert torch.allclose(engine.reflectivity(q, mirrored), engine.reflectivity(q, media), rtol=1e-12)
