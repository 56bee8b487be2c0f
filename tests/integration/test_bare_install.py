"""`pip install guidehall` alone: the client and the command line, and nothing that only a service needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from guidehall import __version__
from tests.fixtures.packages import Pip
from tests.fixtures.trainer import TrainerSite

# Packages come over the network.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# One of each extra.
HEAVY = [
    "torch",
    "scipy",
    "h5py",
    "matplotlib",
    "pydantic",
    "fastapi",
    "sqlalchemy",
    "nats",
    "minio",
    "refnx",
]
PROGRAM = """
import importlib.util, json, sys
import guidehall.client
endpoints, token, heavy = json.loads(sys.argv[1])
with guidehall.client.Client(endpoints, token) as client:
    names = [pipeline.name for pipeline in client.pipelines()]
installed = [name for name in heavy if importlib.util.find_spec(name)]
print(json.dumps([guidehall.client.__file__, names, installed]))
"""


@pytest.fixture(scope="module")
def programs(pip: Pip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of an environment are that has the bare package, built as pip builds it."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    shutil.copytree(ROOT / "guidehall", source / "guidehall", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", symlinks=True)
    programs = folder / "venv/bin"
    pip("--python", programs / "python", "install", "--constraint", ROOT / "constraints.txt", source)
    return programs


def run(*command: str | Path) -> str:
    """What a program prints that sees nothing of this checkout."""
    environ = {"PATH": os.environ["PATH"]}
    folder = Path(command[0]).parent
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bare_package_is_a_working_client(programs: Path, trainer: TrainerSite) -> None:
    assert run(programs / "guidehall", "--version").split()[-1] == __version__
    told = [{"trainer": trainer.target}, trainer.token("ada"), HEAVY]
    file, names, installed = json.loads(
        run(programs / "python", "-W", "error", "-c", PROGRAM, json.dumps(told))
    )
    assert Path(file).is_relative_to(programs.parent)
    assert "toy.line" in names
    assert installed == []
