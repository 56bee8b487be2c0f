"""What jobs have told, caught up with at each poll."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from guidehall.contracts.jobs.v1 import jobs_pb2
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy.runs import Memory, request_of
from services.gateway.legacy.status import Told
from services.gateway.messages import Json
from services.gateway.watching import dropped_before

_MOST_JOBS = 1000
# Of what a job told before somebody looked for the first time.
_EVENTS_BACK = 300


def watch(backends: Backends, job: jobs_pb2.Job, after_seq: int) -> Any:
    """The call that gives the events of a job; to be cancelled when it is not read to its end."""
    with as_platform():
        return backends.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=job.name, after_seq=after_seq))


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
        if (first_seq := dropped_before(error)) is None:
            raise
        await _catch_up(backends, job, found, first_seq - 1, request)
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
