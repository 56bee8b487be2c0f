"""Fits in processes of their own: a bounded queue in front, and no fit on the serving event loop."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from guidehall.core.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from guidehall.science.pipeline import UserError
from services.inference.execution import user_fault
from services.inference.settings import RefinementSettings

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1


class RefinementPool:
    """Processes that run one fit each at a time. They are spawned when fits come."""

    def __init__(self, settings: RefinementSettings) -> None:
        self._settings = settings
        # One process each, so that ending one leaves the others alone.
        self._idle: list[ProcessPoolExecutor] = []
        self._turn = asyncio.Semaphore(settings.workers)
        self._accepted = 0

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Runs a function of a module, with arguments that can be pickled.

        Raises:
            ResourceExhausted: too many fits run and wait.
            DeadlineExceeded: this one took too long; its process was ended.
            Unavailable: its process died.
            InvalidArgument: the science refused an argument.
        """
        if self._accepted >= self._settings.workers + self._settings.max_queued:
            raise ResourceExhausted(
                f"{self._accepted} fits run or wait already",
                reason="REFINEMENT_QUEUE_FULL",
                retry_after_seconds=self._settings.retry_after_seconds,
            )
        self._accepted += 1
        try:
            async with self._turn:
                return await self._run(call, *args)
        except UserError as error:
            raise user_fault(error) from error
        finally:
            self._accepted -= 1

    async def _run(self, call: Callable[..., T], *args: Any) -> T:
        worker = self._idle.pop() if self._idle else _new_worker()
        limit = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(limit):
                result = await asyncio.wrap_future(worker.submit(call, *args))
        except BrokenProcessPool as error:
            _end(worker)
            raise Unavailable("the process that fitted the curve died", reason="REFINEMENT_LOST") from error
        except TimeoutError:
            _end(worker)
            raise DeadlineExceeded(
                f"the fit took longer than {limit:g} s", reason="REFINEMENT_TIMEOUT"
            ) from None
        except asyncio.CancelledError:
            # The caller is gone: nobody waits for this fit, and others may wait for its process.
            _end(worker)
            raise
        except Exception:
            self._idle.append(worker)
            raise
        self._idle.append(worker)
        return result

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._idle:
            _end(worker)
        self._idle.clear()


def _new_worker() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(os.getpid(),))


def _end(worker: ProcessPoolExecutor) -> None:
    # There is no public way to end a process that is busy.
    for process in (worker._processes or {}).values():
        process.kill()
    worker.shutdown(wait=False, cancel_futures=True)


def _begin(parent: int) -> None:
    """In a new process: ends with the server, leaves Ctrl-C to it, and uses one thread."""
    import torch

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
