from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.rows import Row, at_least, at_most, interleaved_cpu_seconds


def test_bars() -> None:
    assert at_least("rate", 8.0, "times", 8.0).met
    assert not at_least("rate", 7.9, "times", 8.0).met
    assert at_most("error", 0.1, "", 0.1).bar == "<= 0.1"
    assert not at_most("error", 0.2, "", 0.1).met


def test_runs_in_turn() -> None:
    order: list[str] = []
    seconds = interleaved_cpu_seconds(2, {name: lambda name=name: order.append(name) for name in "ab"})
    assert "".join(order) == "ababab"
    assert set(seconds) == {"a", "b"}


def test_results_keep_what_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "RESULTS.md")
    table = command._markdown("platform", "./run bench platform", [Row("one", 1.0, "s")])
    command._rewrite_results({"platform": table})
    other = command._markdown("reflectometry.training", "./run bench", [at_most("two", 2.0, "s", 3.0)])
    command._rewrite_results({"reflectometry.training": other})
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("| one | 1 | s |") < text.index("| two | 2 | s | <= 3 | yes |")
