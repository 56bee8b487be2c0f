"""The pipeline that finds films behind measured curves, on curves whose answer is known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import refnx
import torch
from pydantic import ValidationError

from guidehall.science.pipeline import Desired, JobCancelled, LocalContext, UserError, field_errors
from guidehall.science.reflectometry import infer
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import Search
from guidehall.science.reflectometry.infer_params import InferParams, InferResult, Instrument, probe_of
from guidehall.science.reflectometry.params import Range, StackPrior
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution
from guidehall.science.reflectometry.solve import Measured, series, solve

MEASURED = Path(refnx.__file__).parent / "analysis/tests"
FILM = {
    "fronting": {"name": "silicon", "sld": 2.07},
    "layers": [
        {
            "name": "oxide",
            "sld": 3.47,
            "thickness": {"min": 5, "max": 30},
            "roughness": {"min": 1, "max": 8},
        },
        {
            "name": "film",
            "sld": {"min": 0, "max": 2.5},
            "thickness": {"min": 150, "max": 300},
            "roughness": {"min": 1, "max": 12},
        },
    ],
    "backing": {"name": "water", "sld": {"min": 5.9, "max": 6.4}, "roughness": {"min": 1, "max": 12}},
}


def simulated(stack: Mapping[str, object], values: list[float], seed: int, points: int = 80) -> np.ndarray:
    """q, R, dR, dq (one standard deviation) of a film, with 3 % noise; [points, 4]."""
    params = InferParams.model_validate({"stack": stack})
    prior = Prior(params.stack, probe_of(params.instrument))
    assert len(values) == len(prior.free)
    q = np.geomspace(0.008, 0.2, points)
    seen = resolution(q, 0.02 * q)
    r = prior.curves(seen, torch.tensor([values], dtype=torch.float64))[0].numpy()
    dr = 0.03 * r + 1e-8
    noisy = r + dr * np.random.default_rng(seed).standard_normal(points)
    return np.stack([q, noisy, dr, 0.02 * q], axis=1)


def write(path: Path, *tables: np.ndarray) -> Path:
    """An ORSO file of several curves."""
    from orsopy import fileio

    sets = []
    for place, table in enumerate(tables, start=1):
        columns = [
            fileio.Column("Qz", "1/angstrom"),
            fileio.Column("R"),
            fileio.ErrorColumn(error_of="R", value_is="sigma"),
            fileio.ErrorColumn(error_of="Qz", value_is="sigma"),
        ]
        header = fileio.Orso.empty()
        header.columns = columns
        header.data_set = f"set{place}"
        sets.append(fileio.OrsoDataset(header, table))
    fileio.save_orso(sets, path)
    return path


def fitted(tmp_path: Path, file: Path, params: dict[str, object]) -> tuple[InferResult, LocalContext]:
    context = LocalContext(tmp_path / "run", seed=3, datasets={"curves": file})
    result = infer.run(InferParams.model_validate(params), context)
    return result, context


WATER = [13.0, 4.0, 210.0, 0.5, 5.0, 6.2, 6.0, 1.0, 1e-6]


def test_finds_a_film_and_says_how_well_it_is_known(tmp_path: Path) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    result, context = fitted(tmp_path, file, {"stack": FILM, "samples": 300})
    (curve,) = result.curves
    assert curve.reduced_chi_square == pytest.approx(1.0, abs=0.4)
    assert curve.notes == []
    for parameter, truth in zip(curve.parameters, WATER, strict=True):
        assert parameter.interval_95 is not None
        low, high = parameter.interval_95
        slack = 0.5 * (high - low)
        assert low - slack <= truth <= high + slack, parameter.name
    names = {"curve-1-fit.png", "curve-1-sld.svg", "curve-1.ort", "curve-1.csv", "curve-1-refnx.py"}
    assert names <= set(context.artifacts)


def test_the_same_seed_gives_the_same_answer(tmp_path: Path) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    params = {"stack": FILM, "samples": 100, "starts": 6}
    first, second = (fitted(tmp_path / name, file, params)[0] for name in ("a", "b"))
    assert first.curves == second.curves


def test_scripts_give_the_same_chi_square_elsewhere(tmp_path: Path) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    assert_same_chi_square(*fitted(tmp_path, file, {"stack": FILM, "samples": 0}))


def assert_same_chi_square(result: InferResult, context: LocalContext) -> None:
    """Of the first curve, in the scripts for other programs."""
    expected = result.curves[0].chi_square
    for package in ("refnx", "refl1d"):
        script = context.directory / f"artifacts/curve-1-{package}.py"
        said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
        assert float(said.split()[1]) == pytest.approx(expected, rel=0.02), package


def test_contrasts_share_what_is_not_their_own(tmp_path: Path) -> None:
    stack = {**FILM, "backing": {**FILM["backing"], "sld": {"min": -0.6, "max": 6.4}}}  # type: ignore[dict-item]
    heavy, light = list(WATER), list(WATER)
    light[5] = -0.4
    file = write(tmp_path / "two.ort", simulated(stack, heavy, 1), simulated(stack, light, 2))
    contrasts = [
        {"curve": "set1", "bounds": {"water.sld": {"min": 5.9, "max": 6.4}}},
        {"curve": "2", "bounds": {"water.sld": {"min": -0.6, "max": 0.0}}},
    ]
    params = {"stack": stack, "relation": "contrasts", "contrasts": contrasts, "samples": 0}
    result, context = fitted(tmp_path, file, params)
    first, second = ({p.name: p.value for p in curve.parameters} for curve in result.curves)
    assert {"joint.png", "joint.svg", "curve-2-fit.png"} <= set(context.artifacts)
    assert first["film.thickness"] == second["film.thickness"] == pytest.approx(210, abs=1)
    assert first["water.sld"] == pytest.approx(6.2, abs=0.1)
    assert second["water.sld"] == pytest.approx(-0.4, abs=0.1)


def test_a_series_follows_a_film_that_swells(tmp_path: Path) -> None:
    thicknesses = [200.0, 215.0, 230.0]
    tables = [simulated(FILM, [*WATER[:2], t, *WATER[3:]], seed=int(t)) for t in thicknesses]
    file = write(tmp_path / "series.ort", *tables)
    result, _ = fitted(tmp_path, file, {"stack": FILM, "relation": "series", "samples": 0, "starts": 6})
    found = [{p.name: p.value for p in curve.parameters}["film.thickness"] for curve in result.curves]
    assert found == pytest.approx(thicknesses, abs=1.5)


def test_too_few_layers_are_doubted_and_the_evidence_counts_them(tmp_path: Path) -> None:
    bounds = {
        "sld": {"min": 0.5, "max": 6.0},
        "thickness": {"min": 30, "max": 200},
        "roughness": {"min": 1, "max": 8},
    }
    two = {
        "fronting": {"name": "air", "sld": 0.0},
        "layers": [{"name": "top", **bounds}, {"name": "bottom", **bounds}],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": {"min": 1, "max": 6}},
    }
    #         thickness, sld, roughness of each; silicon's roughness, scale, background
    truth = [80.0, 5.0, 3.0, 120.0, 1.5, 4.0, 3.0, 1.0, 1e-7]
    file = write(tmp_path / "two.ort", simulated(two, truth, seed=5))
    one = {**two, "layers": [{"name": "top", **bounds}]}
    result, _ = fitted(tmp_path, file, {"stack": one, "samples": 200, "layer_counts": 3})
    assert "MODEL_INSUFFICIENT" in [note.code for note in result.curves[0].notes]
    probable = max(result.layer_evidence, key=lambda item: item.probability)
    assert probable.layers == 2


def test_the_evidence_of_curves_that_test_nothing_is_doubted(tmp_path: Path) -> None:
    one = {
        "fronting": {"name": "air", "sld": 0.0},
        "layers": [{"name": "top", "sld": {"min": 0.5, "max": 6.0}, "thickness": {"min": 30, "max": 200}}],
        "backing": {"name": "silicon", "sld": 2.07},
    }
    table = simulated(one, [120.0, 4.5, 1.0, 1e-7], seed=5)
    params = {"stack": one, "samples": 0, "layer_counts": 1, "starts": 4}
    few, _ = fitted(tmp_path / "few", write(tmp_path / "few.ort", table[::40]), params)
    assert [item.doubts for item in few.layer_evidence] == ["TOO_FEW_POINTS"]
    noise = table.copy()
    noise[:, 1], noise[:, 2] = 0.0, 1.0
    dark, _ = fitted(tmp_path / "dark", write(tmp_path / "dark.ort", noise), params)
    assert "NO_SIGNAL" in dark.layer_evidence[0].doubts


def test_the_evidence_counts_the_layers_of_each_curve(tmp_path: Path) -> None:
    bounds = {"sld": {"min": 0.5, "max": 6.0}, "thickness": {"min": 30, "max": 200}, "roughness": 3.0}
    one = {
        "fronting": {"name": "air", "sld": 0.0},
        "layers": [{"name": "top", **bounds}],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": 3.0},
    }
    two = {**one, "layers": [{"name": name, **bounds} for name in ("top", "bottom")]}
    tables = (
        simulated(one, [120.0, 4.5, 1.0, 1e-7], seed=5),
        simulated(two, [80.0, 5.0, 120.0, 1.5, 1.0, 1e-7], seed=5),
    )
    file = write(tmp_path / "both.ort", *tables)
    params = {"stack": one, "samples": 0, "layer_counts": 2, "starts": 12}
    result, context = fitted(tmp_path, file, params)
    said = [(item.curve, item.layers) for item in result.layer_evidence]
    assert said == [("set1", 1), ("set1", 2), ("set2", 1), ("set2", 2)]
    probable = [item.layers for item in result.layer_evidence if item.probability > 0.5]
    assert probable == [1, 2]
    counted = [report["step"] for report in context.reports if report["phase"] == "count layers"]
    assert counted == [0, 1, 2, 3]


def test_layers_are_counted_in_the_place_of_one() -> None:
    film = {"sld": {"min": 0.5, "max": 6.0}, "thickness": {"min": 30, "max": 200}, "roughness": 3.0}
    stack = {
        "fronting": {"name": "silicon", "sld": 2.07},
        "layers": [
            {"name": "oxide", "sld": 3.47, "thickness": {"min": 5, "max": 30}},
            {"name": "film", **film},
        ],
        "backing": {"name": "water", "sld": 6.36, "roughness": 3.0},
    }
    params = InferParams.model_validate({"stack": stack, "layer_counts": 2})
    assert [layer.name for layer in params.with_layers(2).layers] == ["oxide", "layer1", "layer2"]
    more = {**stack, "layers": [*stack["layers"], {"name": "cap", **film}]}
    with pytest.raises(ValidationError) as caught:
        InferParams.model_validate({"stack": more, "layer_counts": 2})
    ((field, reason),) = field_errors(caught.value)
    assert (field, reason.endswith("a layer with bounds of SLD and thickness: film, cap")) == (
        "counted_layer",
        True,
    )
    named = InferParams.model_validate({"stack": more, "layer_counts": 2, "counted_layer": "cap"})
    assert [layer.name for layer in named.with_layers(1).layers] == ["oxide", "film", "layer1"]


def test_curves_may_have_own_bounds_of_any_parameter() -> None:
    """Lipids with and without deuterium: the same film but for the scattering length of its tails."""
    stack = StackPrior.model_validate(
        {
            "fronting": {"name": "air", "sld": 0.0},
            "layers": [
                {
                    "name": "tails",
                    "molecules": {"b": {"min": -40, "max": 400}, "volume": 780, "area": "heads.area"},
                    "roughness": 3.0,
                },
                {
                    "name": "heads",
                    "molecules": {"b": 60.0, "volume": 320, "area": {"min": 50, "max": 70}},
                    "thickness": {"min": 8, "max": 12},
                    "roughness": 3.0,
                },
            ],
            "backing": {"name": "water", "sld": "wet * 6.9 - 0.56", "roughness": 3.0},
            "parameters": {"wet": {"min": 0, "max": 1}},
        }
    )
    q = np.geomspace(0.01, 0.25, 40)
    truth = {"tails.b": (-29.0, 320.0), "wet": (0.08, 1.0)}
    known = {"heads.area": 61.0, "heads.thickness": 9.5, "scale": 1.0, "background": 1e-7}
    curves = []
    prior = Prior(stack, probe_of(Instrument()))
    for place in range(2):
        numbers = known | {name: values[place] for name, values in truth.items()}
        values = torch.tensor([[numbers[free.name] for free in prior.free]], dtype=torch.float64)
        r = prior.measured(torch.from_numpy(q), torch.from_numpy(0.02 * q), values)[0].numpy()
        curves.append(Curve(q, r, 0.02 * r + 1e-9, 0.02 * q))
    measured = [
        Measured("h", curves[0], {"tails.b": Range(min=-29, max=-29), "wet": Range(min=0, max=0.2)}),
        Measured("d", curves[1], {"tails.b": Range(min=320, max=320), "wet": Range(min=0.8, max=1)}),
    ]
    found = solve(stack, probe_of(Instrument()), measured, seed=1, how=Search(starts=12))
    assert {"h: wet", "d: wet", "heads.area"} < {free.name for free in found.free}
    best = {item.name: item.value for item in found.analyses[0].parameters}
    assert best["heads.area"] == pytest.approx(61.0, abs=0.5)
    assert best["wet"] == pytest.approx(0.08, abs=0.02)
    with pytest.raises(UserError, match=r"a parameter with bounds: tails\.b, "):
        solve(
            stack,
            probe_of(Instrument()),
            [Measured("h", curves[0], {"tail.b": Range(min=-29, max=-29)})],
            seed=1,
            how=Search(starts=1),
        )


def test_layers_of_a_series_are_not_counted() -> None:
    with pytest.raises(ValidationError) as caught:
        InferParams.model_validate({"stack": FILM, "layer_counts": 2, "relation": "series"})
    ((field, reason),) = field_errors(caught.value)
    assert field == "layer_counts"
    assert reason.startswith("got 2; must be 0 where relation is series: ")


def test_bounds_that_exclude_the_film_are_blamed(tmp_path: Path) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    layers = [FILM["layers"][0], {**FILM["layers"][1], "thickness": {"min": 215, "max": 300}}]  # type: ignore[index]
    result, _ = fitted(tmp_path, file, {"stack": {**FILM, "layers": layers}, "samples": 0})
    said = [note.message for note in result.curves[0].notes if note.code == "OUTSIDE_PRIOR"]
    assert any("film.thickness" in message for message in said)


def test_a_measured_curve_without_resolution(tmp_path: Path) -> None:
    result, _ = fitted(tmp_path, MEASURED / "e361r.txt", {"stack": FILM, "samples": 0})
    (curve,) = result.curves
    # What refnx reaches with differential evolution and least squares within the same bounds.
    assert curve.chi_square is not None
    assert curve.chi_square < 150.8
    assert "RESOLUTION_ASSUMED" in [note.code for note in curve.notes]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"relation": "contrasts", "contrasts": [{"curve": "d2o", "bounds": {}}]}, "contrasts[0].curve"),
        (
            {
                "relation": "contrasts",
                "contrasts": [{"curve": "1", "bounds": {"water.slb": {"min": 0, "max": 1}}}],
            },
            "curves[0].own",
        ),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, change: dict[str, object], field: str) -> None:
    with pytest.raises(UserError) as caught:
        fitted(tmp_path, MEASURED / "e361r.txt", {"stack": FILM, **change})
    assert caught.value.field == field


def test_a_stopped_job_keeps_the_curves_that_are_done(tmp_path: Path) -> None:
    file = write(tmp_path / "films.ort", *(simulated(FILM, WATER, seed, points=30) for seed in (1, 2)))
    context = LocalContext(tmp_path / "run", seed=3, datasets={"curves": file})
    context.wanted = Desired.STOP
    params = {"stack": FILM, "relation": "independent", "starts": 4, "samples": 0}
    result = infer.run(InferParams.model_validate(params), context)
    assert result.stopped_early
    assert [curve.label for curve in result.curves] == ["curve-1"]
    assert "curve-1.ort" in context.artifacts
    assert not [name for name in context.artifacts if name.startswith("curve-2")]


def test_a_cancelled_job_ends(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, datasets={"curves": MEASURED / "e361r.txt"})
    context.wanted = Desired.CANCEL
    with pytest.raises(JobCancelled):
        infer.run(InferParams.model_validate({"stack": FILM}), context)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"instrument": {"scale": -1.0}}, "instrument.scale.min"),
        ({"instrument": {"background": {"min": 0.0, "max": 1e-4}}}, "instrument.background.min"),
        ({"instrument": {"q_offset": {"min": -0.1, "max": 0.1}}}, "instrument.q_offset.min"),
        ({"stack": {**FILM, "repeats": [{"first": "film", "last": "film", "times": 2}]}}, "layer_counts"),
        ({"stack": {**FILM, "fronting": {"name": "layer2", "sld": 2.07}}}, "layer_counts"),
    ],
)
def test_impossible_parameters_are_refused_before_a_job_runs(changes: dict[str, object], field: str) -> None:
    counts = 2 if field == "layer_counts" else 0
    with pytest.raises(ValidationError) as caught:
        InferParams.model_validate({"stack": FILM, "layer_counts": counts, **changes})
    assert field_errors(caught.value)[0][0] == field


@pytest.mark.parametrize("bounds", [{"background": {"min": 0, "max": 1e-4}}, {"scale": -1.0}])
def test_own_bounds_of_the_instrument_are_limited_as_the_shared_ones(
    tmp_path: Path, bounds: dict[str, object]
) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    own = [{"curve": "1", "bounds": bounds}]
    with pytest.raises(UserError) as caught:
        fitted(tmp_path, file, {"stack": FILM, "relation": "contrasts", "contrasts": own})
    assert caught.value.field == f"curves[0].own.{next(iter(bounds))}.min"


def test_scripts_know_own_bounds_of_the_instrument(tmp_path: Path) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    params = {"stack": FILM, "relation": "contrasts", "starts": 4, "samples": 0}
    fixed = [{"curve": "1", "bounds": {"scale": 1.05}}]
    _, context = fitted(tmp_path / "fixed", file, {**params, "contrasts": fixed})
    script = (context.directory / "artifacts/curve-1-refnx.py").read_text()
    assert "scale=1.05," in script
    shifted = [{"curve": "1", "bounds": {"q_offset": {"min": -1e-4, "max": 1e-4}}}]
    result, context = fitted(tmp_path / "shifted", file, {**params, "contrasts": shifted})
    assert_same_chi_square(result, context)
    overfilled = {"instrument": {"footprint_q": {"min": 0.0, "max": 0.02}}}
    result, context = fitted(tmp_path / "overfilled", file, {**params, **overfilled})
    assert "curve-1-refnx.py" not in context.artifacts
    (note,) = (note for note in result.curves[0].notes if note.code == "NO_SCRIPTS")
    assert "footprint_q" in note.message


def test_long_names_of_repeated_layers_stay_names(tmp_path: Path) -> None:
    name = "n" * 40
    stack = {
        **FILM,
        "layers": [{"name": name, "sld": {"min": 0, "max": 2}, "thickness": {"min": 5, "max": 90}}],
        "repeats": [{"first": name, "last": name, "times": 3}],
    }
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    _, context = fitted(tmp_path, file, {"stack": stack, "starts": 2, "samples": 0})
    film = json.loads((context.directory / "artifacts/curve-1-film.json").read_text())
    assert [layer["name"] for layer in film["layers"]] == [name, "n" * 37 + " x2", "n" * 37 + " x3"]


def segmented_curves() -> tuple[Curve, Curve]:
    """The same film measured in one piece and in two, of which the second is brighter by 10 %."""
    q, r, dr, dq = simulated(FILM, WATER, seed=1).T
    second = (np.arange(len(q)) >= 40).astype(np.int64)
    factor = np.where(second == 1, 1.1, 1.0)
    return Curve(q, r, dr, dq), Curve(q, r * factor, dr * factor, dq, segment=second)


def test_each_contrast_has_scales_of_its_own_segments() -> None:
    _, split = segmented_curves()
    other = replace(split, r=np.where(split.segment == 1, split.r / 1.1, split.r))
    params = InferParams.model_validate({"stack": FILM})
    found = solve(
        params.stack,
        probe_of(params.instrument),
        [Measured("a", split), Measured("b", other)],
        seed=0,
        how=Search(starts=4, rounds=1),
        segments={},
    )
    scales = [{p.name: p.value for p in one.parameters}["scale[2]"] for one in found.analyses]
    assert scales == pytest.approx([1.1, 1.0], abs=0.03)


@pytest.mark.parametrize("place", ["instrument", "contrasts"])
def test_segments_may_have_bounds_of_their_own(tmp_path: Path, place: str) -> None:
    _, split = segmented_curves()
    # In the order of the angles, as a file has them: what is a segment is told by where q falls.
    table = np.stack([split.q, split.r, split.dr, split.dq], axis=1)  # type: ignore[arg-type]
    file = tmp_path / "angles.txt"
    overlap = table[38:40] * np.array([1.0, 1.1, 1.1, 1.0])
    np.savetxt(file, np.concatenate([table[:40], overlap, table[40:]]))
    # 1.1 lies outside of the bounds of the first.
    own = {"scale[2]": {"min": 1.05, "max": 1.5}, "background[2]": 1e-6}
    instrument: dict[str, object] = {"scale": {"min": 0.95, "max": 1.05}, "segments": True}
    more: dict[str, object] = {"relation": "contrasts", "contrasts": [{"curve": "1", "bounds": own}]}
    if place == "instrument":
        instrument["segment_bounds"], more = own, {}
    params = {"stack": FILM, "instrument": instrument, "dq_convention": "sigma", "starts": 4, "samples": 0}
    result, context = fitted(tmp_path, file, {**params, **more})
    assert_same_chi_square(result, context)
    found = {parameter.name: parameter for parameter in result.curves[0].parameters}
    assert found["scale[2]"].value == pytest.approx(1.1, abs=0.03)
    assert (found["scale[2]"].lower, found["scale[2]"].upper) == (1.05, 1.5)
    assert (found["scale"].lower, found["scale"].upper) == (0.95, 1.05)
    assert "background[2]" not in found


@pytest.mark.parametrize(
    ("instrument", "field"),
    [
        ({"segment_bounds": {"scale[2]": 1.0}}, "instrument.segment_bounds"),
        ({"segments": True, "segment_bounds": {"scale[2]": -1.0}}, "instrument.segment_bounds.scale[2].min"),
        ({"segments": True, "segment_bounds": {"scale[1]": 1.0}}, "instrument.segment_bounds.scale[1].[key]"),
        (
            {"segments": True, "segment_bounds": {"q_offset[2]": 1.0}},
            "instrument.segment_bounds.q_offset[2].[key]",
        ),
    ],
)
def test_impossible_bounds_of_segments_are_refused(instrument: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        InferParams.model_validate({"stack": FILM, "instrument": instrument})
    assert field_errors(caught.value)[0][0] == field


def test_bounds_of_segments_that_a_curve_does_not_have_are_refused() -> None:
    whole, split = segmented_curves()
    params = InferParams.model_validate({"stack": FILM})
    for curve, name in ((whole, "scale[2]"), (split, "scale[3]")):
        measured = [Measured("a", curve, {name: Range(min=0.5, max=1.5)})]
        with pytest.raises(UserError) as caught:
            solve(params.stack, probe_of(params.instrument), measured, seed=0, how=Search(), segments={})
        assert caught.value.field == "curves[0].own"


def test_curves_of_a_series_may_have_different_numbers_of_segments() -> None:
    whole, split = segmented_curves()
    params = InferParams.model_validate({"stack": FILM})
    measured = [Measured(str(place), curve) for place, curve in enumerate((whole, split, whole))]
    found = list(
        series(
            params.stack,
            probe_of(params.instrument),
            measured,
            seed=0,
            how=Search(starts=4, rounds=1),
            segments={},
        )
    )
    assert [len(one.free) for one in found] == [9, 11, 9]


def test_a_cancel_is_heard_within_a_fit(tmp_path: Path) -> None:
    file = write(tmp_path / "film.ort", simulated(FILM, WATER, seed=1))
    asked = 0

    class Impatient(LocalContext):
        def desired(self) -> Desired:
            nonlocal asked
            asked += 1
            return Desired.CANCEL if asked > 5 else Desired.RUN

    context = Impatient(tmp_path / "run", datasets={"curves": file})
    with pytest.raises(JobCancelled):
        infer.run(InferParams.model_validate({"stack": FILM, "starts": 1000, "samples": 5000}), context)
    assert asked == 6
