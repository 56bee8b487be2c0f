from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from guidehall.science import registry
from guidehall.science.manifest import (
    MAX_MANIFEST_BYTES,
    Example,
    ExampleArray,
    InvalidModel,
    Manifest,
    sha256,
)
from guidehall.science.pipeline import LocalContext


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, bytes]:
    monkeypatch.setenv(registry.MODULES_VARIABLE, "tests.toy_science")
    registry.pipeline("toy.line").run({"steps": 5}, LocalContext(tmp_path, seed=1))
    folder = tmp_path / "models/line"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    return manifest, (folder / "model.safetensors").read_bytes()


def test_round_trips(model: tuple[Manifest, bytes]) -> None:
    manifest, _ = model
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_reads_documents_whose_whole_numbers_became_floats(model: tuple[Manifest, bytes]) -> None:
    manifest, _ = model
    document = json.loads(manifest.to_json(), parse_int=float)
    assert Manifest.from_document(document) == manifest


def test_records_where_it_comes_from(model: tuple[Manifest, bytes]) -> None:
    manifest, weights = model
    assert manifest.provenance.seed == 1
    assert {"python", "numpy"} <= manifest.provenance.software.keys()
    assert manifest.weights_sha256 == sha256(weights)


def test_nan_survives_in_examples() -> None:
    array = np.array([[1.0, np.nan]], dtype=np.float32)
    stored = ExampleArray.of(array)
    assert stored.values == (1.0, None)
    np.testing.assert_array_equal(stored.array("FP32"), array)
    assert stored.array("FP32").dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "manifest.format_version"),
        ({"surprise": 1}, "manifest.surprise"),
        ({"weights_sha256": "abc"}, "manifest.weights_sha256"),
        ({"inputs": []}, "manifest.inputs"),
        ({"inputs": [{"name": "x", "datatype": "FP99", "shape": [-1]}]}, "manifest.inputs.0.datatype"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}, "manifest.inputs.0.shape.0"),
        ({"metrics": {"loss": "NaN"}}, "manifest.metrics.loss"),
        ({"example": {"inputs": {"x": {"shape": [3], "values": [1]}}, "outputs": {}}}, "does not hold"),
        ({"example": {"inputs": {"x": {"shape": [1], "values": [1]}}, "outputs": {}}}, "example.outputs"),
        # The product of a longer one would take seconds to calculate.
        ({"example": {"inputs": {"x": {"shape": [1] * 9, "values": [1]}}, "outputs": {}}}, "inputs.x.shape"),
        ({"example": {"inputs": {"x": {"shape": [0, 20_001], "values": []}}, "outputs": {}}}, "shape.1"),
    ],
)
def test_refuses_what_is_no_manifest(
    model: tuple[Manifest, bytes], change: dict[str, Any], message: str
) -> None:
    document = json.loads(model[0].to_json()) | change
    with pytest.raises(InvalidModel, match=message):
        Manifest.from_document(document)
    with pytest.raises(InvalidModel, match=message):
        Manifest.from_json(json.dumps(document))


def test_refuses_what_is_too_large() -> None:
    with pytest.raises(InvalidModel, match="at most"):
        Manifest.from_json(b" " * (MAX_MANIFEST_BYTES + 1))


def test_does_not_write_what_it_would_not_read(model: tuple[Manifest, bytes]) -> None:
    heavy = model[0].model_copy(update={"arguments": {"text": "x" * MAX_MANIFEST_BYTES}})
    with pytest.raises(InvalidModel, match="at most"):
        heavy.to_json()


def test_refuses_unknown_architectures(model: tuple[Manifest, bytes]) -> None:
    manifest, weights = model
    other = manifest.model_copy(update={"architecture": "toy.line/9"})
    with pytest.raises(InvalidModel, match=r"architecture: got toy\.line/9; known are .*toy\.line/1"):
        registry.load_predictor(other, weights)


def test_refuses_other_weights(model: tuple[Manifest, bytes]) -> None:
    manifest, weights = model
    with pytest.raises(InvalidModel, match="SHA-256"):
        registry.load_predictor(manifest, weights + b"\0")


def test_refuses_weights_that_answer_differently(model: tuple[Manifest, bytes]) -> None:
    manifest, _ = model
    other = safetensors.numpy.save({"line": np.array([5.0, 5.0])})
    forged = manifest.model_copy(update={"weights_sha256": sha256(other)})
    with pytest.raises(InvalidModel, match=r"example\.y: the model answers differently"):
        registry.load_predictor(forged, other)


@pytest.mark.parametrize(
    "example",
    [
        Example.of({"nothing": np.zeros((1, 1))}, {"y": np.zeros((1, 1))}),
        Example.of({"x": np.zeros((1, 3))}, {"y": np.zeros((1, 1))}),
        Example.of({"x": np.zeros((1, 1))}, {"y": np.zeros((2, 1))}),
    ],
)
def test_refuses_examples_that_do_not_fit(model: tuple[Manifest, bytes], example: Example) -> None:
    manifest, weights = model
    with pytest.raises(InvalidModel, match="example"):
        registry.load_predictor(manifest.model_copy(update={"example": example}), weights)


def test_refuses_tensors_of_another_model(model: tuple[Manifest, bytes]) -> None:
    manifest, weights = model
    with pytest.raises(InvalidModel, match="tensors"):
        registry.load_predictor(manifest.model_copy(update={"outputs": manifest.inputs}), weights)
