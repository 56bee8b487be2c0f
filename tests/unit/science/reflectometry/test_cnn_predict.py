"""Pipeline `reflectometry.pyreflect_predict`, with a network that answers every curve with one profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from guidehall.science import registry
from guidehall.science.pipeline import Desired, JobCancelled, LocalContext, UserError
from guidehall.science.reflectometry import engine, export
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from guidehall.science.reflectometry.cnn.params import PredictResult
from guidehall.science.reflectometry.curves import Curve, Metadata
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.resolution import resolution
from tests.fixtures.reflectometry import AfterSteps

POINTS, PROFILE_POINTS = 32, 600
Q = np.geomspace(0.009, 0.19, 150)
EXTENTS = {
    "nr": {"x": {"min": 0.01, "max": 0.18}, "y": {"min": -7.5, "max": 0.01}},
    "sld": {"x": {"min": 0.0, "max": 400.0}, "y": {"min": -0.5, "max": 6.5}},
}
# Air, polymer, silicon.
FILM = Media.of(np.array([0.0, 4.0, 2.07]), np.array([180.0]), np.array([8.0, 4.0]))


def curve_of(relative_sigma: float) -> Curve:
    seen = resolution(Q, relative_sigma * Q, "refl1d")
    r = engine.blur(seen, engine.reflectivity(seen.q, FILM))[0].numpy()
    return Curve(q=Q, r=r, dr=0.05 * r, dq=relative_sigma * Q if relative_sigma else None)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("network")
    backing_first = FILM.reversed()
    z, sld = engine.sampled_profile(backing_first, backing_first.sld, PROFILE_POINTS)
    answer = torch.cat([(z[0] - z[0, 0]) / 400.0, (sld[0] + 0.5) / 7.0])
    cnn = Cnn(CnnShape(2, 8, 5, POINTS, PROFILE_POINTS))
    with torch.no_grad():
        cnn.linear1.weight.zero_()
        cnn.linear1.bias.copy_(answer)
    paths = {"weights": folder / "weights.safetensors", "statistics": folder / "statistics.json"}
    safetensors.torch.save_file(dict(cnn.state_dict()), paths["weights"])
    paths["statistics"].write_text(json.dumps(EXTENTS))
    return paths


def predict(
    folder: Path, network: dict[str, Path], data: bytes | np.ndarray, **params: Any
) -> tuple[PredictResult, LocalContext]:
    folder.mkdir(exist_ok=True)
    path = folder / ("curves.npy" if isinstance(data, np.ndarray) else "curves.ort")
    if isinstance(data, np.ndarray):
        np.save(path, data)
    else:
        path.write_bytes(data)
    context = LocalContext(folder, seed=1, datasets=network | {"experimental_nr": path})
    result = registry.pipeline("reflectometry.pyreflect_predict").run(params, context)
    assert isinstance(result, PredictResult)
    return result, context


def test_a_right_answer_leaves_next_to_nothing(network: dict[str, Path], tmp_path: Path) -> None:
    curve = curve_of(0.0125)
    result, _ = predict(tmp_path, network, np.stack([curve.q, curve.r])[None])
    assert result.curves == 1
    (answer,), (misfit,) = result.answers, result.misfits
    np.testing.assert_allclose(answer.q, curve.q)
    np.testing.assert_allclose(answer.reflectivity, curve.r)
    assert len(answer.z) == len(answer.sld) == PROFILE_POINTS
    # From silicon to air.
    assert (answer.sld[0], answer.sld[-1]) == (pytest.approx(2.07, abs=0.01), pytest.approx(0.0, abs=0.01))
    assert answer.z[0] == pytest.approx(0.0, abs=0.1)
    assert answer.z == sorted(answer.z)
    assert answer.predicted_reflectivity is not None
    np.testing.assert_allclose(answer.predicted_reflectivity, curve.r, rtol=0.1)
    assert (misfit.name, misfit.points, misfit.chi_square_per_point) == ("0", 150, None)
    assert misfit.mean_abs_log10_error is not None
    assert misfit.mean_abs_log10_error < 0.01
    assert result.residuals.mean_abs == pytest.approx(misfit.mean_abs_log10_error)
    assert (result.residuals.curves, result.residuals.unphysical) == (1, 0)
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_resolution_is_that_of_the_file_or_else_the_one_given(
    network: dict[str, Path], tmp_path: Path
) -> None:
    wide = curve_of(0.05)
    bare = np.stack([wide.q, wide.r])[None]
    errors = {}
    for name, data, params in (
        ("file", export.to_ort(wide), {}),
        ("given", bare, {"resolution": 0.05}),
        ("given as width", bare, {"resolution": 0.05 * 2.3548, "resolution_convention": "fwhm"}),
        ("default", bare, {}),
    ):
        (misfit,) = predict(tmp_path / name, network, data, **params)[0].misfits
        errors[name] = misfit.mean_abs_log10_error
    assert max(errors["file"], errors["given"], errors["given as width"]) < 0.01
    assert errors["default"] > 0.05


def test_notes_name_their_curves(network: dict[str, Path], tmp_path: Path) -> None:
    wide = curve_of(0.05)
    result, _ = predict(tmp_path / "file", network, export.to_ort(wide))
    assert not [note for note in result.notes if note.code == "RESOLUTION_ASSUMED"]
    bare = np.stack([wide.q, wide.r])[None].repeat(2, 0)
    result, _ = predict(tmp_path / "bare", network, bare, resolution=0.05)
    assumed = [note.message for note in result.notes if note.code == "RESOLUTION_ASSUMED"]
    said = (
        "the curve has no dq; 0.05 q (one standard deviation; full width at half maximum 0.118 q) was assumed"
    )
    assert assumed == [f"0: {said}", f"1: {said}"]
    # In percent, which the file says of R.
    head = "# q (1/angstrom), R (%)\n"
    rows = "".join(f"{q:.8e} {100 * r:.8e}\n" for q, r in zip(wide.q, wide.r, strict=True))
    result, _ = predict(tmp_path / "text", network, (head + rows).encode())
    read = [note.message for note in result.notes if note.code == "FILE_READ"]
    assert read
    assert all(message.startswith("1: ") for message in read)


def test_error_bars_give_a_chi_square(network: dict[str, Path], tmp_path: Path) -> None:
    curve = curve_of(0.0125)
    shifted = replace(curve, r=curve.r * 1.1)
    (right,), (wrong,) = (
        predict(tmp_path / name, network, export.to_ort(item))[0].misfits
        for name, item in (("right", curve), ("wrong", shifted))
    )
    assert right.chi_square_per_point is not None
    assert right.chi_square_per_point < 0.2
    # A tenth of R is two of its error bars, which are relative to the R before.
    assert wrong.chi_square_per_point == pytest.approx(4.0, rel=0.2)


def test_all_profiles_are_kept_and_the_first_curves_shown(network: dict[str, Path], tmp_path: Path) -> None:
    curve = curve_of(0.0125)
    many = np.broadcast_to(np.stack([curve.q, curve.r]), (12, 2, len(Q)))
    result, context = predict(tmp_path, network, many)
    assert (result.curves, len(result.answers), len(result.misfits)) == (12, 10, 12)
    profiles = np.load(tmp_path / "artifacts/profiles.npy")
    assert (profiles.shape, profiles.dtype) == ((12, 2, PROFILE_POINTS), np.float32)
    np.testing.assert_allclose(profiles[11, 1], result.answers[0].sld, rtol=1e-5, atol=1e-5)
    names = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert {"curve-1-prediction.png", "curve-10-prediction.svg"} <= names
    assert "curve-11-prediction.png" not in names
    assert [report["step"] for report in context.reports][-1] == 12


def test_curves_of_one_file_have_their_names_and_their_own_grids(
    network: dict[str, Path], tmp_path: Path
) -> None:
    one = curve_of(0.0125)
    other = Curve(*(part[:-1] for part in (one.q, one.r, one.dr, one.dq)))
    curves = [
        replace(item, metadata=Metadata(data_set=name))
        for item, name in ((one, "dry"), (other, "after a day"))
    ]
    result, _ = predict(tmp_path, network, export.join_ort(curves))
    assert [(item.name, item.points) for item in result.misfits] == [("dry", 150), ("after a day", 149)]
    assert result.residuals.curves == 2


def test_points_that_the_network_does_not_see_are_left_out_of_its_error(
    network: dict[str, Path], tmp_path: Path
) -> None:
    curve = curve_of(0.0125)
    r = curve.r.copy()
    r[-20:] = -1e-7
    (misfit,) = predict(tmp_path, network, np.stack([curve.q, r])[None])[0].misfits
    assert misfit.mean_abs_log10_error is not None
    assert misfit.mean_abs_log10_error < 0.01


def test_the_side_of_the_beam_counts(network: dict[str, Path], tmp_path: Path) -> None:
    curve = curve_of(0.0125)
    bare = np.stack([curve.q, curve.r])[None]
    (misfit,) = predict(tmp_path, network, bare, beam="backing")[0].misfits
    assert misfit.mean_abs_log10_error is not None
    assert misfit.mean_abs_log10_error > 0.05


def test_an_answer_that_is_no_profile_has_no_curve(network: dict[str, Path], tmp_path: Path) -> None:
    state = safetensors.torch.load_file(network["weights"])
    state["linear1.bias"] = torch.zeros_like(state["linear1.bias"])
    flat = network | {"weights": tmp_path / "flat.safetensors"}
    safetensors.torch.save_file(state, flat["weights"])
    curve = curve_of(0.0125)
    result, _ = predict(tmp_path, flat, np.stack([curve.q, curve.r])[None])
    assert result.answers[0].predicted_reflectivity is None
    assert result.misfits[0].mean_abs_log10_error is None
    assert (result.residuals.curves, result.residuals.unphysical) == (0, 1)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (np.stack([Q[20:], np.ones(130)]), "inputs.experimental_nr"),
        (np.zeros((1, 5, 40)), "inputs.experimental_nr"),
        (b"not a curve", "inputs.experimental_nr"),
        (np.stack([Q, np.ones(150), np.ones(150), 0.01 * Q]), "dq_convention"),
        (np.broadcast_to(np.stack([Q, np.ones(150)]), (1001, 2, 150)), "inputs.experimental_nr"),
    ],
)
def test_curves_that_it_cannot_read_are_refused(
    network: dict[str, Path], tmp_path: Path, data: Any, field: str
) -> None:
    with pytest.raises(UserError) as caught:
        predict(tmp_path, network, data)
    assert caught.value.field.partition(":")[0].startswith(field)


def test_what_does_not_cover_the_trained_range_is_named(network: dict[str, Path], tmp_path: Path) -> None:
    curves = np.stack([np.stack([Q, np.ones(150)]), np.stack([Q + 0.05, np.ones(150)])])
    with pytest.raises(UserError, match=r"curve 1: .*must cover 0\.01 to 0\.18"):
        predict(tmp_path, network, curves)


def test_cancellation_is_heard(network: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "curves.npy"
    np.save(path, np.broadcast_to(np.stack([Q, np.ones(150)]), (5, 2, 150)))
    files = network | {"experimental_nr": path}
    context = AfterSteps(tmp_path, 2, Desired.CANCEL, datasets=files)
    with pytest.raises(JobCancelled):
        registry.pipeline("reflectometry.pyreflect_predict").run({}, context)
    assert len(context.reports) == 2
