"""JobsService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from google.protobuf.struct_pb2 import Struct

from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core import names, pages
from guidehall.core.auth import current_principal
from guidehall.core.errors import NotFound
from guidehall.science import registry
from guidehall.science.pipeline import Pipeline
from services.trainer import cursors, messages
from services.trainer.jobs import Jobs
from services.trainer.submissions import Submission, Submissions
from services.trainer.watching import Watching
from services.trainer.workers import Workers

FULL_NAME = jobs_pb2.DESCRIPTOR.services_by_name["JobsService"].full_name


class JobsServicer(jobs_pb2_grpc.JobsServiceServicer):
    """Jobs as their owners see them."""

    def __init__(self, submissions: Submissions, jobs: Jobs, watching: Watching, workers: Workers) -> None:
        self._submissions = submissions
        self._jobs = jobs
        self._watching = watching
        self._workers = workers

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, _context: Any) -> jobs_pb2.Job:  # noqa: N802
        submission = Submission(
            project=names.project_of(request.parent),
            pipeline=request.pipeline,
            params=messages.document(request.params),
            display_name=request.display_name,
            seed=request.seed,
            inputs=dict(request.inputs),
            pool=request.pool,
            priority=request.priority,
            labels=dict(request.labels),
            timeout_seconds=request.timeout_seconds,
            max_attempts=request.max_attempts,
            memory_hint_bytes=request.memory_hint_bytes,
            group=request.group,
            device_class=request.device_class,
        )
        principal = current_principal()
        if request.validate_only:
            answer = messages.job(await self._submissions.check(principal, submission))
            # It has no name, for it is not there.
            answer.ClearField("name")
            return answer
        return messages.job(await self._submissions.submit(principal, submission, request.request_id))

    async def GetJob(self, request: jobs_pb2.GetJobRequest, _context: Any) -> jobs_pb2.Job:  # noqa: N802
        return messages.job(await self._jobs.get(current_principal(), request.name))

    async def ListJobs(  # noqa: N802
        self, request: jobs_pb2.ListJobsRequest, _context: Any
    ) -> jobs_pb2.ListJobsResponse:
        page = await self._jobs.page(
            current_principal(),
            names.project_of(request.parent),
            request.filter,
            request.order_by,
            request.page_size,
            request.page_token,
        )
        return jobs_pb2.ListJobsResponse(
            jobs=[messages.job(seen) for seen in page.jobs], next_page_token=page.next_token
        )

    async def WatchJob(  # noqa: N802
        self, request: jobs_pb2.WatchJobRequest, _context: Any
    ) -> AsyncIterator[jobs_pb2.JobEvent]:
        events = self._watching.events(current_principal(), request.name, request.after_seq)
        async with aclosing(events):
            async for stored in events:
                yield messages.event(request.name, stored)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, _context: Any) -> jobs_pb2.Job:  # noqa: N802
        return messages.job(await self._jobs.cancel(current_principal(), request.name))

    async def ListPipelines(  # noqa: N802
        self, request: jobs_pb2.ListPipelinesRequest, _context: Any
    ) -> jobs_pb2.ListPipelinesResponse:
        size = pages.page_size(request.page_size)
        cursor = cursors.texts(request.page_token, 1)
        after = cursor[0] if cursor else ""
        known = sorted(name for name in registry.pipelines() if name > after)
        live = await self._workers.live_by_pipeline()
        found = [_pipeline(registry.pipeline(name), live) for name in known[:size]]
        token = pages.next_token([known[size - 1]]) if len(known) > size else ""
        return jobs_pb2.ListPipelinesResponse(pipelines=found, next_page_token=token)

    async def GetPipeline(  # noqa: N802
        self, request: jobs_pb2.GetPipelineRequest, _context: Any
    ) -> jobs_pb2.Pipeline:
        known = registry.pipelines()
        if request.name not in known:
            raise NotFound(f"pipeline {request.name} does not exist", metadata={"resource": request.name})
        return _pipeline(known[request.name], await self._workers.live_by_pipeline())


# They take milliseconds to make and never change while a process lives.
@lru_cache
def _params_schema(name: str) -> Struct:
    return messages.struct(registry.json_schema(name))


@lru_cache
def _result_schema(name: str) -> Struct:
    return messages.struct(registry.result_schema(name))


def _pipeline(pipeline: Pipeline, live: Any) -> jobs_pb2.Pipeline:
    return jobs_pb2.Pipeline(
        name=pipeline.name,
        version=pipeline.version,
        title=pipeline.title,
        description=pipeline.description,
        params_schema=_params_schema(pipeline.name),
        result_schema=_result_schema(pipeline.name),
        live_workers=live.get((pipeline.name, pipeline.version), 0),
    )
