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


def test_bars_come_first_and_what_is_not_met_before_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "RESULTS.md")
    # As it was measured when tables had no notes.
    older = "# Measured\n\n## platform\n\n| figure | value | unit | bar | met |\n|---|---|---|---|---|\n"
    older += "| start | 2 | s | aim 5 besides importing |  |\n| no bar | 1 | s |  |  |\n"
    older += "\n## gone\n\n| figure | value | unit | bar | met |\n|---|---|---|---|---|\n"
    older += "| x | 1 | s | <= 0 | no |\n"
    command.RESULTS.write_text(older)
    rows = [at_most("kept", 2.0, "s", 3.0, "a note"), at_most("broken", 4.0, "s", 3.0)]
    command._rewrite_results(
        {"reflectometry.training": command._markdown("reflectometry.training", "", rows)}
    )
    cuda = [at_least("CUDA torch kernel R+SLD", 4e6, "curves/s", 3e6)]
    for _ in range(2):
        # From what is kept of the file, and only once.
        command._rewrite_results(
            {"reflectometry.generation": command._markdown("reflectometry.generation", "", cuda)}
        )
    text = command.RESULTS.read_text()
    assert text.count("## Bars") == 1
    bars = text[text.index("## Bars") : text.index("## platform")]
    found = [(row["met"], row["group"], row["figure"], row["value"]) for row in command._cells(bars)]
    assert found == [
        ("no", "reflectometry.training", "broken", "4"),
        ("not measured", "reflectometry.cnn", "step, pyreflect / ours, bfloat16", ""),
        ("", "platform", "start", "2"),
        ("yes", "reflectometry.generation", "CUDA torch kernel R+SLD", "4e+06"),
        ("yes", "reflectometry.training", "kept", "2"),
    ]
    assert command._cells(bars)[-1]["note"] == "a note"
    assert "gone" not in text


def test_what_needs_other_hardware_is_a_figure_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "RESULTS.md")
    row = Row("step, pyreflect / ours, bfloat16", 1.0, "times", note="no bf16 here: that of float32")
    command._rewrite_results({"reflectometry.cnn": command._markdown("reflectometry.cnn", "", [row])})
    found = {
        (row["group"], row["figure"]): row["met"]
        for row in command._cells(command.RESULTS.read_text().split("\n## ")[1])
    }
    assert found == {(group, figure): "not measured" for group, figure, *_ in command.NOT_MEASURED}
    assert {group for group, *_ in command.NOT_MEASURED} <= set(command.GROUPS)
