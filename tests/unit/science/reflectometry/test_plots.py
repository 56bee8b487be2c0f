"""What the pictures show, read from the figures themselves."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from guidehall.science.pipeline import LocalContext
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.analysis import Line, Prepared, drawn_line
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.params import EpochLosses, ResolutionMode
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution

Q = np.array([0.01, 0.02, 0.03, 0.04])
CURVE = Curve(Q, np.array([1.0, 0.1, -1e-4, -1.0]), np.array([0.1, 0.02, 1e-4, 0.1]))
MODEL = np.array([0.9, 0.12, 1e-3, 1e-4])


def all_figures() -> dict[str, Figure]:
    z, sld = np.linspace(-10, 100, 30), np.linspace(0, 6, 30)
    losses = [EpochLosses(epoch=n, train_loss=1 / n, validation_loss=2 / n) for n in (1, 2, 3)]
    actual = np.random.default_rng(0).random((20, 4))
    return {
        "curves": plots.curve_and_profile({"simulated": (Q, MODEL)}, {"SLD": (z, sld)}),
        "losses": plots.loss_curve(losses),
        "fit": plots.fit(CURVE, MODEL),
        "fit_q4": plots.fit_q4(CURVE, MODEL),
        "sld": plots.sld_bands(z, sld, (sld - 0.1, sld + 0.1), (sld - 0.3, sld + 0.3)),
        "chi": plots.chi(actual, actual + 0.1, ["chi AB", "chi AC", "chi BC", "chi AD"]),
    }


def lines(figure: Figure, panel: int = 0) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[panel].lines}


@pytest.mark.parametrize("name", all_figures())
def test_pictures_can_be_opened_and_are_the_same_again(name: str) -> None:
    png, svg = (plots.picture(all_figures()[name], kind, name) for kind in ("png", "svg"))
    image = matplotlib.image.imread(io.BytesIO(png))
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.01
    assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314 (our own)
    assert svg == plots.picture(all_figures()[name], "svg", name)


@pytest.mark.parametrize(
    ("name", "panel", "x", "y"),
    [
        ("curves", 0, "q (1/Å)", "Reflectivity"),
        ("curves", 1, "Depth (Å)", "SLD ($10^{-6}$/Å$^2$)"),
        ("losses", 0, "Epoch", "Loss"),
        ("fit", 0, "", "Reflectivity"),
        ("fit", 1, "q (1/Å)", "(R - model) / dR"),
        ("fit_q4", 0, "q (1/Å)", "R q$^4$ (1/Å$^4$)"),
        ("sld", 0, "Depth (Å)", "SLD ($10^{-6}$/Å$^2$)"),
        ("chi", 3, "actual", "predicted"),
    ],
)
def test_axes_are_labelled_with_units(name: str, panel: int, x: str, y: str) -> None:
    axes = all_figures()[name].axes[panel]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (x, y)


def test_a_fit_shows_every_point_and_what_is_left() -> None:
    figure = plots.fit(CURVE, MODEL)
    upper, lower = figure.axes
    assert (upper.get_xscale(), upper.get_yscale()) == ("log", "log")
    drawn = lines(figure)
    np.testing.assert_array_equal(drawn["model"], np.stack([Q, MODEL], axis=1))
    # The third point is above zero within two standard deviations, the fourth is not.
    limit = drawn["not above 0: upper limit (2 dR)"]
    np.testing.assert_allclose(limit, [[0.03, 1e-4]])
    (bars,) = upper.containers
    np.testing.assert_array_equal(np.asarray(bars[0].get_xydata()), [[0.01, 1.0], [0.02, 0.1]])
    segments = bars[2][0].get_segments()
    np.testing.assert_allclose(segments[1], [[0.02, 0.08], [0.02, 0.12]])
    left = np.asarray(lower.lines[1].get_xydata())
    np.testing.assert_allclose(left, np.stack([Q, (CURVE.r - MODEL) / CURVE.dr], axis=1))


def test_a_fit_without_errors_shows_ratios() -> None:
    figure = plots.fit(Curve(Q, CURVE.r), MODEL)
    assert figure.axes[1].get_ylabel() == "log$_{10}$ R / model"
    left = np.asarray(figure.axes[1].lines[1].get_xydata())
    np.testing.assert_allclose(left, [[0.01, np.log10(1 / 0.9)], [0.02, np.log10(0.1 / 0.12)]])


def test_r_q4_is_weighted_with_its_errors() -> None:
    figure = plots.fit_q4(CURVE, MODEL)
    np.testing.assert_allclose(lines(figure)["model"][:, 1], MODEL * Q**4)
    segments = figure.axes[0].containers[0][2][0].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], np.array([0.9, 1.1]) * 0.01**4)


def test_bands_of_the_profile() -> None:
    z, sld = np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    figure = plots.sld_bands(z, sld, (sld - 1, sld + 1), (sld - 2, sld + 3))
    wide, narrow = figure.axes[0].collections
    assert (wide.get_label(), narrow.get_label()) == ("95 %", "68 %")
    assert wide.get_datalim(figure.axes[0].transData).intervaly.tolist() == [-1, 6]
    assert narrow.get_datalim(figure.axes[0].transData).intervaly.tolist() == [0, 4]
    assert not plots.sld_bands(z, sld).axes[0].collections


def test_chi_has_a_panel_for_each_parameter() -> None:
    actual = np.array([[0.1, 5.0], [0.2, 7.0]])
    figure = plots.chi(actual, actual * 2, ["chi AB", "chi AC"])
    assert [axes.get_title() for axes in figure.axes] == ["chi AB", "chi AC"]
    equal, points = figure.axes[1].lines
    np.testing.assert_array_equal(equal.get_xydata(), [[5, 5], [14, 14]])
    np.testing.assert_array_equal(points.get_xydata(), [[5, 10], [7, 14]])
    assert len(plots.chi(np.ones((2, 4)), np.ones((2, 4)), list("abcd")).axes) == 6


def test_attaches_both_kinds(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    plots.attach(context, "fit", plots.fit(CURVE, MODEL))
    assert context.artifacts == {"fit.png": "image/png", "fit.svg": "image/svg+xml"}
    assert (tmp_path / "artifacts/fit.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_is_drawn_between_the_points_where_it_is_known() -> None:
    fine = Line(np.linspace(0.01, 0.04, 31), np.geomspace(1.0, 1e-4, 31))
    drawn = lines(plots.fit(CURVE, MODEL, fine))
    np.testing.assert_array_equal(drawn["model"], np.stack(fine, axis=1))
    times_q4 = lines(plots.fit_q4(CURVE, MODEL, fine))["model"]
    np.testing.assert_allclose(times_q4[:, 1], fine.r * fine.q**4)


def fitted_curve(q: np.ndarray, sigma: np.ndarray, mode: ResolutionMode = "quadrature") -> Line | None:
    params = film_under_water()
    prior = Prior(params.stack, params.probe)
    points = Prepared(q, np.ones_like(q), None, sigma, np.arange(len(q)), ())
    return drawn_line(prior, points, mode, np.full(len(prior.free), 0.5))


def test_the_drawn_line_is_the_curve_of_the_model() -> None:
    params = film_under_water()
    prior = Prior(params.stack, params.probe)
    # Two angles that have a point in common.
    q = np.array([0.01, 0.02, 0.05, 0.05, 0.1, 0.2])
    sigma = np.array([0.01, 0.01, 0.01, 0.03, 0.03, 0.03]) * q
    line = fitted_curve(q, sigma)
    assert line is not None
    assert len(line.q) >= 600
    assert (np.diff(line.q) > 0).all()
    values = prior.values(torch.full((1, len(prior.free)), 0.5, dtype=torch.float64))
    between = np.array([0.015, 0.075, 0.15])
    width = np.interp(between, [0.01, 0.02, 0.05, 0.1, 0.2], [1e-4, 2e-4, 1e-3, 3e-3, 6e-3])
    expected = prior.curves(resolution(between, width, "quadrature", 101), values)[0].numpy()
    np.testing.assert_allclose(np.interp(between, line.q, line.r), expected, rtol=2e-2)


def test_dense_points_and_lines_between_points_need_no_other_line() -> None:
    dense = np.geomspace(0.01, 0.2, 700)
    assert fitted_curve(dense, 0.02 * dense) is None
    sparse = np.geomspace(0.01, 0.2, 30)
    assert fitted_curve(sparse, 0.02 * sparse, "refl1d") is None


def test_pyplot_is_not_used() -> None:
    assert "pyplot" not in Path(sys.modules[plots.__name__].__file__ or "").read_text().replace(
        "without pyplot", ""
    )
