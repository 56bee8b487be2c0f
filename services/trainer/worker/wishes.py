"""What is wanted of a running job: by its owner, and by whoever ends the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from guidehall.science.pipeline import Desired

Answer = TypeVar("Answer")


class Interrupted(Exception):
    """What was being done is not wanted any more."""


class Wishes:
    """The present wishes, and ways to wait for others."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        # At some time the owner wanted a pause, which the pipeline may be about to obey still.
        self.was_to_pause = desired is Desired.PAUSE
        # The worker has been asked to end: the job should leave at its next checkpoint.
        self.draining = False
        # The worker ends now: the job leaves as it is.
        self.leaving = False
        self._changed = asyncio.Event()

    @property
    def of_child(self) -> Desired:
        """What to tell the pipeline. A worker that drains asks it to save its state and pause."""
        if self.draining and self.desired is Desired.RUN:
            return Desired.PAUSE
        return self.desired

    @property
    def cancelled(self) -> bool:
        """Whether the owner wants the end of it."""
        return self.desired is Desired.CANCEL

    def want(self, desired: Desired) -> None:
        """The owner wants something else. A cancel is for good."""
        if not self.cancelled:
            self.desired = desired
            self.was_to_pause |= desired is Desired.PAUSE
            self._tell()

    def drain(self) -> None:
        """The worker is to end soon."""
        self.draining = True
        self._tell()

    def leave(self) -> None:
        """The worker ends now."""
        self.draining = self.leaving = True
        self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition`, which may depend on nothing but these wishes, is true."""
        while not condition():
            await self._changed.wait()

    async def unless(self, condition: Callable[[], bool], work: Coroutine[Any, Any, Answer]) -> Answer:
        """Does `work`, but stops doing it as soon as `condition` is true.

        Raises:
            Interrupted: it was stopped.
        """
        doing = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self.until(condition))
        try:
            await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise Interrupted
        finally:
            doing.cancel()
            watching.cancel()
            await asyncio.gather(doing, watching, return_exceptions=True)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
