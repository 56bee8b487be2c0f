"""`guidehall demo`, as somebody runs it who has just installed everything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.image import imread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def cells(line: str) -> list[str]:
    """What stands in the columns of a table's line."""
    return re.split(r" {2,}", line.strip())


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's own, which is closed to the account that PostgreSQL runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="guidehall-demo-"))
    yield folder
    shutil.rmtree(folder)


def _command(folder: Path) -> tuple[list[str | Path], dict[str, str]]:
    command = [sys.executable, "-m", "guidehall.cli", "demo", "--data", folder / "data"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GUIDEHALL_")}
    return command, environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_the_demonstration_stops_everything_when_it_is_told_to_end(folder: Path) -> None:
    command, environ = _command(folder)
    with subprocess.Popen(command, env=environ, cwd=folder, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any(line.startswith("postgres    ready") for line in demo.stdout)
        demo.terminate()
        said = demo.stdout.read()
    assert demo.returncode == 130
    assert "postgres    stopped" in said


def test_the_demonstration_reads_a_measured_film_as_refnx_does(folder: Path) -> None:
    picture = folder / "film.png"
    command, environ = _command(folder)
    command += ["--plot", picture]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    rows = {found[0]: found for line in done.stdout.splitlines() if (found := cells(line))}
    assert rows["PARAMETER"][:5] == ["PARAMETER", "NETWORK", "REFINED", "REFNX", "ALLOWED"]
    # Both found the film, each by itself.
    for name, value, near in (("film.thickness", 211, 3), ("oxide.thickness", 13, 3)):
        _, _, refined, refnx, allowed, *_ = rows[f"{name}, Å"]
        lowest, highest = map(float, allowed.split(" to "))
        assert [float(refined), float(refnx)] == pytest.approx([value, value], abs=near)
        assert lowest < float(refined) < highest
    _, network, refined, refnx = rows["chi-square"]
    assert float(refined) == pytest.approx(float(refnx), rel=0.02)
    assert float(refined) < float(network)
    _, network, refined = rows["mean |Δ log10 R|"]
    assert float(network) <= 0.15
    assert float(refined) <= 0.03

    height, width, _ = imread(picture).shape
    assert min(height, width) >= 400
