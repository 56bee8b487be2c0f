"""Functions that other processes import."""

from __future__ import annotations

import os
import signal
import threading

from guidehall.science.pipeline import UserError


def process() -> int:
    return os.getpid()


def refuse() -> None:
    raise UserError("curve.q[3]", -1.0, "must be positive")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()
