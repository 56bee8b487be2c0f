from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from guidehall.science import registry
from guidehall.science.manifest import Manifest
from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.analysis import analyse, refine
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.predictor import PhysicalPredictor

TRUTH = {"film.thickness": 152.0, "film.sld": 4.2, "film.roughness": 5.0, "scale": 0.97, "background": 2e-6}


@pytest.fixture(scope="module")
def model(small_model_folder: Path) -> PhysicalPredictor:
    folder = small_model_folder / "models/small"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    loaded = registry.load_predictor(manifest, (folder / "model.safetensors").read_bytes())
    assert isinstance(loaded, PhysicalPredictor)
    return loaded


@pytest.fixture(scope="module")
def curve(model: PhysicalPredictor) -> Curve:
    """A measurement with 3 % noise at a resolution of 5 % FWHM."""
    q = np.geomspace(0.012, 0.19, 120)
    values = torch.tensor([[TRUTH[free.name] for free in model.prior.free]], dtype=torch.float64)
    clean = model.prior.measured(torch.from_numpy(q), torch.from_numpy(0.02123 * q), values)[0].numpy()
    dr = 0.03 * clean
    noise = np.random.default_rng(4).standard_normal(len(q))
    return Curve(q, clean + dr * noise, dr, 0.02123 * q)


def test_network_finds_the_neighbourhood(model: PhysicalPredictor, curve: Curve) -> None:
    answer = analyse(model, curve)
    assert answer.stage == "network"
    assert answer.mean_abs_log10_error < 0.2
    assert answer.notes == ()
    assert [item.name for item in answer.parameters] == list(TRUTH)
    for item in answer.parameters:
        assert item.lower <= item.value <= item.upper
        assert item.standard_error is None
    assert len(answer.z) == len(answer.sld) == len(answer.isld)


def test_fit_finds_the_truth_with_error_bars_that_hold(model: PhysicalPredictor, curve: Curve) -> None:
    start = analyse(model, curve)
    best = refine(model.arguments, curve, start.unit)
    assert best.stage == "refined"
    assert best.chi_square is not None
    assert start.chi_square is not None
    assert best.chi_square < start.chi_square
    assert best.reduced_chi_square == pytest.approx(1.0, abs=0.4)
    for item in best.parameters:
        assert item.standard_error is not None
        assert abs(item.value - TRUTH[item.name]) < 4 * item.standard_error
    assert best.residuals is not None
    assert best.residuals @ best.residuals == pytest.approx(best.chi_square)


def test_fit_without_error_bars_uses_logarithms(model: PhysicalPredictor, curve: Curve) -> None:
    bare = replace(curve, dr=None)
    answer = refine(model.arguments, bare, analyse(model, bare).unit)
    assert answer.chi_square is answer.reduced_chi_square is answer.residuals is None
    assert "NO_ERROR_BARS" in [note.code for note in answer.notes]
    assert answer.mean_abs_log10_error < 0.02
    found = {item.name: item.value for item in answer.parameters}
    assert found["film.thickness"] == pytest.approx(152.0, abs=1.0)
    assert all(item.standard_error is None for item in answer.parameters)


def test_parameters_at_their_bounds_have_no_error_bar(model: PhysicalPredictor, curve: Curve) -> None:
    answer = refine(model.arguments, replace(curve, r=curve.r * 0.5, dr=curve.r * 0.03), np.full(5, 0.5))
    scale = next(item for item in answer.parameters if item.name == "scale")
    assert scale.value == pytest.approx(0.9, abs=1e-4)
    assert scale.standard_error is None


def test_answer_and_task_can_be_sent_to_another_process(model: PhysicalPredictor, curve: Curve) -> None:
    arguments, again = pickle.loads(pickle.dumps((model.arguments, curve)))  # noqa: S301 (our own bytes)
    here, there = (refine(*task, np.full(5, 0.5)) for task in ((model.arguments, curve), (arguments, again)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(there)).calculated, here.calculated)  # noqa: S301


@pytest.mark.parametrize("stage", ["network", "refined"])
def test_an_answer_that_explains_nothing_says_so(model: PhysicalPredictor, curve: Curve, stage: str) -> None:
    # Of a film ten times as rough as any that the model knows.
    other = replace(curve, r=curve.r * np.exp(-((30 * curve.q) ** 2)))
    poor, good = (
        answer if stage == "network" else refine(model.arguments, seen, answer.unit)
        for seen in (other, curve)
        for answer in (analyse(model, seen),)
    )
    assert [note.code for note in good.notes if note.code == "POOR_FIT"] == []
    (note,) = (note for note in poor.notes if note.code == "POOR_FIT")
    assert f"{poor.mean_abs_log10_error:.2g}" in note.message


def test_points_outside_the_trained_range_are_cut_and_reported(
    model: PhysicalPredictor, curve: Curve
) -> None:
    q = np.concatenate([[0.005], curve.q, [0.25]])
    longer = Curve(q, np.concatenate([[1.0], curve.r, [1e-6]]))
    answer = analyse(model, longer)
    np.testing.assert_array_equal(answer.used_points, np.arange(1, len(q) - 1))
    np.testing.assert_array_equal(answer.q, curve.q)
    assert answer.points_cut
    cut = next(note for note in answer.notes if note.code == "POINTS_CUT")
    assert "2 of 122 points" in cut.message
    assert "RESOLUTION_ASSUMED" in [note.code for note in answer.notes]


def test_too_many_points_outside_are_an_error(model: PhysicalPredictor) -> None:
    q = np.linspace(0.1, 0.5, 100)
    with pytest.raises(UserError, match=r"scan\.q: got 75 of 100 points outside; at most 20%"):
        analyse(model, Curve(q, np.ones(100)), "scan")


def test_too_short_a_curve_is_an_error(model: PhysicalPredictor) -> None:
    q = np.linspace(0.1, 0.2, 50)
    with pytest.raises(UserError, match=r"curve\.q: got .* covered in row 0"):
        analyse(model, Curve(q, np.ones(50)))


def test_other_beam_side_is_an_error(model: PhysicalPredictor, curve: Curve) -> None:
    with pytest.raises(UserError, match=r"curve\.beam_side: got backing; .* through the fronting"):
        analyse(model, replace(curve, beam_side="backing"))
    analyse(model, replace(curve, beam_side="fronting"))


def test_resolution_outside_the_training_is_said(model: PhysicalPredictor, curve: Curve) -> None:
    answer = analyse(model, replace(curve, dq=None, relative_dq=0.04))
    assert [note.code for note in answer.notes] == ["OUTSIDE_TRAINED_RANGE"]


def test_points_that_are_not_positive_stay_in_the_fit(model: PhysicalPredictor, curve: Curve) -> None:
    assert curve.dr is not None
    r, dr = curve.r.copy(), curve.dr.copy()
    r[-2:], dr[-2:] = [0.0, -1e-6], 3e-6
    start = analyse(model, replace(curve, r=r, dr=dr))
    answer = refine(model.arguments, replace(curve, r=r, dr=dr), start.unit)
    assert answer.residuals is not None
    assert len(answer.residuals) == len(curve.q)
    assert np.isfinite(answer.mean_abs_log10_error)
    assert answer.reduced_chi_square == pytest.approx(1.0, abs=0.4)


def test_wrong_points_are_named(model: PhysicalPredictor, curve: Curve) -> None:
    r = curve.r.copy()
    r[3] = np.nan
    with pytest.raises(UserError, match=r"curve\.r\[3\]: got nan"):
        analyse(model, replace(curve, r=r))
