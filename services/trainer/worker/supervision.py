"""Watches over a running child: passes on what is wanted of it, and ends it when it exceeds its limits."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from guidehall.science.pipeline import Desired
from services.trainer.worker.child_process import ChildProcess
from services.trainer.worker.frames import FrameError
from services.trainer.worker.machine import oom_kills, recent_oom_kills
from services.trainer.worker.messages import (
    ArtifactWritten,
    Broke,
    CheckpointSaved,
    End,
    FromChild,
    Logged,
    ModelWritten,
    Previewed,
    Progressed,
    Start,
    Started,
    Succeeded,
)
from services.trainer.worker.verdict import Died, Kill
from services.trainer.worker.wishes import Wishes


class Listener(Protocol):
    """Who hears what a child says."""

    def on_started(self) -> None:
        """The pipeline's own code runs."""

    def on_progress(self, progress: Progressed) -> None:
        """A step is done."""

    def on_line(self, line: str) -> None:
        """It logged or printed a line."""

    def on_preview(self, preview: Previewed) -> None:
        """It showed its work."""

    def on_checkpoint(self, checkpoint: CheckpointSaved) -> None:
        """It saved its state."""

    def on_output(self, output: ArtifactWritten | ModelWritten) -> None:
        """It left a file of the result."""


@dataclass(frozen=True)
class Patience:
    """How long a child may take; 0 means any time, except for `cancel_grace_seconds`."""

    timeout_seconds: float
    # Without a sign of progress.
    hang_seconds: float
    # From a cancel to the kill.
    cancel_grace_seconds: float


class Supervision:
    """One run of a child.

    Attributes:
        kill: why the child was ended from here, if it was.
        child_is_fit: whether the child can take another job afterwards.
        child_is_stuck: whether it did not end though it was killed, as in a call to a dead device.
    """

    def __init__(self, child: ChildProcess, wishes: Wishes, patience: Patience, listener: Listener) -> None:
        self.kill: Kill | None = None
        self.child_is_fit = False
        self.child_is_stuck = False
        self._child = child
        self._wishes = wishes
        self._patience = patience
        self._listener = listener
        self._began = False
        self._last_sign = 0.0

    async def run(self, start: Start) -> End | Died:
        """Runs the job to its end, whatever it is."""
        await self._child.begin(start, self._listener.on_line)
        self._last_sign = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            watchers = [
                group.create_task(self._steer(start.desired)),
                group.create_task(self._end_if_disobeyed()),
                group.create_task(self._end_if_leaving()),
                group.create_task(self._end_if_late()),
                group.create_task(self._end_if_hung()),
            ]
            end = await self._follow()
            for watcher in watchers:
                watcher.cancel()
        return end

    async def _follow(self) -> End | Died:
        """Listens to the child until its end."""
        child, out_of_memory_before = self._child, recent_oom_kills()
        end = await self._hear_out()
        if isinstance(end, Succeeded) and end.fit_for_another:
            await child.rest()
            self.child_is_fit = self.kill is None
            return end
        try:
            status = await child.exited() if end is None else await child.reap()
        except TimeoutError:
            self.child_is_stuck = True
            status = -signal.SIGKILL
        return end or Died(status, out_of_memory=oom_kills() > out_of_memory_before)

    async def _hear_out(self) -> End | None:
        """The child's last word; None when there is none."""
        try:
            while (message := await self._child.receive()) is not None:
                if isinstance(message, End):
                    return message
                self._take(message)
        except FrameError as error:
            return Broke(traceback=f"the child's message cannot be read: {error}")
        return None

    def _take(self, message: FromChild) -> None:
        if isinstance(message, Logged):
            # No sign of progress: a loop that only complains hangs, too.
            self._listener.on_line(message.line)
            return
        self._last_sign = asyncio.get_running_loop().time()
        match message:
            case Started():
                self._began = True
                self._listener.on_started()
            case Progressed():
                self._listener.on_progress(message)
            case Previewed():
                self._listener.on_preview(message)
            case CheckpointSaved():
                self._listener.on_checkpoint(message)
            case ArtifactWritten() | ModelWritten():
                self._listener.on_output(message)

    async def _steer(self, told: Desired) -> None:
        """Passes on what is wanted, at once, if it is not what the child was `told`."""
        while True:
            await self._wishes.until(partial(self._wants_other_than, told))
            told = self._wishes.of_child
            await self._child.want(told)

    def _wants_other_than(self, told: Desired) -> bool:
        return self._wishes.of_child is not told

    async def _end_if_disobeyed(self) -> None:
        await self._wishes.until(lambda: self._wishes.cancelled)
        if self._began:
            await asyncio.sleep(self._patience.cancel_grace_seconds)
        self._end(Kill.DISOBEYED_CANCEL)

    async def _end_if_leaving(self) -> None:
        await self._wishes.until(lambda: self._wishes.leaving)
        self._end(Kill.DRAINED)

    async def _end_if_late(self) -> None:
        if self._patience.timeout_seconds:
            await asyncio.sleep(self._patience.timeout_seconds)
            self._end(Kill.TIMEOUT)

    async def _end_if_hung(self) -> None:
        loop = asyncio.get_running_loop()
        while self._patience.hang_seconds:
            left = self._last_sign + self._patience.hang_seconds - loop.time()
            if left <= 0:
                self._end(Kill.HUNG)
                return
            await asyncio.sleep(left)

    def _end(self, why: Kill) -> None:
        if self.kill is None:
            self.kill = why
        self._child.kill()
