from __future__ import annotations

import contextlib
import copy
import io
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from guidehall.science.pipeline import InvalidModel, LocalContext, Manifest, UserError
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape, empty_network
from guidehall.science.reflectometry.cnn.params import Normalisation
from guidehall.science.reflectometry.cnn.predictor import CnnArguments, CnnPredictor, publish
from guidehall.science.reflectometry.legacy_five_layers import legacy_q
from guidehall.science.reflectometry.network_params import Channels, Extent
from guidehall.science.registry import load_predictor

NORMALISATION = Normalisation(
    nr=Channels(x=Extent(min=0.0081, max=0.1976), y=Extent(min=-7.0, max=0.0)),
    sld=Channels(x=Extent(min=0.0, max=700.0), y=Extent(min=-0.5, max=6.0)),
)
SHAPE = CnnShape(layers=3, width=8, kernel=5, points=308, profile_points=30)


@pytest.fixture(scope="module")
def pyreflect() -> ModuleType:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import pyreflect
        import pyreflect.models.cnn
        import pyreflect.pipelines.reflectivity_pipeline
    return pyreflect


def new_predictor(**changes: Any) -> CnnPredictor:
    torch.manual_seed(0)
    arguments = {
        "layers": SHAPE.layers,
        "width": SHAPE.width,
        "kernel": SHAPE.kernel,
        "q": tuple(legacy_q().tolist()),
        "profile_points": SHAPE.profile_points,
        "normalisation": NORMALISATION,
    }
    checked = CnnArguments.model_validate(arguments | changes)
    return CnnPredictor(checked, Cnn(checked.shape))


def falling(q: np.ndarray) -> np.ndarray:
    return np.minimum(1.0, (0.01 / q) ** 4) * (1 + 0.3 * np.sin(300 * q))


def batch(q: np.ndarray, rows: int = 1) -> dict[str, np.ndarray]:
    r = np.stack([falling(q) * (1 + 0.1 * row) for row in range(rows)])
    return {"q": q[None].astype(np.float32), "reflectivity": r.astype(np.float32)}


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_names_and_shapes_are_those_of_pyreflect(pyreflect: ModuleType, layers: int) -> None:
    with torch.device("meta"):
        theirs = pyreflect.models.cnn.CNN(layers=layers).state_dict()
    ours = empty_network(CnnShape(layers, 256, 51, 308, 900)).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }


def with_16_points(pyreflect: ModuleType, network: Cnn) -> torch.nn.Module:
    """Its network with these weights. Its class knows 308 points, but nothing else of it depends on them."""
    with torch.device("meta"):
        theirs = pyreflect.models.cnn.CNN(layers=2, dropout_prob=0.0)
        theirs.linear1 = torch.nn.Linear(256 * 16, 1800)
    theirs.load_state_dict(network.state_dict(), assign=True)
    return theirs


@pytest.mark.parametrize("training", [False, True])
def test_answers_are_those_of_pyreflect(pyreflect: ModuleType, training: bool) -> None:
    torch.manual_seed(1)
    ours = Cnn(CnnShape(2, 256, 51, 16, 900))
    theirs = with_16_points(pyreflect, copy.deepcopy(ours))
    curves = torch.rand(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.train(training)(curves), theirs.train(training)(curves[:, None]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_predicts_as_pyreflect_does(pyreflect: ModuleType, rows: int) -> None:
    predictor = new_predictor(
        layers=2, width=256, kernel=51, q=tuple(legacy_q()[::20].tolist()), profile_points=900
    )
    theirs = with_16_points(pyreflect, predictor.network)
    q = legacy_q()[::20]
    inputs = batch(q, rows)
    answer = predictor.predict(inputs)
    curves = np.stack([np.broadcast_to(q, (rows, 16)), inputs["reflectivity"]], axis=1)
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = pyreflect.pipelines.reflectivity_pipeline.predict_sld_from_nr(
            theirs, curves, NORMALISATION.model_dump()
        )
    assert answer["z"].shape == (rows, 900)
    np.testing.assert_allclose(answer["z"], wanted[:, 0], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(answer["sld"], wanted[:, 1], rtol=1e-4, atol=1e-4)


def test_another_grid_is_resampled() -> None:
    predictor = new_predictor()
    fine = np.geomspace(0.007, 0.25, 4000)
    one, other = predictor.predict(batch(legacy_q())), predictor.predict(batch(fine))
    np.testing.assert_allclose(one["sld"], other["sld"], atol=2e-3)


@pytest.mark.parametrize(("low", "high"), [(0.0083, 0.25), (0.007, 0.19)])
def test_a_curve_that_does_not_cover_the_grid_is_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match=r"must cover 0.0081\d* to 0.1975\d*"):
        new_predictor().predict(batch(np.geomspace(low, high, 300)))


def test_padding_is_left_out() -> None:
    predictor = new_predictor()
    plain = batch(legacy_q())
    padded = {name: np.pad(array, ((0, 0), (0, 7)), constant_values=np.nan) for name, array in plain.items()}
    assert np.array_equal(predictor.predict(plain)["sld"], predictor.predict(padded)["sld"])


def test_zero_and_negative_reflectivity_give_numbers() -> None:
    inputs = batch(legacy_q())
    inputs["reflectivity"][0, ::5] = -1e-6
    inputs["reflectivity"][0, 1::5] = 0.0
    assert all(np.isfinite(array).all() for array in new_predictor().predict(inputs).values())


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("reflectivity", np.inf, r"inputs\[0\].r\[4\]"),
        ("reflectivity", np.nan, r"inputs\[0\].r\[4\]"),
        ("q", np.nan, r"inputs.q\[0\]"),
        ("q", -1.0, r"inputs\[0\].q\[4\]"),
    ],
)
def test_wrong_numbers_are_refused(name: str, value: float, field: str) -> None:
    inputs = batch(legacy_q())
    inputs[name][0, 4] = value
    with pytest.raises(UserError, match=field):
        new_predictor().predict(inputs)


def manifest_of(predictor: CnnPredictor, tmp_path: Any) -> tuple[Manifest, bytes]:
    context = LocalContext(tmp_path)
    publish(context, "net", "reflectometry.pyreflect_cnn", predictor, {})
    folder = tmp_path / "models/net"
    return (
        Manifest.from_json((folder / "manifest.json").read_bytes()),
        (folder / "model.safetensors").read_bytes(),
    )


def test_is_loaded_and_proved(tmp_path: Any) -> None:
    predictor = new_predictor()
    manifest, weights = manifest_of(predictor, tmp_path)
    loaded = load_predictor(manifest, weights)
    inputs = batch(legacy_q(), 2)
    np.testing.assert_allclose(loaded.predict(inputs)["sld"], predictor.predict(inputs)["sld"], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 10},
        {"layers": 30},
        {"kernel": 4},
        {"q": [0.2, 0.1]},
        {"width": 512, "profile_points": 4096},
        {"extra": 1},
        {"normalisation": {}},
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Any, changes: dict[str, Any]) -> None:
    manifest, weights = manifest_of(new_predictor(), tmp_path)
    changed = manifest.model_copy(update={"arguments": manifest.arguments | changes})
    with pytest.raises(InvalidModel):
        CnnPredictor.load(changed, weights)


def test_weights_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    predictor = new_predictor()
    manifest, _ = manifest_of(predictor, tmp_path)
    predictor.network.double()
    with pytest.raises(InvalidModel, match="float64"):
        CnnPredictor.load(manifest, predictor.weights())
    with pytest.raises(InvalidModel):
        CnnPredictor.load(manifest, b"nonsense")
