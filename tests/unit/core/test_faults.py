"""Labelled fault points: found in the code, unique, without effect until the environment arms them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from guidehall.core.faults import VARIABLE, FaultPlan
from tests.chaos.points import Faults, points, points_of

_PROCESSES = {"services/storage": "storage", "services/trainer/worker/child_": "child",
              "services/trainer/worker": "worker", "services/trainer": "trainer"}  # fmt: skip
_VISITOR = "from guidehall.core.faults import fault_point\nfor _ in range(3):\n    fault_point('a.b.c')\n"


def visitor(**environ: str) -> subprocess.CompletedProcess[str]:
    """A process that comes to one point three times."""
    command = [sys.executable, "-c", _VISITOR]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)


def test_labels_are_unique_and_name_the_process_they_are_in() -> None:
    found = points()
    assert len(found) >= 50
    twice = [label for label, count in Counter(point.label for point in found).items() if count > 1]
    assert twice == []
    for point in found:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+\.[a-z_]+", point.label), point
        process = next(name for prefix, name in _PROCESSES.items() if point.path.startswith(prefix))
        assert point.label.startswith(f"{process}."), point


def test_a_label_that_the_scan_cannot_read_is_refused() -> None:
    assert [point.label for point in points_of("faults.fault_point('x.y.z')", "m.py")] == ["x.y.z"]
    with pytest.raises(ValueError, match=r"m\.py:1"):
        list(points_of("fault_point(f'x.{y}')", "m.py"))


def test_unarmed_nothing_happens(tmp_path: Path) -> None:
    Faults(tmp_path).arm("a.b.c")
    assert visitor().returncode == 0


def test_killed_at_the_visit_that_was_armed_and_not_again(tmp_path: Path) -> None:
    plan = Faults(tmp_path)
    plan.arm("a.b.c", visit=2)
    environ = {VARIABLE: str(tmp_path)}
    assert visitor(**environ).returncode == -signal.SIGKILL
    assert [visit.action for visit in plan.visits()] == ["", "kill"]
    # A supervisor would start it again.
    again = visitor(**environ)
    assert again.returncode == 0
    assert VARIABLE in again.stderr
    assert len(plan.visits()) == 5
    acted = plan.acted("a.b.c")
    assert acted is not None
    assert plan.phase(acted.pid) == "a.b.c"


def test_another_label_is_left_alone(tmp_path: Path) -> None:
    Faults(tmp_path).arm("a.b.d")
    assert visitor(**{VARIABLE: str(tmp_path)}).returncode == 0


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="writable by no other"):
        FaultPlan(tmp_path)
