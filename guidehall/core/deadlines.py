"""How much time the request at hand has left; calls it makes to other services get no more."""

from __future__ import annotations

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("guidehall_deadline", default=None)


def time_remaining() -> float | None:
    """Seconds until the request's deadline; None when it has none."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def set_deadline(seconds: float | None) -> None:
    """Sets the deadline for the rest of the task that handles a request."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)
