"""The doorbell: word from the bus that work may wait in the pool. It names no job and proves nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from guidehall.core.bus import JOBS, EventBus
from guidehall.core.telemetry import handling

logger = logging.getLogger(__name__)


class Doorbell:
    """Hears rings only while this worker looks for work: one that comes to a busy worker goes to another.

    The trainer itself wakes whoever has asked it for work. A ring is for those who could not ask it.

    Args:
        bus: None where there is none.
    """

    def __init__(self, bus: EventBus | None, pool: str) -> None:
        self._bus = bus
        self._pool = pool
        self._rung = asyncio.Event()
        self._waiting = asyncio.Event()

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Rings are for this worker within the block."""
        self._rung.clear()
        self._waiting.set()
        try:
            yield
        finally:
            self._waiting.clear()

    async def wait(self, seconds: float) -> None:
        """Returns when it rings, or after `seconds`."""
        with self.hearing(), suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()

    async def listen(self) -> None:
        """Hears rings until it is cancelled."""
        if self._bus is None:
            return
        await self._waiting.wait()
        async for ring in self._bus.durable(JOBS, f"jobs.{self._pool}", f"workers-{self._pool}"):
            if self._waiting.is_set():
                with handling(ring.headers, ring.subject):
                    logger.debug("rung")
                    await ring.ack()
                self._rung.set()
                # Let the waiter go before asking for the next ring.
                await asyncio.sleep(0)
            else:
                await ring.decline()
            await self._waiting.wait()
