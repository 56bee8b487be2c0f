"""Runs models away from the event loop: one call at a time for each, a bounded queue in front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from prometheus_client import Histogram

from guidehall.core.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from guidehall.science.pipeline import Manifest, Predictor, UserError
from services.inference.settings import ExecutionSettings

T = TypeVar("T")

_QUEUE_SECONDS = Histogram(
    "guidehall_inference_queue_seconds", "How long calls waited for their model's turn"
)
_RUN_SECONDS = Histogram("guidehall_inference_run_seconds", "How long models took for a call")

Device = Literal["auto", "cpu", "cuda"]


def resolve_device(wanted: Device) -> str:
    """The device that torch is given."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if wanted == "cuda" else "cpu"


def user_fault(error: UserError) -> InvalidArgument:
    """What a science refused, as the caller is told."""
    return InvalidArgument.field(error.field, error.value, error.allowed)


class Engine:
    """The threads that models are loaded and run in."""

    def __init__(self, settings: ExecutionSettings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        # Set in each thread as well: OpenMP keeps the number per thread.
        torch.set_num_threads(settings.torch_threads)
        self._pool = ThreadPoolExecutor(
            settings.threads, "model", initializer=torch.set_num_threads, initargs=(settings.torch_threads,)
        )

    def submit(self, call: Callable[..., T], *args: Any) -> Future[T]:
        """Runs `call` in one of the threads."""
        return self._pool.submit(_without_gradients, call, *args)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Runs `call` in one of the threads and waits for its result."""
        return await asyncio.wrap_future(self.submit(call, *args))

    def close(self) -> None:
        """Lets running calls end and drops waiting ones."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@torch.inference_mode()
def _without_gradients(call: Callable[..., T], *args: Any) -> T:
    return call(*args)


class Turns:
    """Lets one call at a time into a model, in order of arrival; too many are refused.

    A caller that goes away while it waits gives up its turn. A call that has started is never interrupted,
    and the next one waits for its real end.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self.waiting = 0

    @property
    def busy(self) -> bool:
        """Whether a call runs or waits."""
        return self._lock.locked() or self.waiting > 0

    async def run(self, call: Callable[..., T], *args: Any, queue_seconds: float | None = None) -> T:
        """Runs `call` when its turn comes.

        Raises:
            ResourceExhausted: too many wait already.
            DeadlineExceeded: its turn did not come within `queue_seconds`.
        """
        with _QUEUE_SECONDS.time():
            await self._enter(queue_seconds)
        loop = asyncio.get_running_loop()
        try:
            future = self._engine.submit(call, *args)
        except RuntimeError:
            self._lock.release()
            raise
        # The caller may be cancelled long before the thread is done: only the thread's end ends the turn.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._lock.release))
        with _RUN_SECONDS.time():
            return await asyncio.wrap_future(future)

    async def _enter(self, queue_seconds: float | None) -> None:
        settings = self._engine.settings
        if self.waiting >= settings.max_queued_requests:
            raise ResourceExhausted(
                f"{self.waiting} requests wait for this model already",
                reason="QUEUE_FULL",
                retry_after_seconds=settings.retry_after_seconds,
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(queue_seconds):
                await self._lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"no turn within {queue_seconds:g} s",
                reason="QUEUE_TIMEOUT",
                metadata={"waiting": str(self.waiting)},
            ) from None
        finally:
            self.waiting -= 1


@dataclass(eq=False)
class Served:
    """A model in memory.

    Attributes:
        size_bytes: what it counts against the memory budget.
        last_used: monotonic seconds.
    """

    manifest: Manifest
    predictor: Predictor
    size_bytes: int
    turns: Turns
    last_used: float

    @property
    def busy(self) -> bool:
        """Whether a call runs or waits."""
        return self.turns.busy

    async def run(self, call: Callable[..., T], *args: Any, queue_seconds: float | None = None) -> T:
        """Runs something that uses the model, in the model's turn.

        Raises:
            InvalidArgument: the science refused an argument.
            ResourceExhausted, DeadlineExceeded: see `Turns.run`.
        """
        self.last_used = time.monotonic()
        try:
            return await self.turns.run(call, *args, queue_seconds=queue_seconds)
        except UserError as error:
            raise user_fault(error) from error
