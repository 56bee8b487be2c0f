"""The doorbell: word from the bus that work may wait in the pool. It names no job and proves nothing."""

from __future__ import annotations

import asyncio
import logging

from guidehall.core.bus import JOBS, EventBus

logger = logging.getLogger(__name__)


class Doorbell:
    """Hears rings only while `wait` runs: one that comes to a busy worker goes to somebody else.

    Args:
        bus: None where there is none.
    """

    def __init__(self, bus: EventBus | None, pool: str) -> None:
        self._bus = bus
        self._pool = pool
        self._rung = asyncio.Event()
        self._waiting = asyncio.Event()

    @property
    def works(self) -> bool:
        """Whether rings can be heard now."""
        return self._bus is not None and self._bus.connected

    async def wait(self, seconds: float) -> None:
        """Returns when it rings, or after `seconds`."""
        self._waiting.set()
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            return
        finally:
            self._waiting.clear()
            self._rung.clear()

    async def listen(self) -> None:
        """Hears rings until it is cancelled."""
        if self._bus is None:
            return
        await self._waiting.wait()
        async for ring in self._bus.durable(JOBS, f"jobs.{self._pool}", f"workers-{self._pool}"):
            if self._waiting.is_set():
                await ring.ack()
                self._rung.set()
                # Let the waiter go before asking for the next ring.
                await asyncio.sleep(0)
            else:
                await ring.decline()
            await self._waiting.wait()
