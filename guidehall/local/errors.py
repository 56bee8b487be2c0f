"""What can go wrong with the stack on one machine."""

from __future__ import annotations

from guidehall.core.errors import FailedPrecondition, NotFound


class StackError(FailedPrecondition):
    """The stack cannot start, or a part of it failed; the message is meant for the person at the terminal."""


class UnknownService(NotFound):
    """There is no part of that name in the stack."""


class AlreadyRunning(StackError):
    """Another supervisor holds the data folder."""


class Interrupted(StackError):
    """Someone asked the stack to stop while it was starting."""
