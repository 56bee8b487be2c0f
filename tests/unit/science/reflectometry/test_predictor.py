from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from guidehall.science import registry
from guidehall.science.manifest import Example, InvalidModel, Manifest, sha256
from guidehall.science.pipeline import UserError, check_tensors
from guidehall.science.reflectometry.network import compress, resample
from guidehall.science.reflectometry.predictor import PhysicalPredictor

STORED = Path(__file__).parents[3] / "fixtures/reflectometry_physical_1"


@pytest.fixture(scope="module")
def model(small_model_folder: Path) -> PhysicalPredictor:
    folder = small_model_folder / "models/small"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    loaded = registry.load_predictor(manifest, (folder / "model.safetensors").read_bytes())
    assert isinstance(loaded, PhysicalPredictor)
    return loaded


def curves(
    model: PhysicalPredictor, q: np.ndarray, count: int = 3, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """True parameters and clean curves of random films."""
    generator = torch.Generator().manual_seed(seed)
    values = model.prior.values(torch.rand(count, len(model.prior.free), generator=generator))
    r = model.prior.measured(torch.from_numpy(q), torch.from_numpy(0.0212 * q), values)
    return values.numpy(), r.numpy().astype(np.float32)


def test_answers_in_physical_units(model: PhysicalPredictor) -> None:
    q = np.geomspace(0.01, 0.2, 150)
    values, r = curves(model, q, 20)
    answer = model.predict({"q": q[None].astype(np.float32), "reflectivity": r})
    check_tensors(model.outputs, answer)
    errors = np.abs(answer["parameters"] - values).mean(0)
    names = [free.name for free in model.prior.free]
    assert errors[names.index("film.thickness")] < 12
    assert errors[names.index("film.sld")] < 0.4
    assert np.abs(np.log10(answer["reflectivity"] / r)).mean() < 0.15
    np.testing.assert_allclose(answer["sld"][:, 0], 0.0, atol=1e-2)
    np.testing.assert_allclose(answer["sld"][:, -1], 2.07, atol=1e-2)


def test_padding_changes_no_answer(model: PhysicalPredictor) -> None:
    q = np.geomspace(0.01, 0.2, 60)
    _, r = curves(model, q, 2)
    q32 = np.stack([q, q]).astype(np.float32)
    tail = np.full((2, 5), np.nan, dtype=np.float32)
    alone = model.predict({"q": q32, "reflectivity": r})
    padded = model.predict({"q": np.hstack([q32, tail]), "reflectivity": np.hstack([r, tail])})
    for name in ("parameters", "sld"):
        np.testing.assert_allclose(padded[name], alone[name], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(padded["reflectivity"][:, :60], alone["reflectivity"], rtol=1e-4)
    assert np.isnan(padded["reflectivity"][:, 60:]).all()


def test_batch_order_and_size_do_not_matter(model: PhysicalPredictor) -> None:
    q = np.geomspace(0.01, 0.2, 60)
    _, r = curves(model, q, 5)
    q32 = q[None].astype(np.float32)
    batch = model.predict({"q": q32, "reflectivity": r})["parameters"]
    for row in range(5):
        one = model.predict({"q": q32, "reflectivity": r[row : row + 1]})["parameters"]
        np.testing.assert_allclose(one[0], batch[row], rtol=1e-4)


def test_given_resolution_is_used(model: PhysicalPredictor) -> None:
    q = np.geomspace(0.01, 0.2, 60)[None].astype(np.float32)
    _, r = curves(model, q[0].astype(np.float64), 1)
    sharp, blurred = (
        model.predict({"q": q, "reflectivity": r, "resolution": (width * q).astype(np.float32)})[
            "reflectivity"
        ]
        for width in (0.001, 0.05)
    )
    assert np.abs(np.diff(np.log10(sharp))).sum() > 1.2 * np.abs(np.diff(np.log10(blurred))).sum()


def test_given_errors_are_used(model: PhysicalPredictor) -> None:
    """Of two curves with the same points, the network trusts the one that was measured longer."""
    q = np.geomspace(0.01, 0.2, 60)
    values, clean = curves(model, q, 200)
    dr = np.sqrt((0.02 * clean) ** 2 + clean / 1e5).astype(np.float32)
    r = clean + dr * np.random.default_rng(2).standard_normal(clean.shape).astype(np.float32)
    told, untold, wrong = (
        model.predict({"q": q[None].astype(np.float32), "reflectivity": r, **errors})["parameters"]
        for errors in ({"error": dr}, {}, {"error": np.full_like(r, 1e-12)})
    )
    spread = values.std(0)
    miss_told, miss_untold, miss_wrong = (
        float((np.abs(answer - values) / spread).mean()) for answer in (told, untold, wrong)
    )
    assert miss_told < miss_untold < miss_wrong


def test_points_that_are_not_positive_are_kept(model: PhysicalPredictor) -> None:
    q = np.geomspace(0.01, 0.2, 60)
    _, r = curves(model, q, 1)
    r[0, -3:] = [0.0, -1e-6, -1.0]
    answer = model.predict({"q": q[None].astype(np.float32), "reflectivity": r})
    assert all(np.isfinite(array).all() for array in answer.values())


def wrong_inputs() -> list[tuple[dict[str, Any], str]]:
    q = np.geomspace(0.01, 0.2, 20, dtype=np.float32)[None]
    r = np.ones((1, 20), dtype=np.float32)

    def put(array: np.ndarray, column: int, value: float) -> np.ndarray:
        changed = array.copy()
        changed[0, column] = value
        return changed

    nan = float("nan")
    return [
        ({"q": q}, r"inputs\.reflectivity: got nothing"),
        ({"q": q, "reflectivity": r.astype(np.float64)}, "must be FP32"),
        ({"q": q[:, :5], "reflectivity": r}, r"inputs\.q: got \[1, 5\]; must be \[1, 20\]"),
        ({"q": q[:, :1], "reflectivity": r[:, :1]}, "2 to 20000 points"),
        ({"q": q[:0], "reflectivity": r[:0]}, "1 or more rows"),
        ({"q": put(q, 3, nan), "reflectivity": r}, r"inputs\.q\[0\]\[3\]: got nan; NaN may only come after"),
        ({"q": put(q, 3, -1), "reflectivity": r}, r"inputs\.q\[0\]\[3\]: got -1\.0; must be positive"),
        ({"q": put(q, 3, 0.19), "reflectivity": r}, r"inputs\.q\[0\]\[4\].*must not be smaller"),
        ({"q": q, "reflectivity": put(r, 7, nan)}, r"inputs\.reflectivity\[0\]\[7\]: got nan"),
        ({"q": q, "reflectivity": put(r, 7, np.inf)}, r"inputs\.reflectivity\[0\]\[7\]: got inf"),
        ({"q": q, "reflectivity": r, "resolution": q}, r"inputs\.resolution\[0\]\[0\]"),
        (
            {"q": q, "reflectivity": r, "error": put(r, 2, 0)},
            r"inputs\.error\[0\]\[2\]: got 0\.0; must be pos",
        ),
        ({"q": q, "reflectivity": r, "error": put(r, 2, nan)}, r"inputs\.error\[0\]\[2\]: got nan"),
        ({"q": np.full_like(q, nan), "reflectivity": r}, "at least two points"),
        ({"q": q * 5, "reflectivity": r}, r"inputs\.q: got .* % covered in row 0; the model needs half"),
    ]


@pytest.mark.parametrize(("inputs", "message"), wrong_inputs())
def test_refuses_naming_the_place(
    model: PhysicalPredictor, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.predict(inputs)


def test_a_stored_model_of_version_1_stays_loadable() -> None:
    manifest = Manifest.from_json((STORED / "manifest.json").read_bytes())
    model = registry.load_predictor(manifest, (STORED / "model.safetensors").read_bytes())
    assert manifest.architecture == "reflectometry.physical/1"
    assert [spec.name for spec in model.outputs] == ["parameters", "z", "sld", "reflectivity"]


def test_weights_take_as_much_memory_as_their_file() -> None:
    document = json.loads((STORED / "manifest.json").read_bytes())
    tensors = safetensors.numpy.load((STORED / "model.safetensors").read_bytes())
    halves = safetensors.numpy.save({name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    document["weights_sha256"] = sha256(halves)
    with pytest.raises(InvalidModel, match=r"weights: got torch\.float16; allowed: torch\.float32"):
        registry.load_predictor(Manifest.from_document(document), halves)


def test_wording_of_tensors_may_change_between_releases() -> None:
    document = json.loads((STORED / "manifest.json").read_bytes())
    document["inputs"][0]["description"] = "As an older release put it."
    weights = (STORED / "model.safetensors").read_bytes()
    registry.load_predictor(Manifest.from_document(document), weights)


def test_huge_arguments_take_no_memory() -> None:
    document = json.loads((STORED / "manifest.json").read_bytes())
    document["arguments"] |= {"width": 2048, "depth": 32}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidModel, match="weights"):
        registry.load_predictor(Manifest.from_document(document), (STORED / "model.safetensors").read_bytes())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, "weights: they are not those"),
        ({"width": 1_000_000}, r"arguments\.width"),
        ({"surprise": 1}, r"arguments\.surprise"),
    ],
)
def test_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    document = json.loads((STORED / "manifest.json").read_bytes())
    document["arguments"] |= change
    with pytest.raises(InvalidModel, match=message):
        registry.load_predictor(Manifest.from_document(document), (STORED / "model.safetensors").read_bytes())


@pytest.mark.parametrize(
    "weights",
    [b"", b"\x80\x04garbage", safetensors.numpy.save({"a": np.zeros(3)})],
    ids=["empty", "pickle", "other"],
)
def test_refuses_files_that_are_not_its_weights(weights: bytes) -> None:
    document = json.loads((STORED / "manifest.json").read_bytes()) | {"weights_sha256": sha256(weights)}
    with pytest.raises(InvalidModel, match="weights"):
        registry.load_predictor(Manifest.from_document(document), weights)


def test_example_of_the_stored_model_is_checked() -> None:
    manifest = Manifest.from_json((STORED / "manifest.json").read_bytes())
    outputs = {name: item.array("FP32") * 1.01 for name, item in manifest.example.outputs.items()}
    inputs = {name: item.array("FP32") for name, item in manifest.example.inputs.items()}
    wrong = manifest.model_copy(update={"example": Example.of(inputs, outputs)})
    with pytest.raises(InvalidModel, match="example"):
        registry.load_predictor(wrong, (STORED / "model.safetensors").read_bytes())


def test_compression_is_log10_above_the_floor_and_smooth_through_zero() -> None:
    r = torch.tensor([1.0, 1e-3, 1e-5], dtype=torch.float64)
    torch.testing.assert_close(compress(r), r.log10(), atol=1e-4, rtol=0)
    ascending = compress(torch.linspace(-1e-6, 1e-6, 101, dtype=torch.float64))
    assert bool((ascending.diff() > 0).all())


def test_resampling_on_the_own_grid_changes_nothing() -> None:
    grid = torch.logspace(-2, -0.7, 40, dtype=torch.float64)
    r = torch.rand(2, 40, dtype=torch.float64) + 0.1
    (value,), known = resample(grid.expand(2, -1), compress(r)[None], grid)
    assert bool(known.all())
    torch.testing.assert_close(value, compress(r))


def test_resampling_marks_what_was_not_measured() -> None:
    grid = torch.logspace(-2, -0.7, 40, dtype=torch.float64)
    q = grid[10:30].expand(1, -1)
    (value,), known = resample(q, torch.ones(1, *q.shape), grid)
    assert known[0].tolist() == [10 <= i < 30 for i in range(40)]
    assert float(value[~known].abs().max()) == 0.0
