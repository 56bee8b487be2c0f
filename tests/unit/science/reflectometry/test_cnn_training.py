from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guidehall.science import registry
from guidehall.science.pipeline import Desired, JobCancelled, JobPaused, LocalContext, Manifest, UserError
from guidehall.science.reflectometry.cnn.curves import CurveSet, profiles_of, relative_sigma
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from guidehall.science.reflectometry.cnn.params import CnnParams, CnnResult, CnnTraining
from guidehall.science.reflectometry.cnn.training import CnnTrainer, fit_normalisation
from guidehall.science.reflectometry.epochs import Split, autocast_type
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution
from tests.fixtures.reflectometry import AfterSteps, timeless

PIPELINE = "reflectometry.pyreflect_cnn"
SMALL: dict[str, Any] = {
    "curves": 40,
    "probe": {
        "points": 24,
        "resolution": 0.03,
        "scale": 1.0,
        "background": 0.0,
    },
    "profile_points": 20,
    "network": {"layers": 3, "width": 8, "kernel": 5, "dropout": 0.2},
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
}


def small(**changes: Any) -> dict[str, Any]:
    document = copy.deepcopy(SMALL)
    for name, value in changes.items():
        if isinstance(value, dict):
            document.setdefault(name, {}).update(value)
        else:
            document[name] = value
    return document


def train(document: dict[str, Any], context: LocalContext) -> CnnResult:
    result = registry.pipeline(PIPELINE).run(document, context)
    assert isinstance(result, CnnResult)
    return result


def random_curves(count: int, points: int = 24, profile_points: int = 20, seed: int = 0) -> CurveSet:
    random = np.random.default_rng(seed)
    nr = np.empty((count, 2, points), dtype=np.float32)
    nr[:, 0] = np.geomspace(0.01, 0.2, points)
    nr[:, 1] = 10.0 ** random.uniform(-7, 0, (count, points))
    sld = np.empty((count, 2, profile_points), dtype=np.float32)
    sld[:, 0] = np.sort(random.uniform(0, 300, (count, profile_points)), axis=1)
    sld[:, 1] = random.uniform(-0.5, 6, (count, profile_points))
    return CurveSet(nr, sld)


def saved(folder: Path, curves: CurveSet) -> dict[str, Path]:
    paths = {name: folder / f"{name}.npy" for name in ("nr_train", "sld_train")}
    np.save(paths["nr_train"], curves.nr)
    np.save(paths["sld_train"], curves.sld)
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CnnResult]:
    folder = tmp_path_factory.mktemp("cnn")
    context = LocalContext(folder, seed=3)
    return folder, train(small(export=True), context)


def test_leaves_a_model_that_its_manifest_proves(trained: tuple[Path, CnnResult]) -> None:
    folder, result = trained
    manifest = Manifest.from_json((folder / "models/cnn/manifest.json").read_bytes())
    predictor = registry.load_predictor(manifest, (folder / "models/cnn/model.safetensors").read_bytes())
    assert manifest.architecture == "reflectometry.pyreflect_cnn/1"
    assert manifest.metrics == result.metrics
    example = result.example
    answer = predictor.predict(
        {
            "q": np.array([example.q], dtype=np.float32),
            "reflectivity": np.array([example.reflectivity], dtype=np.float32),
        }
    )
    np.testing.assert_allclose(answer["sld"][0], example.predicted_sld, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(answer["z"][0], example.predicted_z, rtol=1e-3, atol=0.1)


def test_its_validation_shows_one_held_out_film(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, seed=3)
    train(small(), context)
    shown = context.previews["reflectometry.profile"]
    assert shown["epoch"] == 3
    sld = np.load(tmp_path / "artifacts/sld_train.npy")
    (row,) = np.flatnonzero((sld[:, 1] == np.array(shown["sld"], dtype=np.float32)).all(axis=1))
    assert np.array_equal(sld[row, 0], np.array(shown["z"], dtype=np.float32))
    assert len(shown["predicted_z"]) == len(shown["predicted_sld"]) == 20
    # In the units of the profile.
    assert -2 < np.mean(shown["predicted_sld"]) < 8


def test_leaves_its_curves_and_files_for_pyreflect(trained: tuple[Path, CnnResult]) -> None:
    folder, result = trained
    nr, sld = (np.load(folder / "artifacts" / name) for name in ("nr_train.npy", "sld_train.npy"))
    assert (nr.shape, sld.shape, nr.dtype) == ((40, 2, 24), (40, 2, 20), np.float32)
    assert (sld[:, 0, 0] == 0).all()
    assert (np.diff(sld[:, 0]) > 0).all()
    # From silicon to air.
    np.testing.assert_allclose(sld[:, 1, 0], 2.07, atol=0.05)
    np.testing.assert_allclose(sld[:, 1, -1], 0.0, atol=0.05)
    names = {path.name for path in (folder / "artifacts").iterdir()}
    assert {"cnn.pth", "normalization_stats.npy", "normalization_stats.npz", "losses.png"} <= names
    theirs = np.load(folder / "artifacts/normalization_stats.npy", allow_pickle=True).item()
    assert theirs == result.normalisation.model_dump()


def test_the_films_behind_its_curves_are_kept(trained: tuple[Path, CnnResult]) -> None:
    folder, _ = trained
    names = json.loads((folder / "artifacts/parameters.json").read_text())
    values = np.load(folder / "artifacts/parameters.npy", allow_pickle=False)
    assert values.shape == (40, len(names))
    params = CnnParams.model_validate(small())
    prior = Prior(params.stack, params.probe)
    assert names == [{"name": item.name, "unit": item.unit} for item in prior.free]
    # The same curves and profiles again.
    q = params.probe.q()
    blur = resolution(q, relative_sigma(params) * q, "refl1d")
    nr, sld = (np.load(folder / "artifacts" / name) for name in ("nr_train.npy", "sld_train.npy"))
    again = torch.from_numpy(values)
    np.testing.assert_allclose(prior.curves(blur, again), nr[:, 1], rtol=1e-5)
    np.testing.assert_allclose(profiles_of(prior.films(again), 20), sld, rtol=1e-4, atol=1e-4)


def test_tells_the_size_of_the_model_and_how_long_it_takes_to_answer(trained: tuple[Path, CnnResult]) -> None:
    folder, result = trained
    size = (folder / "models/cnn/model.safetensors").stat().st_size
    assert result.model_megabytes == size / 1e6
    assert 0 < result.seconds.inference < result.seconds.total


def test_metrics_are_by_channel_over_the_test_split(trained: tuple[Path, CnnResult]) -> None:
    _, result = trained
    again = {"log10_r_mae", "unphysical"}
    assert again | {"z_rmse", "z_mae", "z_r2", "sld_rmse", "sld_mae", "sld_r2", "sld_at_depth_rmse"} == set(
        result.metrics
    )
    z, sld = result.channels
    assert (z.name, z.unit, z.rmse) == ("z", "angstrom", result.metrics["z_rmse"])
    assert (sld.name, sld.unit, sld.r2) == ("sld", "1e-6/angstrom^2", result.metrics["sld_r2"])
    tested = len(Split.of(result.curves, 0.1, 0).test)
    assert result.residuals.curves + result.residuals.unphysical == tested
    seconds = result.seconds
    assert 0 < seconds.generation + seconds.training + seconds.evaluation + seconds.inference <= seconds.total
    assert result.provenance.software["torch"] == torch.__version__
    assert len(result.losses) == 3
    assert result.ended_by == "epochs"


def test_learns(tmp_path: Path) -> None:
    curves = random_curves(4)
    curves = CurveSet(np.repeat(curves.nr, 10, axis=0), np.repeat(curves.sld, 10, axis=0))
    split = Split.of(40, 0.1, 1)
    network = Cnn(CnnShape(2, 8, 5, 24, 20))
    settings = CnnTraining(epochs=40, batch_size=8, learning_rate=3e-3, precision="float32")
    trainer = trainer_of(network, settings, curves, split, tmp_path)
    trainer.loop.run()
    assert trainer.loop.losses[-1].validation_loss < 0.05 * trainer.loop.losses[0].validation_loss


def trainer_of(
    network: Cnn, settings: CnnTraining, curves: CurveSet, split: Split, folder: Path
) -> CnnTrainer:
    context = LocalContext(folder, seed=1)
    normalisation = fit_normalisation(curves, split.training)
    return CnnTrainer(network, settings, context, curves, split, normalisation, 1)


def test_statistics_are_those_of_the_training_curves_alone() -> None:
    curves = random_curves(30)
    split = Split.of(30, 0.1, 5)
    curves.sld[split.test[0], 1, 3] = 1000.0
    curves.nr[split.validation[0], 1, 3] = 1e3
    normalisation = fit_normalisation(curves, split.training)
    assert normalisation.sld.y.max < 7
    assert normalisation.nr.y.max <= 0


def test_split_is_reproducible_and_without_overlap() -> None:
    one, same, other = Split.of(50, 0.1, 7), Split.of(50, 0.1, 7), Split.of(50, 0.1, 8)
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)
    rows = np.concatenate([one.training, one.validation, one.test])
    assert np.array_equal(np.sort(rows), np.arange(50))
    assert (len(one.training), len(one.validation), len(one.test)) == (40, 5, 5)


def test_constant_channel_gives_numbers(tmp_path: Path) -> None:
    curves = random_curves(20)
    curves.sld[:, 1] = 2.0
    result = train(small(curves_from_datasets=True), LocalContext(tmp_path, datasets=saved(tmp_path, curves)))
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert "sld_r2" not in result.metrics


@pytest.mark.parametrize("asked", [4, 7])
def test_resumed_run_gives_the_same_numbers(tmp_path: Path, asked: int) -> None:
    whole = train(small(), LocalContext(tmp_path / "whole", seed=5))
    with pytest.raises(JobPaused):
        # The pieces of the set ask once, too.
        train(small(), AfterSteps(tmp_path / "parts", asked + 1, Desired.PAUSE, seed=5))
    resumed = LocalContext(tmp_path / "parts", seed=5)
    assert timeless(train(small(), resumed)) == timeless(whole)
    weights = [(tmp_path / name / "models/cnn/model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    one = train(small(), LocalContext(tmp_path / "1", seed=1))
    two = train(small(), LocalContext(tmp_path / "2", seed=2))
    assert one.losses != two.losses


def test_leaves_global_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    train(small(), LocalContext(tmp_path, seed=1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_stop_publishes_what_there_is(tmp_path: Path) -> None:
    result = train(small(), AfterSteps(tmp_path, 3, Desired.STOP, seed=5))
    assert result.ended_by == "stop"
    assert (tmp_path / "models/cnn/manifest.json").exists()


def test_cancel_leaves_at_once(tmp_path: Path) -> None:
    with pytest.raises(JobCancelled):
        train(small(), AfterSteps(tmp_path, 3, Desired.CANCEL, seed=5))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_follows_its_schedule(tmp_path: Path, schedule: str) -> None:
    settings = CnnTraining(epochs=4, batch_size=8, learning_rate=0.01, precision="float32", schedule=schedule)
    trainer = trainer_of(
        Cnn(CnnShape(2, 8, 5, 24, 20)), settings, random_curves(40), Split.of(40, 0.1, 1), tmp_path
    )
    rates = []
    for _ in range(16):
        trainer.loop.train_step(torch.arange(8))
        rates.append(trainer.loop._optimiser.param_groups[0]["lr"])
    if schedule == "constant":
        assert rates == [0.01] * 16
    else:
        assert rates[0] < 0.001
        assert max(rates) == pytest.approx(0.01, rel=0.02)
        assert rates[1:] == sorted(rates[1:], reverse=True)
        assert rates[-1] < 0.001


def test_patience_ends_it_with_the_best(tmp_path: Path) -> None:
    curves = random_curves(40)
    split = Split.of(40, 0.1, 1)
    settings = CnnTraining(
        epochs=200, batch_size=8, learning_rate=0.05, precision="float32", patience=3, weight_decay=0
    )
    trainer = trainer_of(Cnn(CnnShape(2, 8, 5, 24, 20)), settings, curves, split, tmp_path)
    assert trainer.loop.run() == "patience"
    losses = [item.validation_loss for item in trainer.loop.losses]
    assert int(np.argmin(losses)) == len(losses) - 4
    assert trainer._validation_loss() == pytest.approx(min(losses), rel=1e-4)


def test_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    document = small(training={"learning_rate": 1.0, "epochs": 400, "optimiser": "adamw", "weight_decay": 1})
    curves = random_curves(20)
    settings = CnnParams.model_validate(document).training
    trainer = trainer_of(Cnn(CnnShape(1, 4, 3, 24, 20)), settings, curves, Split.of(20, 0.1, 1), tmp_path)
    with torch.no_grad():
        trainer.network.linear1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"training.learning_rate"):
        trainer.run()


def test_bfloat16_learns_as_well(tmp_path: Path) -> None:
    curves = random_curves(40)
    split = Split.of(40, 0.1, 1)
    losses = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        settings = CnnTraining(epochs=3, batch_size=8, learning_rate=1e-3, precision=precision)
        trainer = trainer_of(Cnn(CnnShape(2, 8, 5, 24, 20)), settings, curves, split, tmp_path)
        trainer.loop.run()
        losses[precision] = trainer.loop.losses[-1].validation_loss
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]


def test_precision_is_what_is_asked_for() -> None:
    assert autocast_type("float32", "cpu") is None
    assert autocast_type("bfloat16", "cpu") is torch.bfloat16


@pytest.mark.filterwarnings("ignore")
def test_losses_are_those_of_the_trainer_of_pyreflect(tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        from pyreflect.models.model_trainer import ModelTrainer

    curves = random_curves(160)
    split = Split(np.arange(160), np.arange(8), np.arange(8))
    settings = CnnTraining(batch_size=8, precision="float32")
    torch.manual_seed(0)
    ours = Cnn(CnnShape(4, 16, 9, 24, 20))
    theirs = copy.deepcopy(ours)
    trainer = trainer_of(ours, settings, curves, split, tmp_path)
    optimiser = torch.optim.Adam(
        theirs.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    mine, peers = [], []
    for rows in torch.arange(160).split(8):
        mine.append(trainer.loop.train_step(rows).item())
        batch = (trainer._x[rows], trainer._y[rows])
        peers.append(ModelTrainer.train_model(theirs, [batch], optimiser, torch.nn.MSELoss()))
    assert len(mine) == 20
    np.testing.assert_allclose(mine, peers, rtol=1e-4)
    torch.testing.assert_close(ours.eval()(trainer._x), theirs.eval()(trainer._x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda nr, sld: (nr[:5], sld[:5]), "inputs.nr_train"),
        (lambda nr, sld: (nr, sld[:15]), "inputs.sld_train"),
        (lambda nr, sld: (nr[:, :1], sld), "inputs.nr_train"),
        (lambda nr, sld: (nr, sld * np.array([1.0, 1e-6])[:, None]), "inputs.sld_train"),
        (lambda nr, sld: (np.where(nr < 0.02, np.nan, nr), sld), "inputs.nr_train"),
        (lambda nr, sld: (nr * np.linspace(1, 2, 20)[:, None, None], sld), "inputs.nr_train"),
        (lambda nr, sld: (nr[..., ::-1], sld), "inputs.nr_train"),
        (lambda nr, sld: (nr, sld[..., ::-1]), "inputs.sld_train"),
        (lambda nr, sld: (nr.astype(object), sld), "inputs.nr_train"),
    ],
)
def test_datasets_that_are_none_are_refused(tmp_path: Path, spoil: Any, field: str) -> None:
    curves = CurveSet(*spoil(*random_curves(20)))
    context = LocalContext(tmp_path, datasets=saved(tmp_path, curves))
    with pytest.raises(UserError) as caught:
        train(small(curves_from_datasets=True), context)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"probe": {"resolution": {"min": 0.02, "max": 0.05}}}, "probe.resolution"),
        ({"network": {"kernel": 4}}, "network.kernel"),
        ({"engine": "pyreflect"}, "network.width"),
        ({"engine": "pyreflect", "network": {"width": 256, "kernel": 51}}, "training.learning_rate"),
        ({"curves": 200_000, "profile_points": 4000}, "curves"),
        ({"network": {"width": 512}, "probe": {"points": 1024}, "profile_points": 900}, "network.width"),
    ],
)
def test_parameters_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        train(small(**changes), LocalContext(tmp_path))
    assert caught.value.field == field


def test_defaults_are_those_of_pyreflect() -> None:
    params = CnnParams()
    assert CnnParams(engine="pyreflect").probe == params.probe
    assert (params.training.learning_rate, params.training.weight_decay) == (2.15481e-5, 2.6324e-5)
    assert params.network.weights(308, 900) == pytest.approx(155_285_778, rel=0.02)
