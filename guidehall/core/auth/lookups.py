"""Answers about callers that another service gives, kept for a while: one question at a time for each."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from guidehall.core.auth.principals import set_principal
from guidehall.core.deadlines import set_deadline
from guidehall.core.errors import Unavailable
from guidehall.core.settings import LookupSettings

Value = TypeVar("Value")

# Questions under way; whoever comes with more made-up keys than these is told to wait.
_MAX_ASKED = 256


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What was found, None for nothing.

    Attributes:
        value: what was found.
        good_until: when it ends by itself, in seconds since 1970.
    """

    value: Value | None
    good_until: float | None = None


@dataclass(frozen=True)
class _Kept(Generic[Value]):
    value: Value | None
    until: float
    good_until: float | None

    def holds(self) -> bool:
        return time.monotonic() < self.until and (self.good_until is None or time.time() < self.good_until)


class Lookups(Generic[Value]):
    """Remembers answers by key.

    What was not found has a place of its own, so that made-up keys push out nobody who is known.
    """

    def __init__(self, settings: LookupSettings) -> None:
        self._settings = settings
        self._found: OrderedDict[bytes, _Kept[Value]] = OrderedDict()
        self._missing: OrderedDict[bytes, _Kept[Value]] = OrderedDict()
        self._asked: dict[bytes, asyncio.Future[Value | None]] = {}

    async def get(self, key: bytes, ask: Callable[[], Awaitable[Answer[Value]]]) -> Value | None:
        """What is known under `key`, or else what `ask` answers; a failure to answer is not remembered.

        Raises:
            Unavailable: too much is asked at this moment.
            AppError: what `ask` raises.
        """
        for kept in (self._found, self._missing):
            entry = kept.get(key)
            if entry is not None and entry.holds():
                kept.move_to_end(key)
                return entry.value
        asked = self._asked.get(key)
        if asked is None:
            if len(self._asked) >= _MAX_ASKED:
                raise Unavailable(
                    "too many callers are being looked up", reason="IDENTITY_BUSY", retry_after_seconds=1.0
                )
            asked = self._asked[key] = self._begin(key, ask)
            asked.add_done_callback(lambda ended: self._end(key, ended))
        # Shielded: others wait for the same answer.
        return await asyncio.shield(asked)

    def _begin(self, key: bytes, ask: Callable[[], Awaitable[Answer[Value]]]) -> asyncio.Future[Value | None]:
        # The question is nobody's: neither the time nor the standing of who came first counts for the others.
        context = contextvars.copy_context()
        context.run(set_deadline, None)
        context.run(set_principal, None)
        return context.run(asyncio.ensure_future, self._ask(key, ask))

    async def _ask(self, key: bytes, ask: Callable[[], Awaitable[Answer[Value]]]) -> Value | None:
        answer = await ask()
        settings = self._settings
        self._found.pop(key, None)
        self._missing.pop(key, None)
        kept, seconds = (
            (self._missing, settings.keep_missing_seconds)
            if answer.value is None
            else (self._found, settings.keep_seconds)
        )
        kept[key] = _Kept(answer.value, time.monotonic() + seconds, answer.good_until)
        while len(kept) > settings.max_entries:
            kept.popitem(last=False)
        return answer.value

    def _end(self, key: bytes, asked: asyncio.Future[Value | None]) -> None:
        del self._asked[key]
        if not asked.cancelled():
            # Whoever asked may have gone, and then nobody else looks at it.
            asked.exception()
