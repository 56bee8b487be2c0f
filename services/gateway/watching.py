"""Following jobs: one stream of each job's events from the trainer, whoever and however many read it.

The newest events of a job that is followed are kept, up to a bound. A reader has no buffer of its own, only
the number of the last event it took: one that is slower than the bound allows, or that begins further back,
reads what it lacks from the trainer until it has caught up. So a reader that stands still costs nothing, and
none waits for another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextvars import Context
from typing import Any

import grpc
from prometheus_client import Counter, Gauge

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import from_rpc_error

# Kept of one job.
_MOST_EVENTS = 500
_MOST_BYTES = 256 << 10
# A trainer that restarts is back within seconds.
_RETRY_SECONDS, _MOST_FAILURES = 0.5, 60

_FEEDS = Gauge("guidehall_gateway_watched_jobs", "Jobs whose events are followed now")
_READERS = Gauge("guidehall_gateway_watch_readers", "Readers of jobs' events now")
_CALLS = Counter(
    "guidehall_gateway_watch_calls", "Streams of events that were asked of the trainer", ["purpose"]
)


class Watching:
    """The jobs that are followed by this process.

    Args:
        jobs: stub of the trainer's JobsService.
    """

    def __init__(self, jobs: Any) -> None:
        self.jobs = jobs
        self._feeds: dict[str, _Feed] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no job is followed."""
        return not self._feeds

    def reader(self, job: jobs_pb2.Job, after_seq: int, seconds: float) -> Reader:
        """A reader of a job's events; to be closed.

        Args:
            job: as the reader was just allowed to see it; from then on nobody asks whether it may.
            after_seq: number of the last event that the reader has.
            seconds: after so long without an event, None is told in its place.
        """
        return Reader(self, job, after_seq, seconds)

    def attach(self, job: jobs_pb2.Job, after_seq: int) -> _Feed:
        """The stream of a job, begun with its first reader."""
        feed = self._feeds.get(job.name)
        if feed is None or feed.is_over:
            # What is further back than is kept would only push itself out.
            feed = _Feed(self.jobs, job.name, max(after_seq, job.last_seq - _MOST_EVENTS))
            self._feeds[job.name] = feed
        feed.readers += 1
        _READERS.inc()
        return feed

    def detach(self, feed: _Feed) -> None:
        """Ends a stream with its last reader."""
        feed.readers -= 1
        _READERS.dec()
        if not feed.readers:
            feed.end()
            if self._feeds.get(feed.name) is feed:
                del self._feeds[feed.name]


class Reader:
    """One who reads the events of a job.

    Attributes:
        after_seq: number of the last event taken. May be set before `events` is called once more.
    """

    def __init__(self, watching: Watching, job: jobs_pb2.Job, after_seq: int, seconds: float) -> None:
        self.job = job
        self.after_seq = after_seq
        self._watching = watching
        self._seconds = seconds
        self._feed: _Feed | None = None
        self._own: _Stream | None = None

    def close(self) -> None:
        """Ends it, wherever the reader stands."""
        if self._own is not None:
            self._own.cancel()
        if self._feed is not None:
            self._watching.detach(self._feed)
            self._feed = None

    async def events(self) -> AsyncIterator[jobs_pb2.JobEvent | None]:
        """Every event after `after_seq` and each new one, to the last of a job that has ended; None for
        silence.

        Raises:
            AioRpcError: they cannot be had. EVENTS_DROPPED: the next ones are no longer kept; may be called
                again with another `after_seq`.
        """
        if self._feed is None:
            self._feed = self._watching.attach(self.job, self.after_seq)
        feed = self._feed
        while True:
            changed = feed.changed
            if (event := feed.next_after(self.after_seq)) is not None:
                self.after_seq = event.seq
                yield event
            elif self.after_seq < feed.last_seq:
                async for missed in self._missed(feed):
                    yield missed
            elif feed.error is not None:
                raise feed.error
            elif feed.is_over:
                return
            else:
                try:
                    async with asyncio.timeout(self._seconds):
                        await changed.wait()
                except TimeoutError:
                    yield None

    async def _missed(self, feed: _Feed) -> AsyncIterator[jobs_pb2.JobEvent | None]:
        """What the stream of all keeps no longer, up to where it goes on."""
        self._own = _Stream(self._watching.jobs, self.job.name, self.after_seq, "catch_up")
        try:
            async for event in or_none(self._own.events(), self._seconds):
                if event is not None:
                    self.after_seq = event.seq
                yield event
                if self.after_seq >= feed.last_seq or feed.next_after(self.after_seq) is not None:
                    return
        finally:
            self._own.cancel()


class _Feed:
    """The stream that all readers of a job share, and the newest of its events, without a gap.

    Attributes:
        last_seq: number of the newest event that came.
        changed: set at the next change, and then replaced.
        error: why it ended before the job's last event.
    """

    def __init__(self, jobs: Any, name: str, after_seq: int) -> None:
        self.name = name
        self.readers = 0
        self.last_seq = after_seq
        self.changed = asyncio.Event()
        self.error: Exception | None = None
        self.is_over = False
        self._kept: deque[jobs_pb2.JobEvent] = deque()
        self._bytes = 0
        _FEEDS.inc()
        # Of no request: neither its caller nor its deadline nor its trace are those of the others.
        self._task = asyncio.create_task(self._follow(jobs), context=Context())
        self._task.add_done_callback(lambda _: _FEEDS.dec())

    def next_after(self, seq: int) -> jobs_pb2.JobEvent | None:
        """The event after a number, if it is kept."""
        first = self.last_seq - len(self._kept) + 1
        return self._kept[seq + 1 - first] if first <= seq + 1 <= self.last_seq else None

    def end(self) -> None:
        """Nobody reads it any more."""
        self._task.cancel()

    async def _follow(self, jobs: Any) -> None:
        try:
            while not self.is_over:
                await self._read(_Stream(jobs, self.name, self.last_seq, "follow"))
        except Exception as error:
            # Each reader raises it.
            self.error = error
        finally:
            self.is_over = True
            self._tell()

    async def _read(self, stream: _Stream) -> None:
        try:
            async for event in stream.events():
                self._keep(event)
            self.is_over = True
        except grpc.aio.AioRpcError as error:
            if (first_seq := dropped_before(error)) is None:
                raise
            # Readers that are further back find out themselves.
            self._kept.clear()
            self._bytes = 0
            self.last_seq = first_seq - 1
            self._tell()
        finally:
            stream.cancel()

    def _keep(self, event: jobs_pb2.JobEvent) -> None:
        self._kept.append(event)
        self._bytes += event.ByteSize()
        self.last_seq = event.seq
        while len(self._kept) > _MOST_EVENTS or (self._bytes > _MOST_BYTES and len(self._kept) > 1):
            self._bytes -= self._kept.popleft().ByteSize()
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class _Stream:
    """The events of a job after a number, though the trainer may restart meanwhile."""

    def __init__(self, jobs: Any, name: str, after_seq: int, purpose: str) -> None:
        self._jobs = jobs
        self._name = name
        self._after_seq = after_seq
        self._purpose = purpose
        self._call: Any = None
        self._cancelled = False

    def cancel(self) -> None:
        """Ends it, wherever its reader stands."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    async def events(self) -> AsyncIterator[jobs_pb2.JobEvent]:
        """The events, as they come."""
        failures = 0
        while not self._cancelled:
            request = jobs_pb2.WatchJobRequest(name=self._name, after_seq=self._after_seq)
            # The gateway's own call: whoever reads was let in before.
            self._call = Context().run(self._jobs.WatchJob, request)
            _CALLS.labels(self._purpose).inc()
            try:
                async for event in self._call:
                    self._after_seq, failures = event.seq, 0
                    yield event
                return
            except grpc.aio.AioRpcError as error:
                failures += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or failures > _MOST_FAILURES:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)


def dropped_before(error: grpc.aio.AioRpcError) -> int | None:
    """Number of the first event that is still kept, where those asked for are not; None for other errors."""
    told = from_rpc_error(error)
    return int(told.metadata["first_seq"]) if told.reason == "EVENTS_DROPPED" else None


async def or_none(events: AsyncIterator[Any], seconds: float) -> AsyncIterator[Any]:
    """The events, and None each time that none has come for so long."""
    while True:
        # A read that is cancelled ends its call, so that one read may wait for several rounds.
        read = asyncio.ensure_future(anext(events, None))
        while not (await asyncio.wait({read}, timeout=seconds))[0]:
            yield None
        if (event := read.result()) is None:
            return
        yield event
