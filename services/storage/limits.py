"""How many transfers may be under way, in all and for each caller."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Gauge

from guidehall.core.auth import current_principal
from guidehall.core.errors import ResourceExhausted
from services.storage.settings import LimitSettings

_RUNNING = Gauge("guidehall_storage_transfers_running", "Uploads and downloads under way")


# Who may not take the last slots: jobs must be able to store what they computed whatever people do.
_PEOPLE = ("user", "guest")


@dataclass
class Transfer:
    """One that is under way.

    Attributes:
        stalled: it has ended here, but its receiver takes nothing, so its call cannot end.
    """

    stalled: bool = False


class Transfers:
    """Counts transfers; refuses one too many at once instead of letting it wait."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._running: Counter[str] = Counter()
        # By caller, with those that are stalled.
        self._calls: Counter[str] = Counter()

    @contextmanager
    def one(self) -> Iterator[Transfer]:
        """One transfer, for the caller of the request at hand.

        One that stalls frees its slot for others, and its caller's own only when the call's task ends: until
        then its last message stays in memory.

        Raises:
            ResourceExhausted: there are too many.
        """
        principal = current_principal()
        kind, caller = principal.kind, f"{principal.kind}:{principal.subject}"
        if self._calls[caller] >= self._limits.max_transfers_per_caller:
            raise self._refusal(f"{self._calls[caller]} transfers of yours are under way")
        all_running, most = self._running.total(), self._limits.max_transfers
        people = sum(self._running[one] for one in _PEOPLE)
        if all_running >= most or (kind in _PEOPLE and people >= most - most // 4):
            raise self._refusal(f"{all_running} transfers are under way")
        transfer = Transfer()
        self._running[kind] += 1
        self._calls[caller] += 1
        _RUNNING.inc()
        try:
            yield transfer
        finally:
            _RUNNING.dec()
            self._running[kind] -= 1
            call = asyncio.current_task()
            if transfer.stalled and call is not None:
                call.add_done_callback(lambda _: self._end_call(caller))
            else:
                self._end_call(caller)

    def _end_call(self, caller: str) -> None:
        self._calls[caller] -= 1
        if not self._calls[caller]:
            del self._calls[caller]

    def _refusal(self, count: str) -> ResourceExhausted:
        return ResourceExhausted(
            f"{count}, which is the limit",
            reason="TOO_MANY_TRANSFERS",
            retry_after_seconds=self._limits.retry_after_seconds,
        )
