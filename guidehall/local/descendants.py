"""What /proc tells about processes: who descends from whom, who works where, and who someone is even if
numbers are reused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
# Fields of /proc/PID/stat after the name in parentheses, counted from 0.
_STATE, _PARENT, _START = 0, 1, 19


def descendants(pid: int) -> list[int]:
    """The children of `pid`, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    found: list[int] = []
    pending = [pid]
    while pending:
        mine = children.get(pending.pop(), [])
        found += mine
        pending += mine
    return found


def working_in(folder: Path) -> list[int]:
    """Processes whose current folder is `folder`, as far as we may see."""
    found = []
    for entry in _PROC.iterdir():
        # They come and go, and others' are not shown.
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
    return found


def identity(pid: int) -> str | None:
    """Text that no other process on this machine ever has: boot, start time; None if `pid` does not run."""
    fields = _stat(pid)
    if not fields or fields[_STATE] in "ZX":
        return None
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{pid}:{fields[_START]}"


def name_of(pid: int) -> str:
    """The name of the program that `pid` runs; empty if it does not run."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat(pid: int) -> list[str]:
    try:
        # The name may contain spaces and parentheses; what follows the last one has a fixed form.
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
