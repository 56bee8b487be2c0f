"""The worker's loop: make itself known, wait for work, run it, again. Comes back whatever was away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge

from guidehall.core.errors import AppError, Code
from guidehall.core.faults import fault_point
from guidehall.core.telemetry import handling, job_id, note_job
from guidehall.science import registry
from services.trainer.worker.attempt import Attempt, Tools
from services.trainer.worker.doorbell import Doorbell
from services.trainer.worker.lease import LeasedJob
from services.trainer.worker.machine import Machine
from services.trainer.worker.trainer_client import Registration
from services.trainer.worker.workspace import Workspace, remove

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_ATTEMPTS = Counter("guidehall_worker_attempts", "Attempts at jobs that this worker ended")
_BUSY = Gauge("guidehall_worker_busy", "1 while a job runs")

# The trainer does not know the worker: its registration is gone.
_UNKNOWN_WORKER = frozenset({Code.NOT_FOUND, Code.FAILED_PRECONDITION})


class Agent:
    """One worker. `run` it in one task; `stop` it from anywhere in the same loop."""

    def __init__(self, tools: Tools, machine: Machine, doorbell: Doorbell, workspace: Workspace) -> None:
        self._tools = tools
        self._machine = machine
        self._doorbell = doorbell
        self._workspace = workspace
        self._stopping = asyncio.Event()
        self._attempt: Attempt | None = None
        # Of the running attempt: none until the worker is stopped.
        self._attempt_limit = asyncio.timeout(None)
        self._worker = ""
        # What is wrong with the device, until the trainer knows.
        self._fault = ""
        self._in_service = True
        # Came with the answer to a report.
        self._next: LeasedJob | None = None
        # Since when it has asked for a job and got none; None while it has one.
        self._idle_since: float | None = None

    def stop(self) -> None:
        """Takes no more work. A running job is asked to leave and made to after the drain time."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._attempt is not None:
            self._attempt.wishes.drain()
            loop, settings = asyncio.get_running_loop(), self._tools.settings
            loop.call_later(settings.drain_seconds, self._attempt.wishes.leave)
            self._attempt_limit.reschedule(loop.time() + settings.drain_seconds + settings.exit_seconds)

    async def run(self) -> None:
        """Works until it is stopped."""
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._doorbell.listen())
                await self._work()
                listening.cancel()
        finally:
            await self._tools.children.close()

    async def _work(self) -> None:
        while not self._stopping.is_set():
            registration = await self._unless_stopping(self._register())
            if registration is not None:
                logger.info("registered as %s", registration.worker)
                await self._serve(registration)
        logger.info("stopped")

    async def _register(self) -> Registration:
        pipelines = {
            name: pipeline.version
            for name, pipeline in registry.pipelines().items()
            if pipeline.device != "gpu" or self._tools.device != "cpu"
        }
        for pause in self._tools.pauses:
            try:
                registration = await self._tools.trainer.register(
                    self._tools.settings.pool, self._machine, pipelines, self._worker
                )
            except AppError as error:
                if error.code is Code.NOT_FOUND:
                    self._worker = ""
                self._complain("register", error, pause)
            else:
                self._worker = registration.worker
                return registration
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _serve(self, registration: Registration) -> None:
        """Takes one job after another, until the trainer has forgotten this worker."""
        pauses = iter(self._tools.pauses)
        while self._next is not None or not self._stopping.is_set():
            await self._tools.children.prepare()
            try:
                if self._fault:
                    await self._tools.trainer.quarantine(registration.worker, self._fault)
                    self._fault = ""
                job = await self._next_job(registration)
            except AppError as error:
                if error.code in _UNKNOWN_WORKER:
                    return
                pause = next(pauses)
                self._complain("lease", error, pause)
                await self._unless_stopping(self._doorbell.wait(pause))
                continue
            self._stop_if_idle_for_long(job)
            if job is None or await self._run(job):
                pauses = iter(self._tools.pauses)
            else:
                # Whatever was wrong, the next job may meet it too.
                await self._unless_stopping(asyncio.sleep(next(pauses)))

    def _stop_if_idle_for_long(self, job: LeasedJob | None) -> None:
        """Ends a worker that was launched for work, once there has been none for as long as it is to wait."""
        now, limit = asyncio.get_running_loop().time(), self._tools.settings.idle_exit_seconds
        if job is not None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif limit and now - self._idle_since >= limit:
            logger.info("no job for %g s", now - self._idle_since)
            self.stop()

    async def _next_job(self, registration: Registration) -> LeasedJob | None:
        """What the trainer gave already, or gives within a while: it knows first when there is work."""
        if self._next is not None:
            job, self._next = self._next, None
            return job
        wait = min(self._tools.settings.lease_wait_seconds, registration.poll_interval_seconds)
        with self._doorbell.hearing():
            offer = await self._unless_stopping(self._tools.trainer.lease(registration.worker, wait))
        if offer is None:
            # The worker stops. The answer to what it gave up may be a job.
            with contextlib.suppress(AppError):
                await self._tools.trainer.leave(registration.worker, self._tools.settings.exit_seconds)
            return None
        if offer.out_of_service == self._in_service:
            self._in_service = not offer.out_of_service
            logger.warning("%s service", "in" if self._in_service else "out of")
        return offer.job

    async def _run(self, job: LeasedJob) -> bool:
        """Whether the attempt came to a report."""
        fault_point("worker.lease.heard")
        with handling({"traceparent": job.traceparent}, "attempt"):
            note_job(job.job)
            try:
                return await self._try(job)
            finally:
                job_id.set("")

    async def _try(self, job: LeasedJob) -> bool:
        logger.info("leased %s, attempt %d", job.job, job.attempt)
        _BUSY.set(1)
        self._attempt_limit = asyncio.timeout(None)
        folder: Path | None = None
        attempt: Attempt | None = None
        try:
            folder = self._workspace.new_folder()
            attempt = self._attempt = Attempt(job, self._tools, folder)
            if self._stopping.is_set():
                attempt.wishes.drain()
            async with self._attempt_limit:
                reported = await attempt.run()
            # Over: a stop has nothing to hurry any more.
            self._attempt = None
            self._next = attempt.next_job
            await self._check_device(attempt.suspicion)
            return reported
        except Exception:
            # Another attempt follows, at the latest when its lease runs out; this worker goes on.
            logger.exception("attempt at %s ended without a report", job.job)
            if attempt is None or not attempt.began:
                await self._give_back(job)
            return False
        finally:
            self._attempt = None
            if folder is not None:
                await asyncio.to_thread(remove, folder)
            _BUSY.set(0)
            _ATTEMPTS.inc()

    async def _give_back(self, job: LeasedJob) -> None:
        """Hands back a job for which there is no room here, such as on a full disk; elsewhere may be some."""
        try:
            await self._tools.trainer.release(job, "the worker has no room for it")
        except AppError as error:
            logger.warning("%s cannot be handed back: %s (%s)", job.job, error.code.name, error.message)

    async def _check_device(self, suspicion: str) -> None:
        """Finds out whether a device that is under suspicion is at fault; the next job would fail, too."""
        if not suspicion or self._stopping.is_set():
            return
        settings, device = self._tools.settings, self._tools.device
        testing = self._tools.children.fault_of(device, settings.self_test_seconds)
        fault = await self._unless_stopping(testing)
        if fault is None:
            return
        if fault:
            self._fault = f"{fault}; before, {suspicion}"
            logger.error("%s misbehaves: %s", device, self._fault)
        else:
            logger.warning("%s does well in a self-test, though %s", device, suspicion)

    def _complain(self, what: str, error: AppError, pause: float) -> None:
        logger.warning("cannot %s: %s (%s); again in %.1f s", what, error.code.name, error.message, pause)

    async def _unless_stopping(self, work: Coroutine[Any, Any, Answer]) -> Answer | None:
        """Does `work`, but gives it up, and None, when the worker is stopped."""
        doing = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            doing.cancel()
            watching.cancel()
            await asyncio.gather(doing, watching, return_exceptions=True)
