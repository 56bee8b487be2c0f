"""Who waits for what: events inside the process, rung by name, by other replicas through the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from guidehall.core.errors import Unavailable


class Ear(asyncio.Event):
    """Set when something was rung since it was last cleared."""

    async def listen(self, seconds: float) -> None:
        """Waits to be rung, at most so long, and clears itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait()
        self.clear()


class Wakes:
    """Ears by topic, such as "job/<id>", "pool/<pool>" or "outbox/<kind>"."""

    def __init__(self) -> None:
        self._ears: dict[str, set[Ear]] = {}
        self._closed = False

    @contextlib.contextmanager
    def listening(self, *topics: str) -> Iterator[Ear]:
        """An ear for some topics, for as long as the block runs."""
        ear = Ear()
        for topic in topics:
            self._ears.setdefault(topic, set()).add(ear)
        try:
            yield ear
        finally:
            for topic in topics:
                self._ears[topic].remove(ear)
                if not self._ears[topic]:
                    del self._ears[topic]

    def ring(self, topic: str, deaf: Ear | None = None) -> None:
        """Wakes all who listen to `topic`, but for one."""
        for ear in self._ears.get(topic, ()):
            if ear is not deaf:
                ear.set()

    def ring_all(self) -> None:
        """Wakes everybody: something may have been missed."""
        for topic in self._ears:
            self.ring(topic)

    def close(self) -> None:
        """Wakes everybody for the last time; `require_open` then refuses to go on."""
        self._closed = True
        self.ring_all()

    @property
    def closed(self) -> bool:
        """Whether the process is about to end."""
        return self._closed

    def require_open(self) -> None:
        """Ends a stream of a process that is about to end.

        Raises:
            Unavailable: it is; another replica answers.
        """
        if self._closed:
            raise Unavailable(
                "this server is stopping; ask again", reason="STOPPING", retry_after_seconds=0.0
            )


def job_topic(job_id: str) -> str:
    return f"job/{job_id}"


def pool_topic(pool: str) -> str:
    return f"pool/{pool}"


def outbox_topic(kind: str) -> str:
    return f"outbox/{kind}"
