"""How many transfers may be under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from guidehall.core.errors import ResourceExhausted
from services.storage.settings import LimitSettings

_RUNNING = Gauge("guidehall_storage_transfers_running", "Uploads and downloads under way")


class Transfers:
    """Counts transfers; refuses one too many at once instead of letting it wait."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._running = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One transfer.

        Raises:
            ResourceExhausted: there are too many.
        """
        if self._running >= self._limits.max_transfers:
            raise ResourceExhausted(
                f"{self._running} transfers are under way, which is the limit",
                reason="TOO_MANY_TRANSFERS",
                retry_after_seconds=self._limits.retry_after_seconds,
            )
        self._running += 1
        _RUNNING.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            _RUNNING.set(self._running)
