"""From the old web app's requests to jobs: ranges, limits, bounds, and the parameters of every pipeline."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from guidehall.core.errors import InvalidArgument
from guidehall.science import registry
from guidehall.science.reflectometry.cnn.params import CnnParams
from guidehall.science.reflectometry.legacy_five_layers import (
    LEGACY_PROFILE_POINTS,
    legacy_probe,
    legacy_stack,
)
from guidehall.science.reflectometry.params import NrSldParams, Range
from services.gateway.legacy import films, translation
from services.gateway.legacy.limits import LOCAL
from services.gateway.legacy.requests import GenerateRequest, exceeded, kept, wrong_bounds
from services.gateway.settings import LimitSettings

MODEL = "7ce1e1c2-7a7c-4c0c-9be6-0cf5b2a9f0a1"
FILES = {
    role: f"projects/default/datasets/{role}/versions/1"
    for role in (
        "nr_train",
        "sld_train",
        "experimental_nr",
        "normalization_stats",
        "nr_sld_model",
        "sld_chi_experimental_profile",
        "sld_chi_model_sld_file",
        "sld_chi_model_chi_params_file",
    )
}


def _request(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"layers": [], "generator": {}, "training": {}, **fields})


def _run(request: GenerateRequest, usual: Any = "physical", files: Any = FILES) -> translation.Run:
    return translation.run_of(request, MODEL, usual, files)


def test_what_is_left_out_has_the_old_defaults() -> None:
    assert kept(_request()) == {
        "layers": [],
        "generator": {"numCurves": 1000, "numFilmLayers": 5, "layerBound": None},
        "training": {
            "batchSize": 32,
            "epochs": 10,
            "layers": 12,
            "dropout": 0.0,
            "latentDim": 16,
            "aeEpochs": 50,
            "mlpEpochs": 50,
            "architecture": None,
        },
        "name": None,
        "dataSource": "synthetic",
        "workflow": "nr_sld",
        "mode": "train",
        "autoGenerateModelStats": True,
        "gpu": "T4",
    }


BELOW = {"i": -1, "par": "sld", "bounds": [1, 2]}
OTHER = {"i": 0, "par": "q", "bounds": [1, 2]}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"generator": {"numCurves": 0}}, ("generator", "numCurves")),
        ({"generator": {"numCurves": 100_001}}, ("generator", "numCurves")),
        ({"generator": {"numFilmLayers": 0}}, ("generator", "numFilmLayers")),
        ({"generator": {"numFilmLayers": 21}}, ("generator", "numFilmLayers")),
        ({"training": {"batchSize": 513}}, ("training", "batchSize")),
        ({"training": {"epochs": 1001}}, ("training", "epochs")),
        ({"training": {"layers": 21}}, ("training", "layers")),
        ({"training": {"dropout": 0.91}}, ("training", "dropout")),
        ({"training": {"latentDim": 1}}, ("training", "latentDim")),
        ({"training": {"aeEpochs": 501}}, ("training", "aeEpochs")),
        ({"training": {"mlpEpochs": 0}}, ("training", "mlpEpochs")),
        ({"training": {"architecture": "other"}}, ("training", "architecture")),
        ({"layers": [{}]}, ("layers", 0, "sld")),
        ({"layers": [{"sld": 1, "isld": 1.1}]}, ("layers", 0, "isld")),
        ({"layers": [{"sld": 1, "thickness": 1001}]}, ("layers", 0, "thickness")),
        ({"layers": [{"sld": 1, "roughness": 201}]}, ("layers", 0, "roughness")),
        ({"layers": [{"sld": float("nan")}]}, ("layers", 0, "sld")),
        ({"generator": {"layerBound": [BELOW]}}, ("generator", "layerBound", 0, "i")),
        ({"generator": {"layerBound": [OTHER]}}, ("generator", "layerBound", 0, "par")),
        ({"gpu": "P100"}, ("gpu",)),
        ({"dataSource": "imagined"}, ("dataSource",)),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named_by_its_place(fields: Any, place: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        _request(**fields)
    assert [error["loc"] for error in refused.value.errors()] == [place]


@pytest.mark.parametrize("sld", [-1.95, -0.56, 10.5, 44.5])
def test_every_material_is_accepted(sld: float) -> None:
    assert _request(layers=[{"sld": sld, "unknown": "ignored"}]).layers[0].sld == sld


def test_every_limit_that_is_exceeded_is_in_the_one_sentence() -> None:
    limits = LimitSettings()
    request = _request(
        generator={"numCurves": 5001, "numFilmLayers": 11},
        training={
            "batchSize": 65,
            "epochs": 51,
            "layers": 13,
            "dropout": 0.6,
            "latentDim": 33,
            "aeEpochs": 101,
            "mlpEpochs": 101,
        },
    )
    parts = exceeded(request, limits).split("; the limit is ")
    assert len(parts) == 10
    assert "generator.numCurves: got 5001; the limit is 5000" in exceeded(request, limits)
    assert "training.dropout: got 0.6; the limit is 0.5" in exceeded(request, limits)
    assert exceeded(request, LOCAL) == ""
    # Curves of a run on measured data are in its files.
    assert "numCurves" not in exceeded(request.model_copy(update={"data_source": "real"}), limits)


def test_the_film_and_measurement_without_bounds_are_those_of_the_old_generator() -> None:
    run = _run(_request(), "pyreflect_cnn")
    params = CnnParams.model_validate(run.params)
    assert run.pipeline == "reflectometry.pyreflect_cnn"
    assert params.stack == legacy_stack()
    assert params.probe == legacy_probe()
    assert params.profile_points == LEGACY_PROFILE_POINTS
    assert (params.curves, params.network.layers, params.network.dropout) == (1000, 12, 0.0)
    assert (params.training.epochs, params.training.batch_size) == (10, 32)


def test_another_number_of_layers_means_as_many_films_on_an_oxide() -> None:
    stack = CnnParams.model_validate(
        _run(_request(generator={"numFilmLayers": 3}), "pyreflect_cnn").params
    ).stack
    assert [layer.name for layer in stack.layers] == ["film3", "film2", "film1", "oxide"]
    assert stack.layers[0].thickness == Range(min=10, max=300)


def test_a_physical_network_sees_as_many_curves_in_each_epoch() -> None:
    run = _run(_request(generator={"numCurves": 100}, training={"batchSize": 16, "epochs": 3}))
    params = NrSldParams.model_validate(run.params)
    assert (run.pipeline, params.model_name) == ("reflectometry.nr_sld", MODEL)
    assert (params.training.fixed_curves, params.training.steps_per_epoch, params.training.epochs) == (
        100,
        5,
        3,
    )
    assert params.noise.relative_error == 0


def test_the_request_names_its_network_or_the_settings_do() -> None:
    named = _request(training={"architecture": "pyreflect_cnn"})
    assert _run(named, "physical").pipeline == "reflectometry.pyreflect_cnn"
    assert _run(_request(), "pyreflect_cnn").pipeline == "reflectometry.pyreflect_cnn"


FILM = [
    {"name": "substrate", "sld": 2.07, "roughness": 1.8},
    {"name": "siox", "sld": 3.47, "thickness": 12, "roughness": 2},
    {"name": "polymer", "sld": 3.8, "thickness": 50, "roughness": 10, "isld": 0.01},
    {"name": "polymer", "sld": 2.5, "thickness": 150, "roughness": 30},
    {"name": "1/air", "sld": 0, "thickness": 0, "roughness": 0},
]
BOUNDS = [
    {"i": 0, "par": "roughness", "bounds": [1, 2]},
    {"i": 2, "par": "thickness", "bounds": [40, 60]},
    {"i": 3, "par": "sld", "bounds": [-1, 3]},
    {"i": 4, "par": "thickness", "bounds": [0, 1]},
]


def test_layers_with_bounds_are_the_film_from_the_substrate_to_the_air() -> None:
    request = _request(layers=FILM, generator={"numFilmLayers": 2, "layerBound": BOUNDS})
    assert wrong_bounds(request) == ""
    stack = NrSldParams.model_validate(_run(request).params).stack
    assert [layer.name for layer in stack.layers] == ["polymer 2", "polymer", "siox"]
    assert (stack.fronting.name, stack.backing.name) == ("layer 1_air", "substrate")
    assert stack.backing.roughness == Range(min=1, max=2)
    assert stack.layers[0].sld == Range(min=-1, max=3)
    assert stack.layers[1].thickness == Range(min=40, max=60)
    # What has no bounds is as the layer has it.
    assert stack.layers[1].isld == Range(min=0.01, max=0.01)
    assert stack.layers[2].roughness == Range(min=2, max=2)


def test_three_layers_with_bounds_are_a_film_of_nothing_but_an_oxide() -> None:
    bounds = [{"i": 1, "par": "thickness", "bounds": [5, 20]}]
    request = _request(layers=[*FILM[:2], FILM[4]], generator={"numFilmLayers": 0, "layerBound": bounds})
    assert wrong_bounds(request) == ""
    stack = NrSldParams.model_validate(_run(request).params).stack
    assert [layer.name for layer in stack.layers] == ["siox"]


@pytest.mark.parametrize(
    ("layers", "generator", "text"),
    [
        (FILM[:2], {"numFilmLayers": 1}, "at least 3"),
        (FILM, {"numFilmLayers": 5}, "with bounds it is the number of layers less 3, 2"),
        (FILM, {"layerBound": [{"i": 5, "par": "sld", "bounds": [1, 2]}]}, "allowed: 0 to 4"),
        (FILM, {"layerBound": [{"i": 1, "par": "sld", "bounds": [2, 1]}]}, "must not be above"),
        (FILM, {"layerBound": [{"i": 1, "par": "thickness", "bounds": [0, 1001]}]}, "0 to 1000"),
        (FILM, {"layerBound": [{"i": 1, "par": "roughness", "bounds": [-1, 5]}]}, "0 to 200"),
        (FILM, {"layerBound": [{"i": 1, "par": "isld", "bounds": [0, 2]}]}, "0 to 1"),
    ],
)
def test_a_rule_of_bounds_that_is_broken_is_told(layers: Any, generator: Any, text: str) -> None:
    request = _request(layers=layers, generator={"numFilmLayers": 2, "layerBound": BOUNDS, **generator})
    assert text in wrong_bounds(request)
    with pytest.raises(InvalidArgument):
        translation.check(request, LOCAL)


def test_bounds_that_leave_nothing_free_are_refused() -> None:
    bounds = [{"i": 1, "par": "thickness", "bounds": [5, 5]}]
    with pytest.raises(InvalidArgument, match="layerBound"):
        _run(_request(layers=FILM, generator={"numFilmLayers": 2, "layerBound": bounds}))


def test_too_few_curves_for_a_split_are_refused_by_their_old_name() -> None:
    with pytest.raises(InvalidArgument, match="numCurves"):
        _run(_request(generator={"numCurves": 9}, training={"architecture": "pyreflect_cnn"}))


@pytest.mark.parametrize(
    ("workflow", "mode", "pipeline"),
    [
        ("nr_sld", "train", "reflectometry.pyreflect_cnn"),
        ("nr_sld", "infer", "reflectometry.pyreflect_predict"),
        ("sld_chi", "train", "reflectometry.sld_chi"),
        ("sld_chi", "infer", "reflectometry.sld_chi"),
        ("nr_sld_chi", "train", "reflectometry.nr_sld_chi"),
        ("nr_sld_chi", "infer", "reflectometry.nr_sld_chi"),
    ],
)
def test_every_run_on_measured_data_is_one_of_a_pipeline_with_its_files(
    workflow: str, mode: str, pipeline: str
) -> None:
    request = _request(
        dataSource="real",
        workflow=workflow,
        mode=mode,
        training={"latentDim": 8, "aeEpochs": 7, "mlpEpochs": 9},
    )
    run = _run(request)
    assert run.pipeline == pipeline
    known = registry.pipeline(pipeline)
    params = known.params.model_validate(run.params)
    assert set(known.needs(params)) <= set(run.inputs) <= set(known.datasets)
    if "chi" in workflow:
        chi = run.params.get("chi", run.params)
        assert (chi["latent_dim"], chi["autoencoder"]["epochs"], chi["perceptron"]["epochs"]) == (8, 7, 9)
    for missing in run.inputs.values():
        fewer = {role: version for role, version in FILES.items() if version != missing}
        if missing == FILES["experimental_nr"] and (workflow, mode) == ("nr_sld_chi", "train"):
            assert "experimental_nr" not in _run(request, files=fewer).inputs
            continue
        with pytest.raises(InvalidArgument, match="files are missing"):
            _run(request, files=fewer)


def test_files_of_curves_train_the_network_of_pyreflect_only() -> None:
    with pytest.raises(InvalidArgument, match="architecture"):
        _run(_request(dataSource="real", training={"architecture": "physical"}))
    assert _run(_request(dataSource="real"), "physical").pipeline == "reflectometry.pyreflect_cnn"


def test_points_are_those_of_the_science() -> None:
    assert legacy_probe().points == films.POINTS
    assert films.PROFILE_POINTS == LEGACY_PROFILE_POINTS
