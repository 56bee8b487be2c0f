"""Refusals that are no matter of one value being out of place."""

from __future__ import annotations

from guidehall.core.errors import InvalidArgument, Violation


def refusal(field: str, why: str) -> InvalidArgument:
    """The error that says `why` something cannot be, and which field to look at."""
    return InvalidArgument(f"{field}: {why}", violations=[Violation(field, why)])
