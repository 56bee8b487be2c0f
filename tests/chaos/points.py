"""The labelled points of the code, arming them, and what was visited."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guidehall.core.faults import ARMED_FOLDER, VISITS_FILE

ROOT = Path(__file__).parents[2]
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Point:
    """One call of `fault_point` in the code."""

    label: str
    path: str
    line: int


def points() -> list[Point]:
    """Every labelled point, found in the code.

    Raises:
        ValueError: a label that is not written there as it is.
    """
    return [
        point
        for package in ("guidehall", "services")
        for path in sorted((ROOT / package).rglob("*.py"))
        for point in points_of(path.read_text(), str(path.relative_to(ROOT)))
    ]


def points_of(source: str, path: str) -> Iterator[Point]:
    """The points of one module; `path` is only told."""
    if "fault_point" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and _name(node.func) == "fault_point"):
            continue
        match node.args, node.keywords:
            case [ast.Constant(value=str(label))], []:
                yield Point(label, path, node.lineno)
            case _:
                raise ValueError(f"{path}:{node.lineno}: the label must be one literal")


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@dataclass(frozen=True)
class Visit:
    """A process passed a point; `action` is what was done to it there, empty for nothing."""

    time: float
    pid: int
    label: str
    action: str


class Faults:
    """The folder that `GUIDEHALL_FAULTS` names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ARMED_FOLDER).mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)

    def arm(self, label: str, action: str = "kill", visit: int = 1) -> None:
        """The process that comes to `label` for the `visit`-th time from now on is ended or frozen."""
        # Whole at once: it may be read at any moment.
        new = self.folder / f".{label}"
        new.write_text(f"{action} {visit}")
        new.rename(self.folder / ARMED_FOLDER / label)

    def disarm(self) -> None:
        """Nothing happens anywhere any more."""
        for path in (self.folder / ARMED_FOLDER).iterdir():
            path.unlink(missing_ok=True)

    def visits(self) -> list[Visit]:
        """All visits so far, in order."""
        file = self.folder / VISITS_FILE
        return _visits(file.read_text()) if file.exists() else []

    def acted(self, label: str) -> Visit | None:
        """The newest visit of `label` at which something was done."""
        return next((v for v in reversed(self.visits()) if v.label == label and v.action), None)

    def phase(self, pid: int | None = None) -> str:
        """The label that a process, or any at all, passed last; empty if none lately."""
        file = self.folder / VISITS_FILE
        if not file.exists():
            return ""
        with file.open("rb") as visits:
            visits.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            tail = visits.read().decode().partition("\n")[2]
        return next((v.label for v in reversed(_visits(tail)) if pid in (None, v.pid)), "")


def _visits(text: str) -> list[Visit]:
    lines = (line.split(" ") for line in text.splitlines() if line.count(" ") == 3)
    return [Visit(float(time), int(pid), label, action) for time, pid, label, action in lines]
