"""Each group of benchmarks runs, at sizes that measure nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.jobs import dispatch, reading
from benchmarks.reflectometry import (
    cnn,
    contrasts,
    five_layers,
    generation,
    posterior,
    refinement,
    resolution,
    training,
)
from benchmarks.rows import Row

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(five_layers, "CACHE", tmp_path)


def sound(rows: list[Row]) -> None:
    assert rows
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert math.isfinite(row.value)
        assert (row.met is None) == (row.bar == "")
        assert "|" not in row.name + row.note


def test_generation() -> None:
    sound(generation.run(True, curves=8))


def test_cnn() -> None:
    sound(cnn.run(True))


def test_training_and_refinement() -> None:
    sound(training.run(True, steps=10, curves=20))
    assert len(list(five_layers.CACHE.iterdir())) == 1
    sound(refinement.run(True, curves=4, steps=10))


def test_posterior() -> None:
    sound(posterior.run(True, two=5, five=1, samples=100))


def test_resolution() -> None:
    sound(resolution.run(True, films=1, samples=100))


def test_contrasts() -> None:
    sound(contrasts.run(True, generations=2))


def test_jobs() -> None:
    sound(dispatch.run(True, rounds=1, starts=1, jobs=2, memory_jobs=2))
    sound(reading.run(True, jobs=120, calls=2, watchers=3))
