"""What answers are doubted for, and what they leave in files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guidehall
from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.analysis import Prepared, describe, target_of
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import Search
from guidehall.science.reflectometry.infer_params import Instrument, probe_of
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.params import SimulateParams, StackPrior
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution
from guidehall.science.reflectometry.simulate import simulate
from guidehall.science.reflectometry.solve import Measured, solve
from tests.unit.science.reflectometry.test_infer import FILM, WATER, segmented_curves, simulated

# One layer on silicon; which of the thicknesses, sparse points cannot tell.
SPARSE = {
    "fronting": {"name": "air", "sld": 0},
    "layers": [{"name": "film", "sld": 4.0, "thickness": {"min": 100, "max": 2500}, "roughness": 2.0}],
    "backing": {"name": "silicon", "sld": 2.07, "roughness": 2.0},
}
FIXED: dict[str, Any] = {"scale": 1.0, "background": 0.0}


def curve_of(table: np.ndarray, every: int = 1) -> Curve:
    q, r, dr, dq = table[::every].T
    return Curve(q, r, dr, dq)


def noted(notes: Any, code: str) -> list[str]:
    return [note.message for note in notes if note.code == code]


@pytest.fixture(scope="module")
def water() -> Curve:
    return curve_of(simulated(FILM, WATER, seed=1))


def test_no_more_points_than_parameters_test_nothing(water: Curve) -> None:
    few = curve_of(simulated(FILM, WATER, seed=1), every=27)
    found = guidehall.fit(few, FILM, samples=0, starts=4)
    assert len(few.q) <= len(found.parameters)
    assert noted(found.notes, "TOO_FEW_POINTS")
    assert not noted(guidehall.fit(water, FILM, samples=0, starts=4).notes, "TOO_FEW_POINTS")


@pytest.mark.parametrize("known_errors", [True, False])
def test_several_films_are_told_by_chi_square_where_there_is_one(tmp_path: Path, known_errors: bool) -> None:
    q = np.linspace(0.1, 0.11, 3)
    film = Prior(StackPrior.model_validate(SPARSE), probe_of(Instrument.model_validate(FIXED)))
    r = film.measured(torch.from_numpy(q), None, torch.tensor([[900.0]], dtype=torch.float64))[0].numpy()
    curve = Curve(q, r, 0.2 * r if known_errors else None, np.zeros(3))
    found = guidehall.fit(curve, SPARSE, instrument=FIXED, samples=0, starts=40)
    (said,) = noted(found.notes, "SEVERAL_FILMS")
    assert len(found.analyses[0].explanations) > 1
    assert ("chi-square" in said) == known_errors
    found.save(tmp_path)
    with (tmp_path / "curve-1-explanations.csv").open(newline="") as file:
        films = list(csv.DictReader(file))
    explanations = found.analyses[0].explanations
    assert [float(film["chi_square"]) for film in films] == pytest.approx(
        [film.chi_square for film in explanations], rel=1e-6
    )
    assert list(films[0]) == ["film.thickness", "chi_square"]


def test_what_is_of_the_whole_answer_is_said_once(water: Curve) -> None:
    other = curve_of(simulated(FILM, WATER, seed=2))
    found = guidehall.fit([water, other], FILM, samples=50, starts=4)
    (said,) = noted(found.notes, "FEW_SAMPLES")
    assert said.startswith("the intervals are those of 50 samples")


def test_samples_that_did_not_mix_are_told(water: Curve) -> None:
    stack = StackPrior.model_validate(FILM)
    probe = probe_of(Instrument())
    measured = [Measured("film", water)]
    found = solve(stack, probe, measured, seed=1, how=Search(starts=4, rounds=1), samples=100)
    assert found.posterior is not None
    assert found.posterior.mixed
    (analysis,) = found.analyses
    assert not noted(analysis.notes, "SAMPLES_NOT_MIXED")
    prepared = _prepared(water)
    target = target_of(Prior(stack, probe), prepared, probe.resolution_mode, exact=True)
    unmixed = replace(found.posterior, mixed=False)
    again = describe(prepared, target, target, analysis.unit, "refined", found.modes, unmixed)
    assert noted(again.notes, "SAMPLES_NOT_MIXED")


def _prepared(curve: Curve) -> Prepared:
    assert curve.dq is not None
    return Prepared(curve.q, curve.r, curve.dr, curve.dq, np.arange(len(curve.q)), ())


def test_slds_of_another_unit_are_noticed() -> None:
    film: dict[str, Any] = {
        "fronting": {"name": "air", "sld": 0},
        "layers": [{"name": "film", "sld": 4e-6, "thickness": 200, "roughness": 2}],
        "backing": {"name": "silicon", "sld": 2.07e-6, "roughness": 2},
    }
    assert noted(simulate(SimulateParams.model_validate({"stack": film})).notes, "SLD_UNIT")
    film["backing"]["sld"] = 2.07
    assert not noted(simulate(SimulateParams.model_validate({"stack": film})).notes, "SLD_UNIT")


def test_runs_of_a_file_that_do_not_share_a_scale_are_told() -> None:
    _, split = segmented_curves()
    together = guidehall.fit(split, FILM, samples=0, starts=4)
    assert noted(together.notes, "SEGMENTS_TOGETHER")


def test_an_answer_leaves_its_bands_samples_and_films(tmp_path: Path, water: Curve) -> None:
    found = guidehall.fit(water, FILM, samples=60, starts=6)
    found.save(tmp_path)
    (analysis,) = found.analyses
    told = (tmp_path / "answer.txt").read_text()
    assert told == f"{found}\n"
    assert "FEW_SAMPLES" in told

    def rows(name: str) -> list[dict[str, str]]:
        with (tmp_path / name).open(newline="") as file:
            return list(csv.DictReader(file))

    profile = rows("curve-1-profile.csv")
    assert len(profile) == len(analysis.z)
    assert analysis.sld_band is not None
    np.testing.assert_allclose(
        [float(row["sld_low_95"]) for row in profile], analysis.sld_band.lower_95, rtol=1e-6
    )
    np.testing.assert_allclose([float(row["z (angstrom)"]) for row in profile], analysis.z, rtol=1e-6)
    samples = rows("curve-1-samples.csv")
    assert len(samples) == 60
    assert list(samples[0]) == [parameter.name for parameter in analysis.parameters]
    assert len(analysis.explanations) == 1
    assert not (tmp_path / "curve-1-explanations.csv").exists()


def test_many_points_are_calculated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Prior(StackPrior.model_validate(FILM), probe_of(Instrument()))
    unit = torch.rand(7, len(prior.free), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q = torch.linspace(0.01, 0.2, 50, dtype=torch.float64)
    seen = resolution(q.numpy(), 0.03 * q.numpy(), order=33)
    values = prior.values(unit)
    own = prior.measured(q, 0.03 * q, values, order=33)
    same = prior.curves(seen, values)
    torch.testing.assert_close(same, own)
    asked: list[int] = []
    real = engine.reflectivity

    def counted(q: torch.Tensor, media: Media) -> torch.Tensor:
        asked.append(len(media.sld) * q.shape[-1])
        return real(q, media)

    monkeypatch.setattr(engine, "reflectivity", counted)
    monkeypatch.setattr("guidehall.science.reflectometry.prior._CALCULATED_AT_ONCE", 2 * 50 * 33)
    torch.testing.assert_close(prior.measured(q, 0.03 * q, values, order=33), own)
    torch.testing.assert_close(prior.curves(seen, values), same)
    assert asked == 2 * [3300, 3300, 3300, 1650]
    nothing = values[:0]
    assert prior.measured(q, 0.03 * q, nothing).shape == prior.curves(seen, nothing).shape == (0, 50)
