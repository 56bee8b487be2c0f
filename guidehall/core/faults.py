"""Labelled places between two effects, where a test can end or freeze the process.

Nothing happens there unless the environment of the process names a folder in `GUIDEHALL_FAULTS` when it
starts: no request, setting or client can arm a point. That folder belongs to the test:

- `armed/<label>` holds `kill` (SIGKILL) or `stop` (SIGSTOP) and perhaps a number: at which visit from now on
  it happens, in whichever process that is. Looked for at each visit, gone when it has happened.
- `visits` gets a line for each visit: Unix time in seconds, process id, label, and the action if one was due.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "GUIDEHALL_FAULTS"
ARMED_FOLDER = "armed"
VISITS_FILE = "visits"
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def fault_point(label: str) -> None:
    """Marks a place between two effects; `label` is "process.phase.what-has-just-happened", used once."""
    if _plan is not None:
        _plan.visit(label)


class FaultPlan:
    """What is to happen at which point, read from `folder` at each visit.

    Raises:
        PermissionError: others than this process's user could write there.
    """

    def __init__(self, folder: Path) -> None:
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(
                f"{VARIABLE}: {folder} must belong to this user and be writable by no other"
            )
        self._armed = folder / ARMED_FOLDER
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._visits = os.open(folder / VISITS_FILE, flags, 0o600)
        self._has_warned = False

    def visit(self, label: str) -> None:
        """Records the visit and does what is due."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("fault points are armed by %s: this process can be ended at any of them", VARIABLE)
        action = self._take(label)
        os.write(self._visits, f"{time.time():.6f} {os.getpid()} {label} {action}\n".encode())
        if action:
            os.kill(os.getpid(), ACTIONS[action])

    def _take(self, label: str) -> str:
        """The action that is due now, taken so that nobody else carries it out; empty for none."""
        path = self._armed / label
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        with os.fdopen(descriptor, "r+") as file:
            # Others may come to the same point at the same time.
            fcntl.flock(file, fcntl.LOCK_EX)
            action, _, count = file.read().strip().partition(" ")
            left = int(count or 1) - 1
            if not action or left < 0:
                return ""
            file.seek(0)
            file.truncate()
            if left:
                file.write(f"{action} {left}")
                return ""
            with suppress(FileNotFoundError):
                path.unlink()
        return action


def _from_environment(environ: Mapping[str, str]) -> FaultPlan | None:
    folder = environ.get(VARIABLE)
    return FaultPlan(Path(folder)) if folder else None


_plan = _from_environment(os.environ)
