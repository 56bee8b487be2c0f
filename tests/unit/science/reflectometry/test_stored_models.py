"""Models that version 1 of each architecture left stay loadable, and answer as they did then."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from guidehall.science import registry
from guidehall.science.manifest import Example, InvalidModel, Manifest

FIXTURES = Path(__file__).parents[3] / "fixtures"
STORED = ["physical", "pyreflect_cnn", "sld_chi"]


def stored(name: str) -> tuple[Manifest, bytes]:
    folder = FIXTURES / f"reflectometry_{name}_1"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    packed = folder / "model.safetensors.xz"
    if packed.exists():
        # Of this network most sizes are fixed; weights that repeat take no room.
        return manifest, lzma.decompress(packed.read_bytes())
    return manifest, (folder / "model.safetensors").read_bytes()


def test_there_is_one_of_every_architecture() -> None:
    known = {architecture.key for architecture in registry.sciences()["reflectometry"].architectures}
    assert {f"reflectometry.{name}/1" for name in STORED} == known


@pytest.mark.parametrize("name", STORED)
def test_a_stored_model_loads_and_its_example_is_checked(name: str) -> None:
    manifest, weights = stored(name)
    assert manifest.architecture == f"reflectometry.{name}/1"
    model = registry.load_predictor(manifest, weights)
    assert [spec.name for spec in model.outputs] == [spec.name for spec in manifest.outputs]

    outputs = {key: item.array("FP32") * 1.01 for key, item in manifest.example.outputs.items()}
    inputs = {key: item.array("FP32") for key, item in manifest.example.inputs.items()}
    tolerance = manifest.example.absolute_tolerance
    wrong = manifest.model_copy(update={"example": Example.of(inputs, outputs, absolute_tolerance=tolerance)})
    with pytest.raises(InvalidModel, match="example"):
        registry.load_predictor(wrong, weights)
