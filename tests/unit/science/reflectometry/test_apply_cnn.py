"""Pipeline `reflectometry.apply_cnn`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guidehall.science.pipeline import LocalContext, UserError
from guidehall.science.reflectometry.cnn import apply, train
from guidehall.science.reflectometry.cnn.params import ApplyCnnParams, CnnParams

POINTS, PROFILE_POINTS = 32, 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network that was exported, its statistics and curves."""
    folder = tmp_path_factory.mktemp("trained")
    params = CnnParams.model_validate(
        {
            "model_name": "small",
            "curves": 20,
            "probe": {"points": POINTS, "resolution": 0.02, "scale": 1, "background": 0},
            "profile_points": PROFILE_POINTS,
            "network": {"layers": 2, "width": 8, "kernel": 5, "dropout": 0.0},
            "training": {"epochs": 1, "precision": "float32"},
            "export": True,
        }
    )
    train.run(params, LocalContext(folder, seed=1))
    return folder


def _context(folder: Path, trained: Path, curves: Path) -> LocalContext:
    files = {path.name: path for path in trained.rglob("*") if path.is_file()}
    statistics = next(path for name, path in files.items() if "stat" in name and name.endswith(".npy"))
    datasets = {"weights": files["small.pth"], "statistics": statistics, "experimental_nr": curves}
    return LocalContext(folder, seed=1, datasets=datasets)


def test_profiles_of_all_curves_are_kept_and_the_first_are_shown(trained: Path, tmp_path: Path) -> None:
    curves = next(trained.rglob("nr_train.npy"))

    result = apply.run(ApplyCnnParams(), _context(tmp_path, trained, curves))

    measured = np.load(curves)
    assert (result.curves, len(result.answers)) == (20, 20)
    answer = result.answers[0]
    np.testing.assert_allclose(answer.q, measured[0, 0], rtol=1e-6)
    np.testing.assert_allclose(answer.reflectivity, measured[0, 1], rtol=1e-6)
    assert len(answer.z) == len(answer.sld) == PROFILE_POINTS
    assert (np.diff(answer.z) >= 0).all()
    assert answer.predicted_reflectivity is None or len(answer.predicted_reflectivity) == POINTS
    assert np.load(next(tmp_path.rglob("profiles.npy"))).shape == (20, 2, PROFILE_POINTS)


def test_curves_that_are_too_short_for_the_network_are_refused(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.npy"
    np.save(path, np.load(next(trained.rglob("nr_train.npy")))[:1, :, 10:])
    with pytest.raises(UserError, match="must cover"):
        apply.run(ApplyCnnParams(), _context(tmp_path, trained, path))
