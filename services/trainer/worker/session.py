"""The session of one running job: heartbeats and events up, what is wanted down; a broken stream is renewed.

It is opened when the job has run for a moment: what ends at once is told of by its report alone. It ends in
one of two ways: it is cancelled, because the attempt is over, or it raises `LeaseLost`, because the job is
somebody else's now or the lease has run out by this machine's own monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.errors import AppError
from guidehall.core.faults import fault_point
from guidehall.science.pipeline import Desired
from services.trainer.worker.events import Event, EventBuffer
from services.trainer.worker.lease import LeasedJob, desired_of
from services.trainer.worker.messages import Previewed, Progressed
from services.trainer.worker.retry import Pauses, calling
from services.trainer.worker.trainer_client import EOF, TrainerClient, Untold, may_pass

logger = logging.getLogger(__name__)

# A stream that was silent for so many heartbeats is taken for dead. The heartbeat is the trainer's to set.
_SILENT_HEARTBEATS = 3
# A job that has ended by then needs no session. Nobody notices so short a delay in what is wanted of a job.
_OPEN_AFTER_SECONDS = 0.25
# Nor does one that says no more than that.
_OPEN_AT_EVENTS = 50
# Nor one whose end is being reported, unless that takes long: then something has to keep the lease.
_OPEN_AFTER_REPORT_SECONDS = 1.0


class LeaseLost(Exception):
    """This attempt may report nothing any more."""


class Session:
    """Keeps the lease of `job` alive and its owner informed."""

    def __init__(
        self,
        trainer: TrainerClient,
        job: LeasedJob,
        events: EventBuffer,
        on_desired: Callable[[Desired], None],
        *,
        flush_seconds: float,
        timeout_seconds: float,
        pauses: Pauses,
    ) -> None:
        self._trainer = trainer
        self._job = job
        self._events = events
        self._on_desired = on_desired
        self._flush_seconds = flush_seconds
        self._timeout_seconds = timeout_seconds
        self._pauses = pauses
        self._started_at: float | None = None
        self._concluding = False
        # Set when it cannot wait any longer to be opened.
        self._needed = asyncio.Event()
        # While it waits to be opened.
        self._opening: asyncio.Timeout | None = None
        self._deadline = asyncio.get_running_loop().time() + job.lease_seconds
        self._lease_timer: asyncio.Timeout | None = None
        # On the present stream: messages sent, messages acknowledged, and which of them said "started".
        self._sent = 0
        self._acknowledged = 0
        self._started_message: int | None = None
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._hurry = asyncio.Event()

    def started(self) -> None:
        """The pipeline runs."""
        self._started_at = asyncio.get_running_loop().time()
        self.hurry()

    def notify(self) -> None:
        """There are new events."""
        if self._events.last_number - self._events.stored_number >= _OPEN_AT_EVENTS:
            self._needed.set()
        self._wake.set()

    def hurry(self) -> None:
        """Sends what waits at once."""
        self._hurry.set()
        self._wake.set()

    async def flush(self) -> None:
        """Waits until the start and every event so far are stored."""
        last = self._events.last_number
        self._needed.set()
        self.hurry()
        while self._events.stored_number < last or not self._start_is_stored:
            self._heard.clear()
            await self._heard.wait()

    @property
    def _start_is_stored(self) -> bool:
        if self._started_at is None:
            return True
        return self._started_message is not None and self._acknowledged >= self._started_message

    async def conclude(self) -> Untold:
        """The end is being reported: who does that hears himself whether the job is lost.

        Returns:
            What he has to tell, too. It is told before if it is too much for that.
        """
        rest = self._events.rest()
        if rest is None:
            await self.flush()
            rest = self._events.last_number + 1, []
        self._concluding = True
        if self._opening is not None and not self._opening.expired():
            self._opening.reschedule(asyncio.get_running_loop().time() + _OPEN_AFTER_REPORT_SECONDS)
        return Untold(None if self._start_is_stored else self._started_at, _batch(*rest))

    async def run(self) -> None:
        """Holds the session until it is cancelled.

        Raises:
            LeaseLost: the job is lost.
        """
        try:
            async with asyncio.timeout_at(self._deadline) as self._lease_timer:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_OPEN_AFTER_SECONDS) as self._opening:
                        await self._needed.wait()
                self._opening = None
                while True:
                    await self._connect_until_broken()
        except TimeoutError:
            raise LeaseLost("the lease ran out while the trainer could not be reached") from None

    async def _connect_until_broken(self) -> None:
        """Streams, again and again while streams break at once; returns when one has worked."""
        for pause in self._pauses:
            before = self._deadline
            end = await self._converse()
            if isinstance(end, LeaseLost):
                if self._concluding:
                    # The trainer may know of the end before its answer to the report has arrived.
                    await asyncio.Event().wait()
                raise end
            logger.log(
                logging.INFO if end is None else logging.WARNING,
                "session of %s ended (%s); connecting again",
                self._job.job,
                "OK" if end is None else end.code.name,
            )
            await asyncio.sleep(pause)
            if self._deadline != before:
                return

    async def _converse(self) -> AppError | LeaseLost | None:
        """One stream from its start to its end, and how it ended."""
        self._events.resend()
        self._sent = self._acknowledged = 0
        self._started_message = None
        call = None
        try:
            call = self._trainer.session()
            async with asyncio.TaskGroup() as group:
                speaking = group.create_task(self._speak(call))
                end = await self._listen(call)
                speaking.cancel()
                return end
        except AppError as error:  # no credential to call with
            return error
        finally:
            if call is not None:
                call.cancel()

    async def _speak(self, call: Any) -> None:
        """Sends until the stream breaks; listening tells how it did."""
        try:
            await self._send_all(call)
        except (AppError, asyncio.InvalidStateError):
            return

    async def _send_all(self, call: Any) -> None:
        hello = workers_pb2.SessionHello(job=self._job.job, lease_epoch=self._job.epoch)
        await self._write(call, workers_pb2.SessionRequest(hello=hello))
        fault_point("worker.session.greeted")
        loop = asyncio.get_running_loop()
        next_heartbeat = loop.time() + self._job.heartbeat_seconds
        while True:
            if self._started_at is not None and self._started_message is None:
                self._started_message = self._sent + 1
                await self._write(call, workers_pb2.SessionRequest(started=workers_pb2.Started()))
            # What comes meanwhile goes with the next ones: a flood must not hold up the heartbeat.
            last = self._events.last_number
            while self._events.sent_number < last:
                batch = _batch(*self._events.take())
                await self._write(call, workers_pb2.SessionRequest(events=batch))
                fault_point("worker.events.sent")
            if loop.time() >= next_heartbeat:
                await self._write(call, workers_pb2.SessionRequest(heartbeat=workers_pb2.Heartbeat()))
                fault_point("worker.heartbeat.sent")
                next_heartbeat = loop.time() + self._job.heartbeat_seconds
            await self._pause(next_heartbeat)

    async def _pause(self, until: float) -> None:
        """Waits for something to send, and then a little for more of it, but never past `until`."""
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
                async with asyncio.timeout(self._flush_seconds):
                    await self._hurry.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        self._hurry.clear()

    async def _write(self, call: Any, request: workers_pb2.SessionRequest) -> None:
        self._sent += 1
        async with calling(self._timeout_seconds):
            await call.write(request)

    async def _listen(self, call: Any) -> AppError | LeaseLost | None:
        silence = _SILENT_HEARTBEATS * self._job.heartbeat_seconds
        try:
            while True:
                async with calling(silence):
                    response = await call.read()
                if response is EOF:
                    return None
                self._hear(response)
        except LeaseLost as lost:
            return lost
        except AppError as error:
            return error if may_pass(error) else LeaseLost(error.message)

    def _hear(self, response: workers_pb2.SessionResponse) -> None:
        match response.WhichOneof("message"):
            case "ack":
                self._acknowledged += 1
                self._events.stored(response.ack.stored_number)
                self._heard.set()
                self._extend(response.ack.lease_remaining_seconds)
            case "desired":
                self._on_desired(desired_of(response.desired.desired_state))
            case "lost":
                raise LeaseLost(response.lost.reason)

    def _extend(self, remaining_seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + remaining_seconds
        if self._lease_timer is not None and not self._lease_timer.expired():
            self._lease_timer.reschedule(self._deadline)


def _batch(first_number: int, events: list[Event]) -> workers_pb2.EventBatch:
    return workers_pb2.EventBatch(first_number=first_number, events=[_event(event) for event in events])


def _event(event: Event) -> workers_pb2.WorkerEvent:
    """The event, or a line in its place if the wire cannot carry it: its number is taken."""
    try:
        message = _payload(event.payload)
    except (ArithmeticError, RecursionError, ValueError, json_format.Error) as error:
        logger.warning("an event of a job is left out: %s", error)
        what = "preview" if isinstance(event.payload, Previewed) else "step"
        message = _payload(f"[a {what} is left out: it holds something that cannot be passed on]")
    message.time.FromNanoseconds(int(event.time * 1e9))
    return message


def _payload(payload: Progressed | Previewed | str) -> workers_pb2.WorkerEvent:
    message = workers_pb2.WorkerEvent()
    if isinstance(payload, str):
        message.log_line.line = payload
    elif isinstance(payload, Previewed):
        message.preview.kind = payload.sort
        json_format.Parse(payload.document, message.preview.document)
    else:
        message.progress.CopyFrom(
            jobs_pb2.Progress(
                phase=payload.phase, step=payload.step, total=payload.total, metrics=payload.metrics
            )
        )
    return message
