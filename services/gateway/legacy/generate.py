"""/api/generate and /api/generate/stream: a run for somebody who waits for it. It ends when they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import Code, FailedPrecondition, InvalidArgument, from_rpc_error
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy import keeping
from services.gateway.legacy.common import OldRouter
from services.gateway.legacy.finished import finished
from services.gateway.legacy.making import submit
from services.gateway.legacy.pools import live_workers
from services.gateway.legacy.requests import GenerateRequest
from services.gateway.legacy.runs import Memory, cancel, memory, request_of
from services.gateway.legacy.status import KEEPALIVE, Told, frame
from services.gateway.messages import Json
from services.gateway.rate_limits import admit_job
from services.gateway.watching import Reader, dropped_before

router = OldRouter()

# Between looks at whether there is nothing new: nobody reads that.
_WAIT_SECONDS = 60.0
# What the answer to a wrong request is about, in an error event.
_WRONG = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)


@router.post("/generate")
async def generate(body: GenerateRequest, request: Request, backends: BackendsDep) -> Response:
    """Runs, and answers with the result."""
    if body.is_real:
        raise HTTPException(400, "dataSource: got 'real'; allowed here: 'synthetic'")
    await admit_job(request)
    await _require_worker(memory(request), backends)
    job = await submit(request.app.state.settings, backends, body, "generate")
    waiting = asyncio.create_task(_end(request, backends, job))
    leaving = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            # Nobody reads it.
            return Response(status_code=499)
        ended = waiting.result()
    finally:
        leaving.cancel()
        if not waiting.done() or waiting.cancelled() or waiting.exception() is not None:
            waiting.cancel()
            memory(request).do_apart(cancel(backends, job))
    document = await finished(memory(request), backends, _succeeded(ended))
    # Of a run without a place in a list nobody asks how long its parts took.
    return JSONResponse({**_without(document, "timing", "name"), "model_size_mb": None})


async def _require_worker(store: Memory, backends: Backends) -> None:
    """Nobody shall wait for what cannot begin.

    Raises:
        HTTPException: 503.
    """
    if not await live_workers(store, backends):
        raise HTTPException(503, "no worker is there; submit a job, which waits for one")


async def _end(request: Request, backends: Backends, job: jobs_pb2.Job) -> jobs_pb2.Job:
    """The job when it has ended, or is paused: then it may stay so for ever."""
    reader = request.app.state.watching.reader(job, 0, _WAIT_SECONDS)
    try:
        async for event in _events(reader):
            if event is not None and _is_pause(event):
                break
    finally:
        reader.close()
    return await _now(backends, job)


async def _events(reader: Reader) -> AsyncIterator[jobs_pb2.JobEvent | None]:
    """The events of a job; those that are no longer kept are passed over."""
    while True:
        try:
            async for event in reader.events():
                yield event
            return
        except grpc.aio.AioRpcError as error:
            if (first_seq := dropped_before(error)) is None:
                raise
            reader.after_seq = first_seq - 1


def _is_pause(event: jobs_pb2.JobEvent) -> bool:
    return event.HasField("state_change") and event.state_change.state == jobs_pb2.JOB_STATE_PAUSED


async def _now(backends: Backends, job: jobs_pb2.Job) -> jobs_pb2.Job:
    request = jobs_pb2.GetJobRequest(name=job.name)
    with as_platform():
        found: jobs_pb2.Job = await backends.jobs.GetJob(request, timeout=backends.timeouts.call)
    return found


async def _departure(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _succeeded(job: jobs_pb2.Job) -> jobs_pb2.Job:
    """The job, if it has a result.

    Raises:
        HTTPException: says what became of it.
    """
    if job.result:
        return job
    if job.state == jobs_pb2.JOB_STATE_FAILED:
        wrong = job.error.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
        raise HTTPException(400 if wrong else 500, job.error.message)
    raise HTTPException(500, "the run was ended before it had a result")


def _without(document: Json, *names: str) -> Json:
    return {key: value for key, value in document.items() if key not in names}


@router.post("/generate/stream")
async def generate_stream(body: GenerateRequest, request: Request, backends: BackendsDep) -> Response:
    """Runs, and tells all the while how it goes, as server-sent events."""
    await admit_job(request)
    store = memory(request)
    try:
        await _require_worker(store, backends)
        job = await submit(request.app.state.settings, backends, body, "stream")
    except (InvalidArgument, FailedPrecondition) as error:
        return _stream(_told([frame("error", error.message)]))
    except grpc.aio.AioRpcError as error:
        refused = from_rpc_error(error)
        if refused.code not in _WRONG:
            raise
        return _stream(_told([frame("error", refused.message)]))
    state = request.app.state
    reader = state.watching.reader(job, 0, state.settings.http.comment_seconds)
    return _Run(store, backends, reader, _frames(store, backends, reader, body))


async def _told(frames: list[str]) -> AsyncIterator[str]:
    for item in frames:
        yield item


def _stream(frames: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(frames, media_type="text/event-stream", headers=_HEADERS)


_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class _Run(StreamingResponse):
    """The events of a run, which is cancelled where they are not read to the end."""

    def __init__(self, store: Memory, backends: Backends, reader: Reader, frames: AsyncIterator[str]) -> None:
        super().__init__(self._counted(frames), media_type="text/event-stream", headers=_HEADERS)
        self._store, self._backends, self._reader = store, backends, reader
        self._whole = False

    async def _counted(self, frames: AsyncIterator[str]) -> AsyncIterator[str]:
        async for item in frames:
            yield item
        self._whole = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not left to the generator, which may stand where its reader left it for a long time.
            self._reader.close()
            if not self._whole:
                self._store.do_apart(cancel(self._backends, self._reader.job))


async def _frames(
    store: Memory, backends: Backends, reader: Reader, body: GenerateRequest
) -> AsyncIterator[str]:
    job = reader.job
    told, request = Told(), request_of(job)
    try:
        async for event in _events(reader):
            if event is None:
                yield KEEPALIVE
                continue
            for item in told.add(event, request):
                yield frame(*item)
            if _is_pause(event):
                yield frame("error", "paused: resumed by its id, it goes on without this stream")
                return
        ended = await _now(backends, job)
        try:
            document = await finished(store, backends, _succeeded(ended))
        except HTTPException as error:
            yield frame("error", str(error.detail))
            return
        left_out = () if body.is_real else ("model_size_mb",)
        yield frame("result", _without(document, "timing", *left_out))
        if await keeping.keep(store, backends, ended):
            yield frame("log", "saved to the history")
    except grpc.aio.AioRpcError as error:
        # The stream has begun: this is the only place left to say it.
        yield frame("error", from_rpc_error(error).message)
