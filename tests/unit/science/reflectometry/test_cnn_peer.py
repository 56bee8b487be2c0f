from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guidehall.science import registry
from guidehall.science.pipeline import Desired, JobCancelled, LocalContext, Manifest
from guidehall.science.reflectometry.cnn import peer
from guidehall.science.reflectometry.cnn.curves import make_curves
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from guidehall.science.reflectometry.cnn.params import CnnParams, CnnResult
from tests.fixtures.reflectometry import timeless

pytestmark = pytest.mark.filterwarnings("ignore")

THIN = {
    "fronting": {"name": "air", "sld": 0.0},
    "layers": [
        {"name": "film", "thickness": {"min": 50, "max": 90}, "sld": {"min": 2, "max": 4}, "roughness": 5},
        {
            "name": "oxide",
            "thickness": {"min": 10, "max": 20},
            "sld": 3.47,
            "roughness": {"min": 2, "max": 4},
        },
    ],
    "backing": {"name": "silicon", "sld": 2.07, "roughness": {"min": 1, "max": 3}},
}


class Listening(LocalContext):
    """Keeps the lines of the log; wants something else once it was asked so many times."""

    def __init__(
        self, directory: Path, asks: int = 1 << 30, then: Desired = Desired.RUN, **more: Any
    ) -> None:
        super().__init__(directory, **more)
        self.lines: list[str] = []
        self._left, self._then = asks, then

    def log(self, line: str) -> None:
        self.lines.append(line)

    def desired(self) -> Desired:
        self._left -= 1
        return self._then if self._left < 0 else Desired.RUN


def params(**changes: Any) -> CnnParams:
    document: dict[str, Any] = {
        "engine": "pyreflect",
        "curves": 12,
        "network": {"layers": 1, "dropout": 0.0},
        "training": {"epochs": 2, "batch_size": 4},
    }
    return CnnParams.model_validate(document | changes)


@pytest.mark.parametrize("stack", [None, THIN], ids=["its own film", "a film of ours"])
def test_its_curves_come_from_the_seed(tmp_path: Path, stack: Any) -> None:
    wanted = params(**({} if stack is None else {"stack": stack}))
    context = Listening(tmp_path)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state())
    one, same, other = (peer.generate(wanted, context, seed) for seed in (1, 1, 2))
    assert one.nr.shape == (12, 2, 308)
    assert one.sld.shape == (12, 2, 900)
    assert np.array_equal(one.nr, same.nr)
    assert np.array_equal(one.sld, same.sld)
    assert not np.array_equal(one.nr, other.nr)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.random.get_rng_state())
    assert any(line.startswith("pyreflect: Using") for line in context.lines)


def test_it_draws_from_the_bounds_of_our_film(tmp_path: Path) -> None:
    theirs = peer.generate(params(stack=THIN, curves=40), Listening(tmp_path / "theirs"), 1)
    ours = make_curves(params(stack=THIN, curves=40, engine="native"), Listening(tmp_path / "ours"), 1)
    for found in (theirs, ours):
        np.testing.assert_allclose(found.sld[:, 1, 0], 2.07, atol=0.02)
        np.testing.assert_allclose(found.sld[:, 1, -1], 0.0, atol=0.02)
        # Film, oxide, and 10 to 15 angstrom on both sides.
        assert ((found.sld[:, 0, -1] > 80) & (found.sld[:, 0, -1] < 145)).all()
    # Both leave the films that they drew.
    parameters = [np.load(tmp_path / name / "artifacts/parameters.npy") for name in ("theirs", "ours")]
    columns = [
        json.loads((tmp_path / name / "artifacts/parameters.json").read_text()) for name in ("theirs", "ours")
    ]
    assert {item["name"]: item["unit"] for item in columns[0]} == {
        item["name"]: item["unit"] for item in columns[1]
    }
    for values, items in zip(parameters, columns, strict=True):
        assert values.shape == (40, len(items))
        thickness = values[:, [item["name"] for item in items].index("film.thickness")]
        assert 50 <= thickness.min() < 60 < 80 < thickness.max() <= 90
    mean = [np.log10(found.nr[:, 1]).mean(axis=0) for found in (theirs, ours)]
    np.testing.assert_allclose(*mean, atol=0.35)


def test_cancellation_is_heard_while_it_generates(tmp_path: Path) -> None:
    with pytest.raises(JobCancelled):
        peer.generate(params(curves=5000), Listening(tmp_path, 5, Desired.CANCEL), 1)


class Small(Cnn):
    """In the place of its network, which is a gigabyte with its optimiser."""

    def __init__(self, layers: int, dropout_prob: float) -> None:
        super().__init__(CnnShape(layers, 4, 5, 308, 900), dropout_prob)

    def forward(self, curves: torch.Tensor) -> torch.Tensor:
        return super().forward(curves[:, 0])


@pytest.fixture
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyreflect.models import nr_sld_model_trainer

    monkeypatch.setattr(nr_sld_model_trainer, "CNN", Small)


@pytest.mark.usefixtures("_small_network")
def test_its_trainer_gives_a_model_of_ours(tmp_path: Path) -> None:
    results = []
    for name in ("1", "2"):
        context = Listening(tmp_path / name, seed=4)
        result = registry.pipeline("reflectometry.pyreflect_cnn").run(params(), context)
        assert isinstance(result, CnnResult)
        results.append(result)
    assert timeless(results[0]) == timeless(results[1])
    assert len(results[0].losses) == 2
    assert any("Epoch 2/2 - Train Loss" in line for line in context.lines)
    printed = next(line for line in context.lines if "Epoch 2/2" in line)
    assert f"{results[0].losses[1].train_loss:.6f}" in printed
    assert [report["step"] for report in context.reports if report["phase"] == "train"][-1] == 4
    folder = tmp_path / "2/models/cnn"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    registry.load_predictor(manifest, (folder / "model.safetensors").read_bytes())


@pytest.mark.usefixtures("_small_network")
@pytest.mark.parametrize("then", [Desired.STOP, Desired.CANCEL])
def test_its_trainer_obeys(tmp_path: Path, then: Desired) -> None:
    wanted = params(training={"epochs": 500, "batch_size": 4})
    curves = make_curves(params(engine="native", curves=20), Listening(tmp_path), 1)
    context = Listening(tmp_path, 20, then)
    if then is Desired.CANCEL:
        with pytest.raises(JobCancelled):
            peer.train(wanted, context, curves, 1)
    else:
        trained = peer.train(wanted, context, curves, 1)
        assert trained.ended_by == "stop"
        assert len(trained.losses) < 10


@pytest.mark.slow
def test_its_whole_network(tmp_path: Path) -> None:
    context = Listening(tmp_path, seed=4)
    result = registry.pipeline("reflectometry.pyreflect_cnn").run(
        params(training={"epochs": 1, "batch_size": 4}), context
    )
    assert isinstance(result, CnnResult)
    assert result.ended_by == "epochs"
