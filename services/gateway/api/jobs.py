"""Pipelines, jobs and their events."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated

import grpc
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import JOB, RESULT
from services.gateway.api.common import (
    INT64,
    BackendsDep,
    Filter,
    Offset,
    PageSize,
    PageToken,
    Streamed,
    answer,
    download,
    resource,
    returns,
)
from services.gateway.messages import to_json
from services.gateway.problems import NothingMore
from services.gateway.watching import Reader, dropped_before

router = APIRouter(tags=["jobs"])


@router.get("/pipelines", **returns(jobs_pb2.ListPipelinesResponse))
async def list_pipelines(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """What can be run, with the JSON Schema of its parameters."""
    request = jobs_pb2.ListPipelinesRequest(page_size=page_size, page_token=page_token)
    return await answer(await backends.jobs.ListPipelines(request, timeout=backends.timeouts.call))


@router.get("/pipelines/{pipeline}", **returns(jobs_pb2.Pipeline))
async def get_pipeline(pipeline: str, backends: BackendsDep) -> JSONResponse:
    """One pipeline."""
    request = jobs_pb2.GetPipelineRequest(name=pipeline)
    return await answer(await backends.jobs.GetPipeline(request, timeout=backends.timeouts.call))


@router.get("/jobs", **returns(jobs_pb2.ListJobsResponse))
async def list_jobs(
    backends: BackendsDep,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    filter: Filter = "",
    order_by: Annotated[str, Query(max_length=100)] = "",
) -> JSONResponse:
    """Jobs, newest first."""
    request = jobs_pb2.ListJobsRequest(
        page_size=page_size, page_token=page_token, filter=filter, order_by=order_by
    )
    return await answer(await backends.jobs.ListJobs(request, timeout=backends.timeouts.call))


@router.get("/jobs/{job}", **returns(jobs_pb2.Job))
async def get_job(job: str, backends: BackendsDep) -> JSONResponse:
    """One job as it stands."""
    request = jobs_pb2.GetJobRequest(name=resource(JOB, job=job))
    return await answer(await backends.jobs.GetJob(request, timeout=backends.timeouts.call))


@router.get("/jobs/{job}/attempts", **returns(jobs_pb2.ListAttemptsResponse))
async def list_attempts(
    job: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Who worked on a job, how long, and how that ended, newest first."""
    request = jobs_pb2.ListAttemptsRequest(
        parent=resource(JOB, job=job), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.jobs.ListAttempts(request, timeout=backends.timeouts.call))


@router.get("/jobs/{job}/result", **returns(results_pb2.Result))
async def get_job_result(job: str, backends: BackendsDep) -> JSONResponse:
    """The result of a job that succeeded."""
    request = results_pb2.GetResultRequest(name=resource(RESULT, result=job))
    return await answer(await backends.results.GetResult(request, timeout=backends.timeouts.call))


@router.get("/jobs/{job}/log", response_class=StreamingResponse)
async def download_job_log(job: str, backends: BackendsDep, offset: Offset = 0) -> Streamed:
    """The whole log of a job that has ended, however it ended, as text."""
    request = results_pb2.DownloadJobLogRequest(job=resource(JOB, job=job), offset_bytes=offset)
    return await download(backends.results.DownloadJobLog(request, timeout=backends.timeouts.transfer))


async def _watched(
    job: str,
    http_request: Request,
    backends: BackendsDep,
    last_event_id: Annotated[str | None, Header(description="Sequence number of the last event seen")] = None,
    after_seq: Annotated[
        int, Query(ge=0, lt=INT64, description="The same, for clients that cannot set headers")
    ] = 0,
) -> AsyncIterator[Reader]:
    """A reader of the job's events, until the request is over, however it ends.

    Checks everything while an error can still be answered as one: a stream that has begun is a 200.
    """
    field = "after_seq"
    if last_event_id:
        field = "Last-Event-ID"
        if not re.fullmatch(r"\d{1,18}", last_event_id):
            raise InvalidArgument.field(field, last_event_id, "a sequence number")
        after_seq = int(last_event_id)
    name = resource(JOB, job=job)
    found = await backends.jobs.GetJob(jobs_pb2.GetJobRequest(name=name), timeout=backends.timeouts.call)
    if after_seq > found.last_seq:
        raise InvalidArgument.field(field, after_seq, f"at most {found.last_seq}, the job's newest event")
    if after_seq == found.last_seq and _complete(found):
        # An EventSource takes the end of a stream for a broken one and comes again, until it is told this.
        raise NothingMore
    state = http_request.app.state
    reader = state.watching.reader(found, after_seq, state.settings.http.comment_seconds)
    try:
        yield reader
    finally:
        # Not left to the generator below, which may stand where its reader left it for a long time.
        reader.close()


def _complete(job: jobs_pb2.Job) -> bool:
    """Whether no event can follow: a job that succeeded has one more when its result can be read."""
    if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
        return bool(job.result)
    return job.state in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)


@router.get(
    "/jobs/{job}/events",
    response_class=EventSourceResponse,
    responses={
        200: {"description": "`id` is the event's `seq`, `event` its kind, `data` the JobEvent as JSON"},
        204: {"description": "The job is over and its last event has been seen"},
    },
)
async def watch_job(
    reader: Annotated[Reader, Depends(_watched)], backends: BackendsDep
) -> AsyncIterator[ServerSentEvent]:
    """Every event of a job after `Last-Event-ID`, then each new one; ends with the job. Idle streams are
    kept alive. Where older events are no longer kept, one of the kind `snapshot` has the job as it stands."""
    while True:
        try:
            async for event in reader.events():
                yield ServerSentEvent(comment="silence") if event is None else _server_sent(event)
            return
        except grpc.aio.AioRpcError as error:
            if (first_seq := dropped_before(error)) is None:
                raise
            reader.after_seq = first_seq - 1
        request = jobs_pb2.GetJobRequest(name=reader.job.name)
        job = await backends.jobs.GetJob(request, timeout=backends.timeouts.call)
        yield ServerSentEvent(id=str(reader.after_seq), event="snapshot", data=to_json(job))


def _server_sent(event: jobs_pb2.JobEvent) -> ServerSentEvent:
    return ServerSentEvent(id=str(event.seq), event=event.WhichOneof("payload"), data=to_json(event))
