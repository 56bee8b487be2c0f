"""What can go wrong with the stack on one machine."""

from __future__ import annotations

from guidehall.core.errors import FailedPrecondition


class StackError(FailedPrecondition):
    """The stack cannot start, or a part of it failed; the message is meant for the person at the terminal."""


class AlreadyRunning(StackError):
    """Another supervisor holds the data folder."""


class Interrupted(StackError):
    """Someone asked the stack to stop while it was starting."""
