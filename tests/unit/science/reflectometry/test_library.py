"""`guidehall.fit`: the science as a library."""

from __future__ import annotations

import io
import json
import runpy
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refnx
import torch

import guidehall
from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve, Metadata
from guidehall.science.reflectometry.export import join_ort
from guidehall.science.reflectometry.infer_params import Instrument, probe_of
from guidehall.science.reflectometry.params import Range, StackPrior
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.progress import ProgressLine
from guidehall.science.reflectometry.resolution import resolution
from tests.unit.science.reflectometry.test_infer import FILM, WATER, simulated

MEASURED = Path(refnx.__file__).parent / "analysis/tests"


@pytest.fixture(scope="module")
def answer() -> object:
    return guidehall.fit(MEASURED / "e361r.txt", FILM, samples=100, starts=8)


def test_a_film_is_found_and_shown(answer: Any, tmp_path: Path) -> None:
    assert answer["film.thickness"].value == pytest.approx(211, abs=1)
    assert answer.chi_square < 151
    assert len(answer.plot().subfigs) == 2
    page = answer._repr_html_()
    assert "film.thickness" in page
    assert "<th>95 %</th>" in page
    low, high = answer["film.thickness"].interval_95
    assert f"<td>{low:.5g} to {high:.5g}</td>" in page
    assert "<td>at upper bound</td>" in page
    assert "data:image/png;base64," in page
    assert "film.thickness" in str(answer)
    assert f"Guidehall {guidehall.__version__}" in answer.cite()
    written = answer.save(tmp_path)
    assert {"curve-1.ort", "curve-1-refnx.py"} <= {path.name for path in written}
    # The file has no dq: what was assumed goes with the answer, so that others get the same chi-square.
    for package in ("refl1d", "refnx"):
        script = runpy.run_path(str(tmp_path / f"curve-1-{package}.py"))
        assert script["chi_square"] == pytest.approx(answer.chi_square, rel=2e-3)
    table = (tmp_path / "curve-1-parameters.csv").read_text().splitlines()
    assert len(table) == 1 + len(answer.parameters)
    assert "at upper bound" in str(answer)
    with pytest.raises(KeyError, match=r"film\.thickness"):
        answer["film.thicknes"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "stream", "drawn"),
    [(None, Terminal, True), (None, io.StringIO, False), (True, io.StringIO, True), (False, Terminal, False)],
)
def test_a_terminal_is_told_how_far_a_fit_is(
    monkeypatch: pytest.MonkeyPatch, progress: bool | None, stream: type[io.StringIO], drawn: bool
) -> None:
    said = stream()
    monkeypatch.setattr("sys.stderr", said)
    guidehall.fit(MEASURED / "e361r.txt", FILM, samples=20, starts=2, progress=progress)
    assert ("looking for films" in said.getvalue()) is drawn
    # Nothing is left on the line.
    assert not said.getvalue().rpartition("\r")[2]


def test_a_line_of_progress_is_gone_when_a_fit_fails() -> None:
    said = io.StringIO()
    with suppress(KeyError), ProgressLine(said) as line:
        line.stage("looking")
        raise KeyError
    assert said.getvalue() == "\rlooking, 0 s\r" + " " * 12 + "\r"


def test_three_liquids_share_one_film() -> None:
    curves = [
        guidehall.fit(MEASURED / f"{name}.txt", FILM, samples=0, starts=1).curves[0].curve
        for name in ("e361r", "e365r")
    ]
    own = [{"water.sld": {"min": 5.9, "max": 6.4}}, {"water.sld": {"min": 1.5, "max": 4.0}}]
    found = guidehall.fit(curves, FILM, own=own, samples=0, starts=12)
    together = found.plot()
    fits, _, profiles = (axes for part in together.subfigs for axes in part.axes)
    labels = fits.get_legend_handles_labels()[1]
    assert labels == ["1", "2, R × $10^{-1}$"]
    assert [line.get_label() for line in profiles.lines] == ["1", "2"]
    assert len(found.plot(1).subfigs[0].axes[0].get_legend_handles_labels()[1]) == 2
    names = [parameter.name for parameter in found.parameters]
    assert names.count("film.thickness") == 1
    assert {"1: water.sld", "2: water.sld"} <= set(names)
    assert len(found.analyses) == 2


@pytest.mark.parametrize(
    ("data", "model", "field"),
    [
        ("nowhere.ort", FILM, "data"),
        (MEASURED / "e361r.txt", {"layers": []}, "model.fronting"),
        (MEASURED / "e361r.txt", "nowhere.yml", "model"),
    ],
)
def test_what_is_wrong_is_named(data: object, model: object, field: str) -> None:
    with pytest.raises(UserError) as caught:
        guidehall.fit(data, model)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"), [({"samples": -1}, "samples"), ({"starts": 0}, "starts"), ({"data": []}, "data")]
)
def test_impossible_arguments_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        guidehall.fit(**{"data": MEASURED / "e361r.txt", "model": FILM, **changes})
    assert caught.value.field == field


def test_the_client_alone_does_not_load_the_science() -> None:
    import subprocess
    import sys

    code = "import sys, guidehall.client; assert 'torch' not in sys.modules and 'numpy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_told_is_what_was_fitted() -> None:
    """In the other mode of resolution too: chi-square, residuals and curve belong together."""
    own = {"resolution_mode": "refl1d"}
    found = guidehall.fit(MEASURED / "e361r.txt", FILM, instrument=own, samples=0, starts=4)
    (analysis,) = found.analyses
    assert analysis.chi_square == pytest.approx(found.chi_square, rel=1e-9)
    other = guidehall.fit(MEASURED / "e361r.txt", FILM, samples=0, starts=4)
    assert other.chi_square != pytest.approx(found.chi_square, rel=1e-6)


@pytest.mark.parametrize("seed", [-1, 2**53, 1.5, True])
def test_seeds_that_are_none_are_named(seed: Any) -> None:
    with pytest.raises(UserError, match="seed: got"):
        guidehall.fit(MEASURED / "e361r.txt", FILM, samples=0, starts=1, seed=seed)


def test_a_curve_of_lists_is_named() -> None:
    lists: Any = [0.01, 0.02, 0.03]
    with pytest.raises(UserError, match="q: got list; must be a numpy array"):
        guidehall.fit(Curve(lists, lists), FILM, samples=0, starts=1)


def codes(answer: Any) -> set[str]:
    return {note.code for note in answer.notes}


def test_answers_to_nothing_are_doubted() -> None:
    q = np.geomspace(0.01, 0.2, 40)
    silence = np.zeros_like(q)
    known = guidehall.fit(Curve(q, silence, silence + 0.1, 0.02 * q), FILM, samples=0, starts=2)
    assert "NO_SIGNAL" in codes(known)
    unknown = guidehall.fit(Curve(q, silence, None, 0.02 * q), FILM, samples=0, starts=2)
    assert "POOR_FIT" in codes(unknown)


def test_error_bars_that_are_too_large_are_told_and_nothing_else_is_blamed(answer: Any) -> None:
    (measured,) = answer.curves
    curve = measured.curve
    for factor in (30.0, 1e10):
        wider = Curve(curve.q, answer.analyses[0].calculated, factor * curve.dr, 0.0212 * curve.q)
        found = codes(guidehall.fit(wider, FILM, samples=0, starts=2))
        assert "MODEL_INSUFFICIENT" not in found
        assert {"ERROR_BARS_TOO_LARGE", "NO_SIGNAL"} & found


def test_files_are_fitted_together_and_named_after_themselves() -> None:
    names = ("e361r", "e366r")
    own = [{"water.sld": {"min": 5.9, "max": 6.4}}, {"water.sld": {"min": -0.6, "max": 0.0}}]
    film = {**FILM, "backing": {**FILM["backing"], "sld": {"min": -0.6, "max": 6.4}}}
    found = guidehall.fit([MEASURED / f"{name}.txt" for name in names], film, own=own, samples=0, starts=4)
    assert {"e361r: water.sld", "e366r: water.sld"} < {item.name for item in found.parameters}
    assert found.notes[0].message.startswith("curve e361r: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": "5"}, "samples: got 5; must be a whole number from 0 to 5000"),
        ({"starts": 2.5}, "starts: got 2.5; must be a whole number from 1 to 1000"),
        ({"dq": "fwhm"}, "dq: got fwhm; only with files: a Curve has q and one standard deviation of it"),
        ({"data": [1, 2]}, "data: got int; must be files or curves, all of one kind"),
        ({"data": []}, "data: got no curves; must hold at least one"),
        ({"own": {"film.sld": 2}}, "own: got dict; must be a list: for each curve, bounds by name"),
        ({"own": ["film.sld"]}, "own: got str; must be a list: for each curve, bounds by name"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], said: str) -> None:
    q = np.geomspace(0.01, 0.2, 10)
    arguments: dict[str, Any] = {"data": Curve(q, q, 0.1 * q), "model": FILM, **changes}
    with pytest.raises(UserError) as caught:
        guidehall.fit(**arguments)
    assert str(caught.value) == said


def test_points_below_the_noise_do_not_make_a_fit_poor() -> None:
    """A curve whose background was subtracted has points that are nothing but noise."""
    generator = np.random.default_rng(1)
    q = np.geomspace(0.01, 0.3, 150)
    stack = StackPrior.model_validate({**FILM, "backing": {**FILM["backing"], "sld": 6.36}})
    prior = Prior(stack, probe_of(Instrument()))
    middle = prior.values(torch.full((1, len(prior.free)), 0.5))
    r = prior.curves(resolution(q, 0.02 * q), middle)[0].numpy() - float(middle[0, -1])
    dr = np.hypot(0.02 * r, 1e-6)
    curve = Curve(q, r + dr * generator.standard_normal(len(q)), dr, 0.02 * q)
    found = guidehall.fit(curve, stack, instrument={"background": 0.0}, samples=0, starts=8)
    assert not {"POOR_FIT", "MODEL_INSUFFICIENT"} & codes(found)


def test_a_model_file_may_bring_its_instrument(tmp_path: Path) -> None:
    file = tmp_path / "film.json"
    file.write_text(json.dumps({"stack": FILM, "instrument": {"background": {"min": 2e-8, "max": 1e-5}}}))
    found = guidehall.fit(MEASURED / "e361r.txt", file, samples=0, starts=2)
    assert found["background"].lower == pytest.approx(2e-8)
    own = guidehall.fit(MEASURED / "e361r.txt", file, instrument=Instrument(), samples=0, starts=2)
    assert own["background"].lower == pytest.approx(1e-9)


def test_a_model_file_may_say_what_differs_between_curves_and_how_to_search(tmp_path: Path) -> None:
    film = {**FILM, "backing": {**FILM["backing"], "sld": {"min": -0.6, "max": 6.4}}}
    known = {
        "stack": film,
        "relation": "contrasts",
        "contrasts": [
            {"curve": "e361r", "bounds": {"water.sld": {"min": 5.9, "max": 6.4}}},
            {"curve": "2", "bounds": {"water.sld": {"min": -0.6, "max": 0.0}}},
        ],
        "samples": 0,
        "starts": 2,
    }
    file = tmp_path / "film.json"
    file.write_text(json.dumps(known))
    files = [MEASURED / f"{name}.txt" for name in ("e361r", "e366r")]
    found = guidehall.fit(files, file)
    assert found["e361r: water.sld"].value > 5.8
    assert found["e366r: water.sld"].value < 0.1
    assert found["film.thickness"].interval_95 is None
    for changes, said in (
        ({"relation": "series"}, "model.relation: got series; contrasts"),
        ({"instrumnet": {}}, "model.instrumnet"),
        ({"layer_counts": 2}, "model.layer_counts: got 2; 0"),
    ):
        plain = {"stack": film, "relation": "contrasts"}
        with pytest.raises(UserError) as caught:
            guidehall.fit(files, {**plain, **changes})
        assert said in str(caught.value)


def test_a_curve_without_dq_has_the_resolution_that_is_given(answer: Any) -> None:
    wide = guidehall.fit(MEASURED / "e361r.txt", FILM, resolution=0.03, dq="sigma", samples=0, starts=2)
    (note,) = (note for note in wide.notes if note.code == "RESOLUTION_ASSUMED")
    assert "0.03 q (one standard deviation; full width at half maximum 0.0706 q)" in note.message
    assert wide.instrument.resolution_convention == "sigma"
    with pytest.raises(UserError, match=r"instrument\.resolution: got 2"):
        guidehall.fit(MEASURED / "e361r.txt", FILM, resolution=2.0)


def test_a_resolution_of_zero_is_told(answer: Any) -> None:
    curve = answer.curves[0].curve
    for dq, said in (
        (curve.q * 0.0, "every point"),
        (np.where(curve.q > 0.1, 0.02 * curve.q, 0.0), "points"),
    ):
        found = guidehall.fit(Curve(curve.q, curve.r, curve.dr, dq), FILM, samples=0, starts=1)
        (note,) = (note for note in found.notes if note.code == "NO_RESOLUTION")
        assert f"dq is 0 at {said}" in note.message or f"of {len(dq)} points" in note.message


def test_a_fit_without_error_bars_has_no_chi_square(answer: Any) -> None:
    curve = answer.curves[0].curve
    found = guidehall.fit(Curve(curve.q, curve.r, None, 0.02 * curve.q), FILM, samples=0, starts=4)
    assert found.chi_square is None
    assert found.reduced_chi_square is None
    assert str(found).splitlines()[0] == (
        f"mean |log10 R| between curve and answer {found.mean_abs_log10_error:.3g}"
    )
    assert 0 < found.mean_abs_log10_error < 0.1


def test_a_value_has_the_digits_that_its_error_bar_leaves(answer: Any) -> None:
    found = answer["film.thickness"]
    (line,) = (line for line in str(answer).splitlines() if line.startswith("film.thickness"))
    value, _, error = line.split()[1:4]
    assert float(value) == pytest.approx(found.value, abs=0.1 * found.standard_error)
    assert len(value.partition(".")[2]) == len(error.partition(".")[2])
    quality = str(answer).splitlines()[0]
    assert quality.startswith(f"chi-square {answer.chi_square:.6g} for 99 points, ")
    assert quality.endswith(f"({answer.reduced_chi_square:.3g} per degree of freedom)")


def test_swapped_columns_are_not_praised(answer: Any) -> None:
    curve = answer.curves[0].curve
    found = guidehall.fit(Curve(curve.q, curve.dr, curve.r, 0.02 * curve.q), FILM, samples=0, starts=2)
    assert "NO_SIGNAL" in codes(found)
    assert "ERROR_BARS_TOO_LARGE" not in codes(found)


def test_numbers_of_a_model_file_may_have_exponents(tmp_path: Path) -> None:
    """YAML 1.1 takes those without a point for text: no number, and of a layer an expression."""
    file = tmp_path / "film.yml"
    stack = json.dumps(FILM).replace('{"min": 5, "max": 30}', "1e1")
    file.write_text(f"instrument: {{background: 1e-6}}\nstack: {stack}\n")
    found = guidehall.fit(MEASURED / "e361r.txt", file, samples=0, starts=1)
    assert found.instrument.background == Range(min=1e-6, max=1e-6)
    assert found.stack.layers[0].thickness == Range(min=10.0, max=10.0)


def test_sets_of_one_file_keep_their_names(tmp_path: Path) -> None:
    names = ["in water", "in air"]
    tables = [simulated(FILM, WATER, seed=seed) for seed in (1, 2)]
    curves = [
        Curve(q, r, dr, dq, metadata=Metadata(data_set=name))
        for (q, r, dr, dq), name in zip((table.T for table in tables), names, strict=True)
    ]
    (tmp_path / "both.ort").write_bytes(join_ort(curves))
    found = guidehall.fit(tmp_path / "both.ort", FILM, samples=0, starts=2)
    assert [item.name for item in found.curves] == names


def test_a_mistyped_name_is_told_with_the_right_one() -> None:
    film = json.loads(json.dumps(FILM))
    film["layers"][1]["thicknes"] = film["layers"][1].pop("thickness")
    with pytest.raises(UserError) as caught:
        guidehall.fit(MEASURED / "e361r.txt", film)
    assert caught.value.field == "model.layers[1].thicknes"
    assert "did you mean thickness?" in str(caught.value)
