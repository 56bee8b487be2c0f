"""What the exit code of a command says."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guidehall.core.errors import AppError


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    DENIED = 5
    INTERRUPTED = 130


def exit_code(error: AppError) -> ExitCode:
    """The exit code for an error that a service answered with."""
    from guidehall.core.errors import Code

    return {
        Code.INVALID_ARGUMENT: ExitCode.USAGE,
        Code.OUT_OF_RANGE: ExitCode.USAGE,
        Code.NOT_FOUND: ExitCode.NOT_FOUND,
        Code.UNAVAILABLE: ExitCode.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
        Code.PERMISSION_DENIED: ExitCode.DENIED,
        Code.UNAUTHENTICATED: ExitCode.DENIED,
    }.get(error.code, ExitCode.FAILED)
