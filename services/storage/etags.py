"""Optimistic concurrency: a change that was decided on an old state is refused."""

from __future__ import annotations

from guidehall.core.errors import Aborted


def require_etag(given: str, current: str) -> None:
    """Raises Aborted when the caller says what it has seen and that is no longer so."""
    if given and given != current:
        raise Aborted(
            f"etag: got {given[:80]!r}, but it has changed since; read it again",
            reason="ETAG_MISMATCH",
            metadata={"etag": current},
        )
