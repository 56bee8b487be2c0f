from __future__ import annotations

import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guidehall.science import registry
from guidehall.science.pipeline import Desired, JobCancelled, JobPaused, LocalContext, Manifest, UserError
from guidehall.science.reflectometry.chi.network import ChiNetwork
from guidehall.science.reflectometry.chi.params import ChiResult, NrSldChiResult
from guidehall.science.reflectometry.chi.predictor import ChiArguments, ChiPredictor
from guidehall.science.reflectometry.network_params import Channels, Extent
from tests.fixtures.reflectometry import AfterSteps, timeless

SMALL: dict[str, Any] = {
    "latent_dim": 4,
    "autoencoder": {"epochs": 40, "batch_size": 32, "learning_rate": 3e-3},
    "perceptron": {"epochs": 40, "batch_size": 32, "learning_rate": 3e-3},
}
TINY: dict[str, Any] = {
    "latent_dim": 2,
    "autoencoder": {"epochs": 3, "batch_size": 8},
    "perceptron": {"epochs": 3, "batch_size": 8},
}


def profiles_of(chi: np.ndarray, points: int = 40) -> np.ndarray:
    """A film of which chi says how thick it is and how dense."""
    z = np.linspace(0.0, 300.0, points)
    thickness = 100.0 + 1000.0 * (chi[:, :1] - 0.05)
    density = 2.0 + 2.0 * chi[:, 1:2]
    sld = (
        2.07 + (density - 2.07) / (1 + np.exp(-(z - 50) / 10)) - density / (1 + np.exp(-(z - thickness) / 15))
    )
    return np.stack([np.broadcast_to(z, sld.shape), sld], axis=1).astype(np.float32)


def some_chi(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform([0.05, -1.0], [0.15, 1.0], (count, 2))


def datasets(folder: Path, count: int = 400, **arrays: np.ndarray) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    chi = arrays.pop("chi_params", some_chi(count))
    arrays = {"sld_curves": profiles_of(some_chi(count)), "chi_params": chi} | arrays
    paths = {}
    for name, array in arrays.items():
        paths[name] = folder / f"{name}.npy"
        np.save(paths[name], array)
    return paths


def train(document: dict[str, Any], context: LocalContext) -> ChiResult:
    result = registry.pipeline("reflectometry.sld_chi").run(document, context)
    assert isinstance(result, ChiResult)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ChiResult]:
    folder = tmp_path_factory.mktemp("chi")
    experimental = profiles_of(some_chi(3, seed=5))
    files = datasets(folder, experimental_sld=experimental)
    return folder, train(SMALL, LocalContext(folder, seed=2, datasets=files))


def predictor_of(folder: Path, name: str = "chi") -> ChiPredictor:
    manifest = Manifest.from_json((folder / f"models/{name}/manifest.json").read_bytes())
    found = registry.load_predictor(manifest, (folder / f"models/{name}/model.safetensors").read_bytes())
    assert isinstance(found, ChiPredictor)
    return found


def test_finds_chi_in_its_own_units(trained: tuple[Path, ChiResult]) -> None:
    _, result = trained
    # Knowing nothing, the errors would be 0.025 and 0.5.
    assert result.metrics["chi1.mae"] < 0.008
    assert result.metrics["chi2.mae"] < 0.15
    assert result.metrics["chi1.r2"] > 0.8
    assert 0.75 <= result.metrics["chi1.coverage"] <= 1.0
    for row, (prediction, true) in enumerate(zip(result.predictions, some_chi(3, seed=5), strict=True)):
        assert prediction.chi == pytest.approx(true.tolist(), abs=0.5), row
        assert prediction.low[0] < prediction.chi[0] < prediction.high[0]
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_leaves_a_picture_of_predicted_against_true_chi(trained: tuple[Path, ChiResult]) -> None:
    folder, result = trained
    names = {path.name for path in (folder / "artifacts").iterdir()}
    assert {"chi.png", "chi.svg", "autoencoder-losses.png", "perceptron-losses.png"} <= names
    svg = (folder / "artifacts/chi.svg").read_text()
    # A comment beside each text says what it is: a panel for each chi.
    assert [f"<!-- {name} -->" in svg for name in (*result.test, "chi3")] == [True, True, False]
    assert result.seconds.inference > 0


def test_keeps_the_list_of_the_old_app(trained: tuple[Path, ChiResult], tmp_path: Path) -> None:
    _, result = trained
    assert [point.x for point in result.chi] == [1, 2]
    assert [point.predicted for point in result.chi] == result.predictions[0].chi
    assert {point.actual for point in result.chi} == {None}
    without = train(TINY, LocalContext(tmp_path, datasets=datasets(tmp_path, 60)))
    assert without.predictions == []
    assert all(point.actual is not None for point in without.chi)


def test_all_rows_are_predicted(trained: tuple[Path, ChiResult]) -> None:
    folder, result = trained
    assert len(result.predictions) == 3
    predictor = predictor_of(folder)
    profiles = profiles_of(some_chi(3, seed=5))
    for count in (1, 2, 3):
        answer = predictor.predict({"z": profiles[:1, 0], "sld": profiles[:count, 1]})
        assert answer["chi"].shape == (count, 2)
        np.testing.assert_allclose(answer["chi"][0], result.predictions[0].chi, rtol=1e-4, atol=1e-5)


def test_the_same_profile_gives_the_same_answer(trained: tuple[Path, ChiResult]) -> None:
    predictor = predictor_of(trained[0])
    profiles = profiles_of(some_chi(1))
    answers = [predictor.answer(profiles) for _ in range(20)]
    assert all(np.array_equal(answer["latent"], answers[0]["latent"]) for answer in answers)
    assert all(np.array_equal(answer["chi"], answers[0]["chi"]) for answer in answers)


def test_another_number_of_points_is_resampled(trained: tuple[Path, ChiResult]) -> None:
    predictor = predictor_of(trained[0])
    chi = some_chi(1)
    coarse, fine = profiles_of(chi), profiles_of(chi, 900)
    one, other = (predictor.predict({"z": item[:, 0], "sld": item[:, 1]})["chi"] for item in (coarse, fine))
    np.testing.assert_allclose(one, other, atol=0.02)


def test_what_it_was_not_trained_for_is_marked(tmp_path: Path) -> None:
    unlike = profiles_of(some_chi(2)) * np.array([1.0, 3.0], dtype=np.float32)[:, None]
    files = datasets(tmp_path, experimental_sld=unlike)
    document = SMALL | {"filters": [{"parameter": 1, "min": 0.07, "max": 0.12}]}
    result = train(document, LocalContext(tmp_path, seed=1, datasets=files))
    inside = int(((some_chi(400)[:, 0] >= 0.07) & (some_chi(400)[:, 0] <= 0.12)).sum())
    assert (result.profiles, result.filtered_profiles) == (inside, 400 - inside)
    assert not any(prediction.typical for prediction in result.predictions)
    predictor = predictor_of(tmp_path)
    assert predictor.arguments.chi[0].min >= 0.07
    assert predictor.arguments.chi[0].max <= 0.12
    far = profiles_of(np.array([[0.15, 0.0], [0.095, 0.0]]))
    assert predictor.answer(far)["typical"][:, 0].tolist() == [False, True]
    answer = predictor.answer(profiles_of(some_chi(400, seed=9)))
    low, high = (np.array([getattr(item, end) for item in predictor.arguments.chi]) for end in ("min", "max"))
    assert np.array_equal(answer["in_range"], (answer["chi"] >= low) & (answer["chi"] <= high))
    assert not answer["in_range"].all()


def test_limits_are_those_of_the_training_split_alone(tmp_path: Path) -> None:
    from guidehall.science.reflectometry.chi.training import ChiSeeds
    from guidehall.science.reflectometry.epochs import Split

    split = Split.of(100, 0.15, ChiSeeds.of(0).split)
    chi = some_chi(100)
    chi[split.test[0], 0] = 50.0
    files = datasets(tmp_path, 100, chi_params=chi)
    train(TINY, LocalContext(tmp_path, seed=0, datasets=files))
    assert predictor_of(tmp_path).arguments.chi[0].max < 0.16


def test_zero_negative_and_constant_chi_give_numbers(tmp_path: Path) -> None:
    chi = some_chi(60)
    chi[::3, 1] = 0.0
    chi = np.concatenate([chi, np.full((60, 1), 7.0)], axis=1)
    profiles = profiles_of(chi)
    profiles[4:9, 1] = 2.0
    files = datasets(tmp_path, 60, sld_curves=profiles, chi_params=chi)
    result = train(TINY, LocalContext(tmp_path, datasets=files))
    assert result.flat_profiles == 5
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert "chi3.r2" not in result.metrics


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], ChiResult]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    files = datasets(folder, 60)
    return files, train(TINY, LocalContext(folder, seed=5, datasets=files))


@pytest.mark.parametrize("asked", [7, 24])
def test_resumed_run_gives_the_same_numbers(
    uninterrupted: tuple[dict[str, Path], ChiResult], tmp_path: Path, asked: int
) -> None:
    files, whole = uninterrupted
    with pytest.raises(JobPaused):
        train(TINY, AfterSteps(tmp_path / "parts", asked, Desired.PAUSE, seed=5, datasets=files))
    resumed = train(TINY, LocalContext(tmp_path / "parts", seed=5, datasets=files))
    assert timeless(resumed) == timeless(whole)


@pytest.mark.parametrize("asked", [3, 20])
def test_stop_and_cancel(tmp_path: Path, asked: int) -> None:
    files = datasets(tmp_path / "data", 60)
    result = train(TINY, AfterSteps(tmp_path / "stop", asked, Desired.STOP, datasets=files))
    assert result.stopped_early
    assert len(result.perceptron_losses) == (3 if asked == 3 else 1)
    with pytest.raises(JobCancelled):
        train(TINY, AfterSteps(tmp_path / "cancel", asked, Desired.CANCEL, datasets=files))


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        ({"chi_params": some_chi(59)}, "inputs.chi_params"),
        ({"chi_params": np.full((60, 2), np.nan)}, "inputs.chi_params"),
        ({"chi_params": np.array([["a", "b"]] * 60)}, "inputs.chi_params"),
        ({"chi_params": np.zeros((60, 100))}, "inputs.chi_params"),
        ({"sld_curves": np.zeros((60, 3, 40))}, "inputs.sld_curves"),
        ({"sld_curves": np.zeros((60, 2, 40))}, "filters"),
        (
            {"sld_curves": profiles_of(some_chi(60)) * np.array([1.0, 1e-6])[:, None]},
            "inputs.sld_curves",
        ),
        ({"sld_curves": profiles_of(some_chi(60))[..., ::-1]}, "inputs.sld_curves"),
        ({"experimental_sld": np.zeros((2, 3, 40))}, "inputs.experimental_sld"),
    ],
)
def test_wrong_datasets_are_refused(tmp_path: Path, spoil: dict[str, np.ndarray], field: str) -> None:
    with pytest.raises(UserError) as caught:
        train(TINY, LocalContext(tmp_path, datasets=datasets(tmp_path, 60, **spoil)))
    assert caught.value.field == field


def test_filter_of_a_chi_that_there_is_not(tmp_path: Path) -> None:
    document = TINY | {"filters": [{"parameter": 3, "min": 0, "max": 1}]}
    with pytest.raises(UserError, match=r"filters\[0\].parameter"):
        train(document, LocalContext(tmp_path, datasets=datasets(tmp_path, 60)))


@pytest.fixture(scope="module")
def peers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyreflect.models import autoencoder, mlp
    return autoencoder, mlp


def pth(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_weights_are_those_of_pyreflect(peers: Any) -> None:
    ours = ChiNetwork(40, 6, 3)
    theirs = peers[0].VariationalAutoencoder(80, 6), peers[1].deep_MLP(6, 3)
    for mine, peer in zip((ours.autoencoder, ours.perceptron), theirs, strict=True):
        assert {name: value.shape for name, value in mine.state_dict().items()} == {
            name: value.shape for name, value in peer.state_dict().items()
        }
        mine.load_state_dict(peer.state_dict())
    profiles = torch.rand(5, 80)
    latent, again = ours.autoencoder(profiles)
    torch.testing.assert_close(again, theirs[0].decoder(latent))
    torch.testing.assert_close(latent, theirs[0].encoder.linear2(theirs[0].encoder.layers(profiles)))
    torch.testing.assert_close(ours.perceptron(latent), theirs[1](latent))


def test_networks_of_pyreflect_are_imported(peers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder, mlp = peers[0].VariationalAutoencoder(80, 6), peers[1].deep_MLP(6, 2)
    contents = {
        "weights": pth(autoencoder.state_dict()),
        "perceptron": pth(mlp.state_dict()),
        "statistics": b'{"chi": [{"min": 0.07, "max": 0.12}, {"min": -1, "max": 3}]}',
    }
    files = {name: tmp_path / name for name in contents}
    for name, data in contents.items():
        files[name].write_bytes(data)
    run = registry.pipeline("reflectometry.import_model").run
    result = run({"kind": "chi", "model_name": "old"}, LocalContext(tmp_path, datasets=files))
    assert result.model_dump()["architecture"] == "reflectometry.sld_chi/1"
    profiles = profiles_of(some_chi(4))
    answer = predictor_of(tmp_path, "old").predict({"z": profiles[:, 0], "sld": profiles[:, 1]})
    flat = torch.from_numpy(profiles.reshape(4, -1))
    with torch.no_grad():
        unit = mlp(autoencoder.encoder.linear2(autoencoder.encoder.layers(flat))).numpy()
    np.testing.assert_allclose(answer["chi"][:, 0], 0.095 + 0.025 * unit[:, 0], rtol=1e-4)
    np.testing.assert_allclose(answer["chi"][:, 1], 1.0 + 2.0 * unit[:, 1], rtol=1e-4)
    assert np.isnan(answer["chi_low"]).all()
    assert not answer["typical"].any()


@pytest.mark.parametrize(
    ("name", "data", "field"),
    [
        ("statistics", b'{"chi": []}', "inputs.statistics.chi"),
        ("statistics", b'{"chi": [{"min": 0, "max": 1}]}', "inputs.statistics.chi"),
        (
            "statistics",
            b'{"chi": [{"min": 2, "max": 1}, {"min": 0, "max": 1}]}',
            "inputs.statistics.chi[0].max",
        ),
        ("statistics", b"[]", "inputs.statistics"),
        ("weights", pth({"a": torch.zeros(2)}), "inputs.weights"),
        ("perceptron", pth({"a": torch.zeros(2)}), "inputs.perceptron"),
        ("perceptron", pth(ChiNetwork(40, 7, 2).perceptron.state_dict()), "inputs.perceptron"),
        ("weights", b"x", "inputs.weights"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, name: str, data: bytes, field: str) -> None:
    network = ChiNetwork(40, 6, 2)
    contents = {
        "weights": pth(network.autoencoder.state_dict()),
        "perceptron": pth(network.perceptron.state_dict()),
        "statistics": b'{"chi": [{"min": 0, "max": 1}, {"min": 0, "max": 1}]}',
        name: data,
    }
    files = {key: tmp_path / key for key in contents}
    for key, content in contents.items():
        files[key].write_bytes(content)
    with pytest.raises(UserError) as caught:
        registry.pipeline("reflectometry.import_model").run(
            {"kind": "chi"}, LocalContext(tmp_path, datasets=files)
        )
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("z", "sld"),
    [
        (np.linspace(0, 1, 5), [1, 2, np.nan, 3, 4]),
        (np.linspace(1, 0, 5), np.ones(5)),
        (np.array([0.0]), np.array([1.0])),
    ],
)
def test_wrong_profiles_are_refused(z: np.ndarray, sld: Any) -> None:
    unit = Extent(min=0.0, max=1.0)
    arguments = ChiArguments(profile_points=5, latent_dim=2, profiles=Channels(x=unit, y=unit), chi=(unit,))
    predictor = ChiPredictor(arguments, ChiNetwork(5, 2, 1))
    with pytest.raises(UserError):
        predictor.predict({"z": np.array([z], np.float32), "sld": np.array([sld], np.float32)})


CHAIN: dict[str, Any] = {
    "cnn": {
        "curves": 40,
        "probe": {"points": 24, "resolution": 0.03, "scale": 1.0, "background": 0.0},
        "profile_points": 30,
        "network": {"layers": 2, "width": 8, "kernel": 5},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
    },
    "chi": TINY,
}


def chain(document: dict[str, Any], context: LocalContext) -> NrSldChiResult:
    result = registry.pipeline("reflectometry.nr_sld_chi").run(document, context)
    assert isinstance(result, NrSldChiResult)
    return result


def test_chain(tmp_path: Path) -> None:
    q = np.geomspace(0.007, 0.25, 50)
    curves = np.stack([np.broadcast_to(q, (3, 50)), np.broadcast_to((0.007 / q) ** 4, (3, 50))], axis=1)
    files = datasets(tmp_path, 60, experimental_nr=curves)
    result = chain(CHAIN, LocalContext(tmp_path, seed=1, datasets=files))
    assert len(result.chi.predictions) == 3
    assert result.cnn is not None
    for part in (result.cnn, result.chi):
        assert part.seconds.total >= part.seconds.training > 0
        assert part.provenance.seed == 1
    assert [channel.name for channel in result.chi.channels] == list(result.chi.test)
    assert result.chi.channels[0].rmse == result.chi.metrics["chi1.rmse"]
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"cnn", "chi"}


@pytest.fixture(scope="module")
def uninterrupted_chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], NrSldChiResult]:
    folder = tmp_path_factory.mktemp("uninterrupted-chain")
    files = datasets(folder, 60)
    return files, chain(CHAIN, LocalContext(folder, seed=1, datasets=files))


@pytest.mark.parametrize("asked", [4, 14, 30])
def test_resumed_chain_gives_the_same_numbers(
    uninterrupted_chain: tuple[dict[str, Path], NrSldChiResult], tmp_path: Path, asked: int
) -> None:
    files, whole = uninterrupted_chain
    with pytest.raises(JobPaused):
        chain(CHAIN, AfterSteps(tmp_path / "parts", asked, Desired.PAUSE, seed=1, datasets=files))
    resumed = chain(CHAIN, LocalContext(tmp_path / "parts", seed=1, datasets=files))
    assert timeless(resumed) == timeless(whole)


def test_chain_with_a_network_that_is_there(tmp_path: Path) -> None:
    files = datasets(tmp_path, 60)
    first = copy.deepcopy(CHAIN)
    first["cnn"]["export"] = True
    chain(first, LocalContext(tmp_path / "first", seed=1, datasets=files))
    artifacts = tmp_path / "first/artifacts"
    files |= {"weights": artifacts / "cnn.pth", "statistics": artifacts / "normalization_stats.npy"}
    second = CHAIN | {"cnn": None}
    with pytest.raises(UserError, match="experimental_nr"):
        chain(second, LocalContext(tmp_path / "second", datasets=files))
    files["experimental_nr"] = tmp_path / "experimental.npy"
    np.save(files["experimental_nr"], np.load(artifacts / "nr_train.npy")[0])
    result = chain(second, LocalContext(tmp_path / "second", datasets=files))
    assert result.cnn is None
    assert len(result.chi.predictions) == 1


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        ({"chi_params": some_chi(59)}, "inputs.chi_params"),
        ({"experimental_nr": np.stack([np.geomspace(0.05, 0.3, 50), np.ones(50)])}, "inputs.experimental_nr"),
    ],
)
def test_chain_refuses_before_it_trains(tmp_path: Path, spoil: dict[str, np.ndarray], field: str) -> None:
    context = LocalContext(tmp_path, datasets=datasets(tmp_path, 60, **spoil))
    with pytest.raises(UserError) as caught:
        chain(CHAIN, context)
    assert caught.value.field == field
    assert context.reports == []
