from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from guidehall.science import registry
from guidehall.science.pipeline import (
    Architecture,
    Desired,
    JobCancelled,
    JobPaused,
    LocalContext,
    Pipeline,
    Predictor,
    SaveRhythm,
    TensorSpec,
    UserError,
    check_tensors,
    field_errors,
    obey,
    raise_if_cancelled,
)
from guidehall.science.registry import RegistryError, Science
from tests.toy_science.params import LineParams, LineResult
from tests.unit.science.reflectometry.test_infer import FILM


@pytest.fixture(autouse=True)
def toy_science(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.MODULES_VARIABLE, " tests.toy_science ,")


def test_finds_own_and_added_sciences() -> None:
    assert {"reflectometry", "toy"} <= registry.sciences().keys()
    assert registry.pipeline("toy.line").title == "Fit a straight line"
    assert registry.architecture("toy.line/1").predictor().__name__ == "LinePredictor"


def test_schema_shows_unit_default_and_range() -> None:
    slope = registry.json_schema("toy.line")["properties"]["slope"]
    assert (slope["unit"], slope["default"], slope["minimum"], slope["maximum"]) == ("V/s", 2.0, -100, 100)
    assert "loss" in registry.result_schema("toy.line")["properties"]


def test_registry_never_imports_torch() -> None:
    code = (
        "import sys; from guidehall.science import registry; "
        "[registry.json_schema(name) for name in registry.pipelines()]; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"pipeline: got toy\.lime; .*toy\.line"):
        registry.pipeline("toy.lime")


def test_a_missing_module_and_one_without_science_are_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.MODULES_VARIABLE, "no.such.module")
    with pytest.raises(RegistryError, match=r"cannot import the science no\.such\.module"):
        registry.pipelines()
    monkeypatch.setenv(registry.MODULES_VARIABLE, "json")
    with pytest.raises(RegistryError, match="json has no SCIENCE"):
        registry.pipelines()


def test_two_sciences_cannot_claim_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.MODULES_VARIABLE, "tests.toy_science,tests.toy_science")
    with pytest.raises(RegistryError, match="two sciences claim the name toy"):
        registry.sciences()


def test_names_start_with_the_science() -> None:
    with pytest.raises(RegistryError, match="must start with the name of its science"):
        Science("other", "Other", architectures=(Architecture("toy.line/1", "m:C"),))


def test_trains_and_serves(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, seed=7)
    result = registry.pipeline("toy.line").run({"slope": 3.0, "intercept": 0.5}, context)
    assert isinstance(result, LineResult)
    assert result.slope == pytest.approx(3.0, abs=0.1)
    assert result.intercept == pytest.approx(0.5, abs=0.1)
    assert context.reports[-1]["step"] == context.reports[-1]["total"] == 100
    assert context.artifacts == {"points.npy": "application/x-npy"}
    predictor = _load(tmp_path / "models/line")
    assert isinstance(predictor, Predictor)
    answer = predictor.predict({"x": np.array([[2.0]], dtype=np.float32)})["y"]
    assert answer[0, 0] == pytest.approx(2 * result.slope + result.intercept, rel=1e-6)


def _load(folder: Path) -> Predictor:
    manifest = registry.Manifest.from_json((folder / "manifest.json").read_bytes())
    return registry.load_predictor(manifest, (folder / "model.safetensors").read_bytes())


def test_takes_points_from_a_dataset(tmp_path: Path) -> None:
    points = tmp_path / "points.npy"
    np.save(points, np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]]))
    context = LocalContext(tmp_path / "run", datasets={"points": points})
    result = registry.pipeline("toy.line").run({"from_dataset": True}, context)
    assert isinstance(result, LineResult)
    assert (result.slope, result.intercept) == pytest.approx((2.0, 1.0), abs=1e-6)
    with pytest.raises(UserError, match=r"inputs\.points: got no dataset"):
        registry.pipeline("toy.line").run({"from_dataset": True}, LocalContext(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "params", "needed"),
    [
        ("reflectometry.infer", {"stack": FILM}, ["curves"]),
        ("reflectometry.nr_sld", {"stack": FILM}, []),
        ("reflectometry.nr_sld", {"stack": FILM, "curves_from_dataset": True}, ["curves"]),
        ("reflectometry.pyreflect_cnn", {}, []),
        ("reflectometry.pyreflect_cnn", {"curves_from_datasets": True}, ["nr_train", "sld_train"]),
        ("reflectometry.import_model", {}, ["weights", "statistics"]),
        ("reflectometry.apply_cnn", {}, ["weights", "statistics", "experimental_nr"]),
        ("reflectometry.import_model", {"kind": "chi"}, ["weights", "statistics", "perceptron"]),
        ("reflectometry.sld_chi", {}, ["sld_curves", "chi_params"]),
        ("reflectometry.nr_sld_chi", {}, ["sld_curves", "chi_params"]),
        (
            "reflectometry.nr_sld_chi",
            {"cnn": None},
            ["sld_curves", "chi_params", "weights", "statistics", "experimental_nr"],
        ),
    ],
)
def test_says_which_datasets_it_cannot_do_without(
    tmp_path: Path, name: str, params: dict[str, object], needed: list[str]
) -> None:
    pipeline = registry.pipeline(name)
    assert list(pipeline.needs(pipeline.params.model_validate(params))) == needed
    assert set(needed) <= pipeline.datasets.keys()
    if needed:
        with pytest.raises(UserError, match=rf"^inputs\.({'|'.join(needed)}): got no dataset"):
            pipeline.run(params, LocalContext(tmp_path))


def test_paused_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    pipeline = registry.pipeline("toy.line")
    whole = pipeline.run({"steps": 40}, LocalContext(tmp_path / "whole", seed=3))

    class PausesAt15(LocalContext):
        def desired(self) -> Desired:
            return Desired.PAUSE if len(self.reports) == 15 else Desired.RUN

    context = PausesAt15(tmp_path / "parts", seed=3)
    with pytest.raises(JobPaused):
        pipeline.run({"steps": 40}, context)
    resumed = LocalContext(tmp_path / "parts", seed=3)
    assert pipeline.run({"steps": 40}, resumed) == whole
    assert resumed.reports[0]["step"] == 16


def test_cancelled_run_publishes_nothing(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    context.wanted = Desired.CANCEL
    with pytest.raises(JobCancelled):
        registry.pipeline("toy.line").run({}, context)
    with pytest.raises(JobCancelled):
        raise_if_cancelled(context)
    assert not (tmp_path / "models").exists()


def test_stopped_run_publishes(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    context.wanted = Desired.STOP
    raise_if_cancelled(context)
    result = registry.pipeline("toy.line").run({}, context)
    assert isinstance(result, LineResult)
    assert result.steps == 0
    assert (tmp_path / "models/line/manifest.json").exists()


def test_saving_takes_no_more_than_its_share_of_the_time() -> None:
    now = 0.0
    rhythm = SaveRhythm(60, lambda: now)
    assert not rhythm.due()
    now = 60.0
    assert rhythm.due()
    now = 63.0
    rhythm.saved()
    # 3 s is one hundredth of 300 s.
    now = 362.0
    assert not rhythm.due()
    now = 363.0
    assert rhythm.due()
    rhythm.saved()
    now = 422.0
    assert not rhythm.due()
    # A pause saves whenever it comes.
    rhythm.saved()
    now = 482.0
    assert rhythm.due()


class _Wants(LocalContext):
    def __init__(self, directory: Path, wanted: Desired, seconds: float) -> None:
        super().__init__(directory, checkpoint_seconds=seconds)
        self.wanted = wanted


@pytest.mark.parametrize(
    ("wanted", "seconds", "left", "early", "saved"),
    [
        (Desired.RUN, 1e9, None, False, False),
        (Desired.RUN, 0.0, None, False, True),
        (Desired.STOP, 1e9, None, True, False),
        (Desired.PAUSE, 1e9, JobPaused, False, True),
        (Desired.CANCEL, 0.0, JobCancelled, False, False),
    ],
)
def test_a_step_begins_by_obeying(
    tmp_path: Path,
    wanted: Desired,
    seconds: float,
    left: type[Exception] | None,
    early: bool,
    saved: bool,
) -> None:
    context = _Wants(tmp_path, wanted, seconds)
    if left is None:
        assert obey(context, lambda: b"state") is early
    else:
        with pytest.raises(left):
            obey(context, lambda: b"state")
    assert context.checkpoint.load() == (b"state" if saved else None)
    if left is None:
        obey(context, lambda: b"another", changed=False)
        assert context.checkpoint.load() != b"another"


def test_a_preview_is_json_of_a_bounded_size(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    context.preview("toy.line", {"z": (1.0, float("inf")), "name": "film"})
    assert context.previews == {"toy.line": {"z": [1.0, None], "name": "film"}}
    for kind, document in (
        ("Toy line", {}),
        ("toy", {"z": np.zeros(2)}),
        ("toy", {"z": [0.1] * 20_000}),
    ):
        with pytest.raises(ValueError, match="preview"):
            context.preview(kind, document)


def test_wrong_params_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        registry.pipeline("toy.line").run({"first_x": 2.0, "last_x": 1.0}, LocalContext(tmp_path))
    assert str(caught.value) == "last_x: got 1.0; must be larger than first_x, 2.0"


def test_entry_must_return_its_result(tmp_path: Path) -> None:
    wrong = replace(registry.pipeline("toy.line"), result=LineParams)
    with pytest.raises(TypeError, match="returned LineResult, not LineParams"):
        wrong.run({}, LocalContext(tmp_path))


def test_field_errors_hold_path_value_and_reason() -> None:
    with pytest.raises(ValidationError) as caught:
        LineParams.model_validate({"slope": 1000, "points": 1, "colour": "red"})
    faults = dict(field_errors(caught.value, "params"))
    assert faults["params.slope"].startswith("got 1000; ")
    assert faults["params.points"].startswith("got 1; ")
    assert "params.colour" in faults


def test_local_context_refuses_names_that_are_paths(tmp_path: Path) -> None:
    context = LocalContext(tmp_path)
    with pytest.raises(ValueError, match="artifact name"):
        context.artifact("../x", b"", "text/plain")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"inputs\.x: got nothing"),
        ({"x": np.zeros((2, 1)), "y": np.zeros(1)}, "inputs: got y"),
        ({"x": np.zeros((2, 1))}, r"inputs\.x: got float64 \[2, 1\]; must be FP32 \[-1, 1\]"),
        ({"x": np.zeros((2, 2), dtype=np.float32)}, r"inputs\.x: got float32 \[2, 2\]"),
        ({"x": np.zeros(2, dtype=np.float32)}, r"inputs\.x: got float32 \[2\]"),
    ],
)
def test_tensors_are_checked(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_tensors((TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),), tensors)


def test_optional_tensors_may_be_left_out() -> None:
    check_tensors((TensorSpec(name="x", datatype="FP32", shape=(-1, 1), optional=True),), {})


def test_pipeline_is_a_plain_description() -> None:
    pipeline = registry.pipeline("reflectometry.nr_sld")
    assert isinstance(pipeline, Pipeline)
    assert pipeline.entry.startswith("guidehall.science.reflectometry")
