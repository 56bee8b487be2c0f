"""How many transfers may be under way, in all and for each caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from guidehall.core.auth import current_principal
from guidehall.core.errors import ResourceExhausted
from services.storage.settings import LimitSettings

_RUNNING = Gauge("guidehall_storage_transfers_running", "Uploads and downloads under way")


class Transfers:
    """Counts transfers; refuses one too many at once instead of letting it wait."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._running: Counter[str] = Counter()

    @contextmanager
    def one(self) -> Iterator[None]:
        """One transfer, for the caller of the request at hand.

        Raises:
            ResourceExhausted: there are too many.
        """
        principal = current_principal()
        caller = f"{principal.kind}:{principal.subject}"
        if self._running[caller] >= self._limits.max_transfers_per_caller:
            raise self._refusal(f"{self._running[caller]} transfers of yours are under way")
        if self._running.total() >= self._limits.max_transfers:
            raise self._refusal(f"{self._running.total()} transfers are under way")
        self._running[caller] += 1
        _RUNNING.inc()
        try:
            yield
        finally:
            _RUNNING.dec()
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]

    def _refusal(self, count: str) -> ResourceExhausted:
        return ResourceExhausted(
            f"{count}, which is the limit",
            reason="TOO_MANY_TRANSFERS",
            retry_after_seconds=self._limits.retry_after_seconds,
        )
