"""What jobs tell while they run: followed as it comes, or caught up with at each poll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import from_rpc_error
from services.gateway.api.jobs import or_none
from services.gateway.backends import Backends
from services.gateway.legacy.common import as_platform
from services.gateway.legacy.runs import Memory, request_of
from services.gateway.legacy.status import Told
from services.gateway.messages import Json

_MOST_JOBS = 1000
# Of what a job told before somebody looked for the first time.
_EVENTS_BACK = 300
# A trainer that restarts is back within seconds.
_RETRY_SECONDS, _MOST_FAILURES = 0.5, 60


def watch(backends: Backends, job: jobs_pb2.Job, after_seq: int) -> Any:
    """The call that gives the events of a job; to be cancelled when it is not read to its end."""
    with as_platform():
        return backends.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=job.name, after_seq=after_seq))


@dataclass
class Following:
    """The events of a job from its first to its last, though the trainer may restart meanwhile.

    Attributes:
        seconds: after so long without an event None is told in its place.
    """

    backends: Backends
    job: jobs_pb2.Job
    seconds: float
    _call: Any = None

    def cancel(self) -> None:
        """Ends it, wherever its reader stands."""
        if self._call is not None:
            self._call.cancel()

    async def events(self) -> AsyncIterator[jobs_pb2.JobEvent | None]:
        """The events, as they come.

        Raises:
            AioRpcError: they cannot be had.
        """
        seq, failures = 0, 0
        while True:
            self._call = watch(self.backends, self.job, seq)
            try:
                async for event in or_none(self._call, self.seconds):
                    if event is not None:
                        seq, failures = event.seq, 0
                    yield event
                return
            except grpc.aio.AioRpcError as error:
                told = from_rpc_error(error)
                if told.reason == "EVENTS_DROPPED":
                    seq = int(told.metadata["first_seq"]) - 1
                    continue
                failures += 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or failures > _MOST_FAILURES:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)


async def told(store: Memory, backends: Backends, job: jobs_pb2.Job) -> Told:
    """What a job has told up to where it stands."""
    found = store.told.setdefault(job.name, Told())
    store.told.move_to_end(job.name)
    while len(store.told) > _MOST_JOBS:
        store.told.popitem(last=False)
    if found.seq >= job.last_seq:
        return found
    request = request_of(job)
    start = max(found.seq, job.last_seq - _EVENTS_BACK)
    try:
        await _catch_up(backends, job, found, start, request)
    except grpc.aio.AioRpcError as error:
        dropped = from_rpc_error(error)
        if dropped.reason != "EVENTS_DROPPED":
            raise
        await _catch_up(backends, job, found, int(dropped.metadata["first_seq"]) - 1, request)
    return found


async def _catch_up(backends: Backends, job: jobs_pb2.Job, found: Told, start: int, request: Json) -> None:
    async for event in _events(backends, job, start):
        # Another poll may have taken it in meanwhile.
        if event.seq > found.seq:
            found.add(event, request)


async def _events(backends: Backends, job: jobs_pb2.Job, start: int) -> AsyncIterator[jobs_pb2.JobEvent]:
    if start >= job.last_seq:
        return
    call = watch(backends, job, start)
    try:
        async for event in call:
            yield event
            if event.seq >= job.last_seq:
                return
    finally:
        call.cancel()
