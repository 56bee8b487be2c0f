"""Every pipeline that takes long, interrupted at several places, ends as one that was left alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guidehall.science import registry
from guidehall.science.pipeline import Checkpoint, Desired, LocalContext
from tests.fixtures.reflectometry import timeless
from tests.unit.science.reflectometry.test_chi import CHAIN, TINY, datasets
from tests.unit.science.reflectometry.test_cnn_training import small
from tests.unit.science.reflectometry.test_infer import FILM, WATER, simulated, write
from tests.unit.science.reflectometry.test_training import tiny

Files = dict[str, Path]


class Killed(Exception):
    """Stands for the end of the process."""


class Dies(LocalContext):
    """Ends when it is asked for the n-th time what is wanted. Saves at every `every`-th question."""

    def __init__(self, directory: Path, at: int, every: int, **options: Any) -> None:
        super().__init__(directory, **options)
        self._at, self._every, self.asked = at, every, 0
        self.checkpoint = Often(self, self.checkpoint)

    def desired(self) -> Desired:
        self.asked += 1
        if self.asked == self._at:
            raise Killed
        return Desired.RUN

    @property
    def due(self) -> bool:
        return self.asked % self._every == 0


class Often:
    """A checkpoint that is due at each n-th question."""

    def __init__(self, context: Dies, inner: Checkpoint) -> None:
        self._context, self.load, self.save = context, inner.load, inner.save

    def due(self) -> bool:
        return self._context.due


def nothing(_: Path) -> Files:
    return {}


def profiles(folder: Path) -> Files:
    return datasets(folder, 60)


def curves(folder: Path) -> Files:
    films = (
        simulated(FILM, [*WATER[:2], thickness, *WATER[3:]], seed=1, points=30) for thickness in (200, 210)
    )
    return {"curves": write(folder / "films.ort", *films)}


CASES: dict[str, tuple[dict[str, Any], Callable[[Path], Files]]] = {
    "reflectometry.nr_sld": (tiny(), nothing),
    "reflectometry.pyreflect_cnn": (small(), nothing),
    "reflectometry.sld_chi": (TINY, profiles),
    "reflectometry.nr_sld_chi": (CHAIN, profiles),
    "reflectometry.infer": ({"stack": FILM, "relation": "series", "starts": 4, "samples": 0}, curves),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline, its parameters, its files, and what an uninterrupted run leaves."""
    name: str = request.param
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").mkdir()
    params, make = CASES[name]
    files = make(folder / "data")
    context = Dies(folder / "run", 0, 10**9, seed=5, datasets=files)
    return name, params, files, left_by(name, params, context), context.asked


def left_by(name: str, params: dict[str, Any], context: LocalContext) -> dict[str, Any]:
    """The result but for its timing, and every file but for pictures' and the checkpoint's."""
    result = timeless(registry.pipeline(name).run(params, context))
    files = {
        str(path.relative_to(context.directory)): path.read_bytes()
        for path in sorted(context.directory.rglob("*"))
        if path.is_file() and path.name != "checkpoint"
    }
    return {"result": result, **files}


# Before the first checkpoint, right before one, right after one, and near the end, in eighths of a run.
@pytest.mark.parametrize(("eighths", "after"), [(0, 1), (4, 0), (4, 1), (7, 1)])
def test_a_run_that_is_killed_ends_as_one_that_was_not(
    tmp_path: Path, case: Any, eighths: int, after: int
) -> None:
    name, params, files, whole, asked = case
    every = max(2, asked // 8)
    at = min(eighths * every + after, asked)
    with pytest.raises(Killed):
        registry.pipeline(name).run(params, Dies(tmp_path, at, every, seed=5, datasets=files))
    # Half-way, the first of two curves may not be fitted yet: then there is nothing to save.
    if not (name.endswith("infer") and eighths == 4):
        assert (tmp_path / "checkpoint").exists() == (eighths > 0)
    # Its own outputs are lost, as those of a lost lease are.
    for kept in ("artifacts", "models"):
        shutil.rmtree(tmp_path / kept, ignore_errors=True)
    assert left_by(name, params, LocalContext(tmp_path, seed=5, datasets=files)) == whole
