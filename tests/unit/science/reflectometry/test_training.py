from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guidehall.science import registry
from guidehall.science.pipeline import (
    Desired,
    JobCancelled,
    JobPaused,
    LocalContext,
    Manifest,
    UserError,
)
from guidehall.science.reflectometry.assessment import channel_errors, residuals_of
from guidehall.science.reflectometry.params import NrSldParams, NrSldResult
from guidehall.science.reflectometry.training import Trainer
from tests.fixtures.reflectometry import SMALL_TRAINING, AfterSteps, timeless

PIPELINE = "reflectometry.nr_sld"


def tiny(**training: Any) -> dict[str, Any]:
    """Parameters of a run that takes a fraction of a second and learns little."""
    document = copy.deepcopy(SMALL_TRAINING)
    document["training"] |= {
        "epochs": 4,
        "steps_per_epoch": 5,
        "batch_size": 8,
        "validation_curves": 8,
        "width": 16,
        "depth": 1,
    }
    document["training"] |= training
    return document


def train(document: dict[str, Any], context: LocalContext) -> NrSldResult:
    result = registry.pipeline(PIPELINE).run(document, context)
    assert isinstance(result, NrSldResult)
    return result


def test_learns_and_leaves_everything(small_model_folder: Path) -> None:
    manifest = Manifest.from_json((small_model_folder / "models/small/manifest.json").read_bytes())
    # Without knowing the curve, the middle of the bounds is off by 25 A and 0.75 on average.
    assert manifest.metrics["film.thickness.mae"] < 12
    assert manifest.metrics["film.sld.mae"] < 0.4
    assert manifest.metrics["log10_r_mae"] < 0.15
    assert manifest.provenance.seed == 11
    names = {path.name for path in (small_model_folder / "artifacts").iterdir()}
    assert names == {f"{name}.{end}" for name in ("losses", "prediction") for end in ("png", "svg")}
    assert (small_model_folder / "artifacts/losses.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (small_model_folder / "artifacts/prediction.svg").read_bytes()


def test_metrics_are_those_of_curves_that_nothing_was_chosen_by(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, seed=1)
    result = train(tiny(fixed_curves=20, validation_curves=16), context)
    names = ["film.thickness", "film.sld", "film.roughness", "scale", "background"]
    assert [channel.name for channel in result.channels] == ["r", "log10_r", "sld", *names]
    assert result.channels[3].unit == "angstrom"
    for channel in result.channels:
        between = "." if channel.name in names else "_"
        assert result.metrics[f"{channel.name}{between}rmse"] == channel.rmse >= channel.mae
        assert result.metrics[f"{channel.name}{between}r2"] == channel.r2 < 1
    assert result.residuals.curves == 16
    assert result.residuals.mean_abs == pytest.approx(result.metrics["log10_r_mae"])
    # The seconds cover the run, and only the rest of it is no phase.
    seconds = result.seconds
    assert min(seconds.generation, seconds.training, seconds.evaluation) > 0
    assert seconds.inference > 0
    assert seconds.generation + seconds.training + seconds.evaluation + seconds.inference <= seconds.total
    (weights,) = context.directory.glob("models/*/model.safetensors")
    assert result.model_megabytes == weights.stat().st_size / 1e6
    assert result.provenance == context.provenance
    # Of other films than those of the validation.
    arguments = NrSldParams.model_validate(tiny(fixed_curves=20, validation_curves=16))
    trainer = Trainer(arguments, LocalContext(tmp_path / "other", seed=1), None)
    parameters = [list(example.values()) for example in [result.example.parameters]]
    held_back = trainer.prior.values(trainer.validation.unit)
    assert (held_back - torch.tensor(parameters, dtype=torch.float64)).abs().sum(1).min() > 1e-3


def test_errors_are_what_their_names_say() -> None:
    truth = np.random.default_rng(0).normal(size=(40, 30))
    perfect = channel_errors("x", "angstrom", truth, truth)
    assert (perfect.rmse, perfect.mae, perfect.r2) == (0.0, 0.0, 1.0)
    shifted = channel_errors("x", "angstrom", truth + 0.5, truth)
    assert (shifted.rmse, shifted.mae) == pytest.approx((0.5, 0.5))
    assert shifted.r2 == pytest.approx(1 - 0.25 / truth.var())
    assert channel_errors("x", "", np.ones(5), np.zeros(5)).r2 is None
    found = residuals_of(np.full((4, 10), -0.1), unphysical=2)
    assert (found.curves, found.unphysical) == (4, 2)
    assert (found.mean, found.mean_abs, found.percentile_95_abs) == pytest.approx((-0.1, 0.1, 0.1))
    assert residuals_of(np.zeros((0, 10)), unphysical=2).mean_abs is None


def test_reports_each_epoch(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, seed=1)
    result = train(tiny(), context)
    assert [(report["step"], report["epoch"]) for report in context.reports] == [
        (5, 1),
        (10, 2),
        (15, 3),
        (20, 4),
    ]
    assert [item.train_loss for item in result.losses] == [report["train_loss"] for report in context.reports]
    assert result.curves_seen == 20 * 8
    assert not result.stopped_early
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


@pytest.mark.parametrize("extra", [{}, {"fixed_curves": 40}])
def test_resumed_run_gives_the_same_numbers(tmp_path: Path, extra: dict[str, Any]) -> None:
    whole = train(tiny(**extra), LocalContext(tmp_path / "whole", seed=5))
    parts = tmp_path / "parts"
    with pytest.raises(JobPaused):
        # The pieces of a fixed set ask once, too.
        train(tiny(**extra), AfterSteps(parts, 7 + len(extra), Desired.PAUSE, seed=5))
    assert not (parts / "models").exists()
    resumed = LocalContext(parts, seed=5)
    assert timeless(train(tiny(**extra), resumed)) == timeless(whole)
    assert [report["step"] for report in resumed.reports if report["phase"] == "train"] == [10, 15, 20]


def test_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = train(tiny(checkpoint_epochs=2), LocalContext(tmp_path / "whole", seed=5))

    class Killed(Exception):
        pass

    class DiesAt17(LocalContext):
        asked = 0

        def desired(self) -> Desired:
            self.asked += 1
            if self.asked == 17:
                raise Killed
            return Desired.RUN

    with pytest.raises(Killed):
        train(tiny(checkpoint_epochs=2), DiesAt17(tmp_path / "parts", seed=5))
    resumed = LocalContext(tmp_path / "parts", seed=5)
    assert timeless(train(tiny(checkpoint_epochs=2), resumed)) == timeless(whole)
    assert [report["step"] for report in resumed.reports] == [15, 20]


def test_each_validation_shows_one_held_out_film(tmp_path: Path) -> None:
    class Watched(LocalContext):
        def preview(self, kind: str, document: Mapping[str, Any]) -> None:
            shown.append((kind, document))

    shown: list[Any] = []
    train(tiny(), Watched(tmp_path, seed=5))
    assert [(kind, document["epoch"]) for kind, document in shown] == [
        ("reflectometry.profile", epoch) for epoch in (1, 2, 3, 4)
    ]
    documents = [document for _, document in shown]
    for document in documents:
        # The same film each time, from air to silicon.
        assert document["sld"] == documents[0]["sld"]
        assert (document["sld"][0], document["sld"][-1]) == pytest.approx((0.0, 2.07), abs=0.05)
        assert len(document["z"]) == len(document["sld"]) == len(document["predicted_sld"])
    assert documents[0]["predicted_sld"] != documents[3]["predicted_sld"]


def test_smaller_pieces_change_the_rounding_alone(tmp_path: Path) -> None:
    pipeline = registry.pipeline(PIPELINE)
    smaller = pipeline.with_less_memory(tiny())
    assert smaller is not None
    assert smaller["training"]["micro_batch"] == 4
    whole = train(tiny(), LocalContext(tmp_path / "whole", seed=5))
    # The last piece is smaller than the others.
    pieces = train(tiny(micro_batch=3), LocalContext(tmp_path / "pieces", seed=5))
    assert (whole.micro_batch, pieces.micro_batch) == (0, 3)
    for one, other in zip(whole.losses, pieces.losses, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert other.validation_loss == pytest.approx(one.validation_loss, rel=1e-3)
    sizes = []
    document: dict[str, Any] | None = tiny()
    while (document := pipeline.with_less_memory(document)) is not None:
        sizes.append(document["training"]["micro_batch"])
    assert sizes == [4, 2, 1]
    assert registry.pipeline("reflectometry.plan").with_less_memory({}) is None


def test_seed_decides_and_global_state_does_not(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(tiny(), LocalContext(tmp_path / "1", seed=5))
    before = torch.get_rng_state()
    torch.manual_seed(2)
    second = train(tiny(), LocalContext(tmp_path / "2", seed=5))
    third = train(tiny(), LocalContext(tmp_path / "3", seed=6))
    assert timeless(first) == timeless(second) != timeless(third)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_long_epochs_report_in_between_with_the_last_complete_numbers(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    train(tiny(epochs=2, steps_per_epoch=25), context)
    assert [report["step"] for report in context.reports] == [10, 20, 25, 30, 40, 50]
    assert [report.get("epoch") for report in context.reports] == [None, None, 1, 1, 1, 2]


def test_same_run_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tiny(epochs=1), LocalContext(tmp_path / name, seed=5))
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_cancel_is_heard_at_the_next_step(tmp_path: Path) -> None:
    context = AfterSteps(tmp_path, 3, Desired.CANCEL)
    with pytest.raises(JobCancelled):
        train(tiny(), context)
    assert context.reports == []
    with pytest.raises(JobCancelled):
        train(tiny(fixed_curves=2000), AfterSteps(tmp_path, 2, Desired.CANCEL))


@pytest.mark.parametrize("steps", [0, 7])
def test_stop_keeps_the_best_so_far(tmp_path: Path, steps: int) -> None:
    result = train(tiny(), AfterSteps(tmp_path, steps, Desired.STOP))
    assert result.stopped_early
    assert result.curves_seen == steps * 8
    assert len(result.losses) == 1
    assert (tmp_path / "models/small/model.safetensors").exists()


def test_training_ends_when_it_does_not_improve(tmp_path: Path) -> None:
    # Steps so small that nothing changes.
    result = train(tiny(learning_rate=1e-30, epochs=50, patience=2), LocalContext(tmp_path))
    assert result.stopped_early
    assert len(result.losses) == 3
    assert (tmp_path / "models/small/model.safetensors").exists()


def test_a_loss_that_is_no_number_blames_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = LocalContext(tmp_path)
    document = tiny(learning_rate=1.0)
    # Broken weights in a checkpoint stand for a training that ran away.
    with pytest.raises(JobPaused):
        train(document, AfterSteps(tmp_path, 1, Desired.PAUSE))
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    state["network"]["stem.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "checkpoint")
    with pytest.raises(UserError, match=r"training\.learning_rate: got 1\.0; the loss became nan"):
        train(document, context)


def test_a_set_of_curves_can_be_used_again(tmp_path: Path) -> None:
    context = LocalContext(tmp_path / "first", seed=3)
    result = train(tiny(fixed_curves=30), context)
    curves = tmp_path / "first/artifacts/curves.npy"
    assert np.load(curves, allow_pickle=False).shape == (30, 5 + 1 + 48)
    assert context.reports[0] == {"step": 30, "total": 30, "phase": "generate"}
    again = LocalContext(tmp_path / "again", seed=4, datasets={"curves": curves})
    document = tiny() | {"curves_from_dataset": True}
    assert train(document, again).losses[-1].train_loss > 0
    assert "curves.npy" not in again.artifacts
    # The same curves as the network of pyreflect takes them: q and R, z and SLD from the substrate on.
    artifacts = tmp_path / "first/artifacts"
    nr, sld = (np.load(artifacts / name, allow_pickle=False) for name in ("nr_train.npy", "sld_train.npy"))
    assert (nr.dtype, nr.shape, sld.dtype, sld.shape) == (np.float32, (30, 2, 48), np.float32, (30, 2, 900))
    np.testing.assert_array_equal(nr[:, 1], np.load(curves)[:, 6:])
    parameters = np.load(artifacts / "parameters.npy", allow_pickle=False)
    np.testing.assert_array_equal(parameters.astype(np.float32), np.load(curves)[:, :5])
    names = [item["name"] for item in json.loads((artifacts / "parameters.json").read_text())]
    assert names == list(result.example.parameters)
    # They end three roughnesses beyond the outer interfaces, where 0.135 % of a step of at most 6 is left.
    np.testing.assert_allclose(sld[:, 1, 0], 2.07, atol=0.0082)
    np.testing.assert_allclose(sld[:, 1, -1], 0.0, atol=0.0082)
    assert (sld[:, 1].max(1) > 2.9).all()
    cnn = {"curves_from_datasets": True, "network": {"layers": 1, "width": 4, "kernel": 3}}
    files = {"nr_train": artifacts / "nr_train.npy", "sld_train": artifacts / "sld_train.npy"}
    learnt = registry.pipeline("reflectometry.pyreflect_cnn").run(
        cnn | {"training": {"epochs": 1, "batch_size": 10}},
        LocalContext(tmp_path / "cnn", datasets=files),
    )
    assert learnt.model_dump()["curves"] == 30


def test_other_sets_of_curves_are_refused(tmp_path: Path) -> None:
    train(tiny(fixed_curves=10), LocalContext(tmp_path, seed=3))
    table = np.load(tmp_path / "artifacts/curves.npy", allow_pickle=False)
    outside, other = table.copy(), table.copy()
    outside[3, 0] = 1e4
    other[:, 10:] *= 1.1
    cases = {
        "must be float32 of shape": table[:, 1:],
        "parameters outside the bounds": outside,
        "other curves": other,
    }
    for message, array in cases.items():
        np.save(tmp_path / "set.npy", array)
        context = LocalContext(tmp_path / "run", datasets={"curves": tmp_path / "set.npy"})
        with pytest.raises(UserError, match=message):
            train(tiny() | {"curves_from_dataset": True}, context)
    with (tmp_path / "set.npy").open("wb") as file:
        np.savez(file, table)
    with pytest.raises(UserError, match="archive of arrays"):
        train(tiny() | {"curves_from_dataset": True}, context)
    (tmp_path / "set.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match="numpy cannot read"):
        train(tiny() | {"curves_from_dataset": True}, context)


def test_simulates(tmp_path: Path) -> None:
    stack = {
        "fronting": {"name": "silicon", "sld": 2.07},
        "layers": [{"name": "film", "thickness": 200, "sld": 1.0, "isld": 0.01, "roughness": 4}],
        "backing": {"name": "water", "sld": 6.36, "roughness": 5},
    }
    context = LocalContext(tmp_path)
    result = registry.pipeline("reflectometry.simulate").run({"stack": stack}, context).model_dump()
    assert len(result["q"]) == len(result["reflectivity"]) == len(result["resolution"]) == 300
    assert result["reflectivity"][0] == pytest.approx(1.0, abs=0.05)
    assert (result["sld"][0], result["sld"][-1]) == pytest.approx((2.07, 6.36), abs=1e-3)
    assert max(result["isld"]) == pytest.approx(0.01, rel=1e-3)
    table = np.loadtxt(tmp_path / "artifacts/curve.txt")
    np.testing.assert_allclose(table[:, 1], result["reflectivity"], rtol=1e-7)
    assert set(context.artifacts) == {"curve.txt", "simulation.png", "simulation.svg"}


def test_simulation_from_either_side_of_a_mirrored_stack(tmp_path: Path) -> None:
    layer = {"name": "film", "thickness": 200, "sld": 1.0, "roughness": 4}
    front = {
        "fronting": {"sld": 2.07},
        "layers": [layer],
        "backing": {"sld": 6.36, "roughness": 5},
    }
    back = {
        "fronting": {"sld": 6.36},
        "layers": [layer | {"roughness": 5}],
        "backing": {"sld": 2.07, "roughness": 4},
        "beam": "backing",
    }
    probe = {"resolution": 0, "points": 50}
    one, other = (
        registry.pipeline("reflectometry.simulate").run(
            {"stack": stack, "probe": probe}, LocalContext(tmp_path)
        )
        for stack in (front, back)
    )
    assert one.model_dump()["reflectivity"] == pytest.approx(other.model_dump()["reflectivity"], rel=1e-12)
