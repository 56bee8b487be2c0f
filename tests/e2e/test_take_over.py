"""Work of other programs, taken over by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from tests.fixtures.platform import Platform
from tests.unit.science.reflectometry.test_import_model import STATISTICS, npy

pytestmark = pytest.mark.slow


def guidehall(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "guidehall.cli", "--endpoints", str(platform.data / "endpoints.json")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_a_network_of_pyreflect_is_published_and_answers(platform: Platform, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Cnn(CnnShape(3, 8, 5, 32, 20)).state_dict(), tmp_path / "old.pth")
    (tmp_path / "stats.npy").write_bytes(npy(STATISTICS))
    files = (str(tmp_path / "old.pth"), "--statistics", str(tmp_path / "stats.npy"))
    done = guidehall(
        platform, "reflectometry", "import-model", *files, "--model-name", "taken-over", "--json"
    )
    assert done.returncode == 0, done.stderr
    (version,) = json.loads(done.stdout)["model_versions"]
    q = np.geomspace(0.0081, 0.1975, 32, dtype=np.float32)[None]
    with platform.client() as client:
        answer = client.predict(version, {"q": q, "reflectivity": (0.008 / q) ** 4})
    assert answer.outputs["sld"].shape == (1, 20)
    assert np.isfinite(answer.outputs["sld"]).all()


def test_what_is_no_network_is_refused_before_anything_is_sent(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(b"no network")
    (tmp_path / "stats.npy").write_bytes(npy(STATISTICS))
    files = (str(tmp_path / "old.pth"), "--statistics", str(tmp_path / "stats.npy"))
    done = guidehall(platform, "reflectometry", "import-model", *files, "--model-name", "never")
    assert done.returncode == 2
    assert "weights: got" in done.stderr
    with platform.client() as client:
        assert not [item for item in client.datasets() if "never" in item.name]


def test_the_arrays_of_a_project_are_uploaded(platform: Platform, tmp_path: Path) -> None:
    folder = tmp_path / "old-project"
    folder.mkdir()
    (folder / "settings.yml").write_text("nr_predict_sld: {file: {nr_train: nr.npy}}\n")
    np.save(folder / "nr.npy", np.ones((5, 2, 308), dtype=np.float32))
    done = guidehall(platform, "reflectometry", "import-settings", str(folder))
    assert done.returncode == 0, done.stderr
    assert "datasets/old-project-nr_train/versions/1" in done.stdout
