"""The script `run`: what it makes of a broken virtual environment, and of a Python that will not do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]


def _run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of the script, so that nothing here is touched; its pip finds no index to install from."""
    for name in ("run", "pyproject.toml", "constraints.txt", "hatch_build.py"):
        shutil.copy2(_ROOT / name, folder)
    # What is installed depends on the source of the compiled engine.
    native = Path("guidehall/science/reflectometry/native")
    (folder / native).mkdir(parents=True, exist_ok=True)
    for source in (_ROOT / native).glob("*.[ch]"):
        shutil.copy2(source, folder / native)
    environment = {name: value for name, value in os.environ.items() if name[:9] != "GUIDEHALL"}
    environment |= {"GUIDEHALL_PYTHON": sys.executable, "PIP_NO_INDEX": "1", **variables}
    return subprocess.run(
        [folder / "run", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def _pip_works(folder: Path) -> bool:
    command = [folder / ".venv/bin/python", "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False])
def test_virtual_environment_whose_making_was_interrupted_is_made_anew(tmp_path: Path, marked: bool) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    left = tmp_path / ".venv" / ("left-over" if marked else "kept")
    left.touch()
    if marked:
        (tmp_path / ".venv/.guidehall-unfinished").touch()

    done = _run(tmp_path, "setup", "demo")

    assert "No module named pip" not in done.stderr
    assert "torch" in done.stderr
    assert _pip_works(tmp_path)
    assert left.exists() is not marked
    assert not (tmp_path / ".venv/.guidehall-unfinished").exists()


def test_python_that_was_named_and_does_not_do_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, "setup", "demo", GUIDEHALL_PYTHON="/nowhere/python3")

    assert done.returncode == 1
    assert "GUIDEHALL_PYTHON names '/nowhere/python3'" in done.stderr
    assert not (tmp_path / ".venv").exists()
