"""Who the request at hand is from, and calls that the gateway makes in its own name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from guidehall.core.auth import Principal, current_principal, set_principal
from guidehall.core.errors import AppError, Unauthenticated

_refused: ContextVar[AppError | None] = ContextVar("guidehall_caller_refused", default=None)


def set_caller(found: Principal | AppError) -> None:
    """Makes somebody the caller of the request at hand, or lets its endpoint raise why nobody is."""
    set_principal(found if isinstance(found, Principal) else None)
    _refused.set(found if isinstance(found, AppError) else None)


def require_caller() -> Principal:
    """Who calls.

    Raises:
        AppError: why the caller could not be identified.
    """
    if (error := _refused.get()) is not None:
        raise error
    return current_principal()


@contextmanager
def as_platform() -> Iterator[None]:
    """Calls made in the block are the gateway's own, which sees everything: only after a look at whose thing
    it is about."""
    caller: Principal | None
    try:
        caller = current_principal()
    except Unauthenticated:
        # What a request left to be done is in the platform's name already.
        caller = None
    set_principal(None)
    try:
        yield
    finally:
        set_principal(caller)
