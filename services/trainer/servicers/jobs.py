"""JobsService."""

# ruff: noqa: N802 (gRPC names the methods)

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from google.protobuf.struct_pb2 import Struct

from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core import names, pages
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument, NotFound
from guidehall.science import registry
from guidehall.science.pipeline import Pipeline
from services.trainer import cursors, messages
from services.trainer.batches import Batch, Batches, Sweep
from services.trainer.control import Control, Update
from services.trainer.jobs import Jobs
from services.trainer.lifecycle import FINAL, HELD, State
from services.trainer.param_paths import Axis
from services.trainer.queues import Seen
from services.trainer.retries import Changes, Retries
from services.trainer.submissions import Submission, Submissions
from services.trainer.watching import Watching
from services.trainer.workers import Workers

FULL_NAME = jobs_pb2.DESCRIPTOR.services_by_name["JobsService"].full_name


class JobsServicer(jobs_pb2_grpc.JobsServiceServicer):
    """Jobs as their owners see them."""

    def __init__(
        self,
        submissions: Submissions,
        batches: Batches,
        retries: Retries,
        jobs: Jobs,
        control: Control,
        watching: Watching,
        workers: Workers,
    ) -> None:
        self._submissions = submissions
        self._batches = batches
        self._retries = retries
        self._jobs = jobs
        self._control = control
        self._watching = watching
        self._workers = workers

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, _context: Any) -> jobs_pb2.Job:
        submission = _submission(request, names.project_of(request.parent))
        principal = current_principal()
        if request.validate_only:
            return _unnamed(await self._submissions.check(principal, submission))
        return messages.job(await self._submissions.submit(principal, submission, request.request_id))

    async def BatchSubmitJobs(
        self, request: jobs_pb2.BatchSubmitJobsRequest, _context: Any
    ) -> jobs_pb2.BatchSubmitJobsResponse:
        batch = _batch(request)
        made, name = await self._batches.submit(
            current_principal(), batch, request.request_id, request.validate_only
        )
        encode = _unnamed if request.validate_only else messages.job
        return jobs_pb2.BatchSubmitJobsResponse(jobs=map(encode, made), batch=name)

    async def RetryJob(self, request: jobs_pb2.RetryJobRequest, _context: Any) -> jobs_pb2.Job:
        changes = Changes(
            params=messages.document(request.param_changes),
            seed=request.seed,
            pool=request.pool,
            display_name=request.display_name,
            timeout_seconds=request.timeout_seconds,
            from_start=request.from_start,
        )
        made = await self._retries.retry(
            current_principal(), request.name, changes, request.request_id, request.validate_only
        )
        return _unnamed(made) if request.validate_only else messages.job(made)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, _context: Any) -> jobs_pb2.Job:
        return messages.job(await self._jobs.get(current_principal(), request.name))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, _context: Any) -> jobs_pb2.ListJobsResponse:
        page = await self._jobs.page(
            current_principal(),
            names.projects_of(request.parent),
            request.filter,
            request.order_by,
            request.page_size,
            request.page_token,
        )
        return jobs_pb2.ListJobsResponse(
            jobs=[messages.job(seen) for seen in page.jobs], next_page_token=page.next_token
        )

    async def CountJobs(
        self, _request: jobs_pb2.CountJobsRequest, _context: Any
    ) -> jobs_pb2.CountJobsResponse:
        counts = await self._jobs.count(current_principal())

        def of(states: Iterable[State]) -> int:
            return sum(counts.get(state, 0) for state in states)

        return jobs_pb2.CountJobsResponse(
            queued=of((State.QUEUED, State.PAUSED)), running=of(HELD), ended=of(FINAL)
        )

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, _context: Any
    ) -> AsyncIterator[jobs_pb2.JobEvent]:
        events = self._watching.events(current_principal(), request.name, request.after_seq)
        async with aclosing(events):
            async for stored in events:
                yield messages.event(request.name, stored)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, _context: Any) -> jobs_pb2.Job:
        return messages.job(await self._control.wish(current_principal(), "CancelJob", request.name))

    async def PauseJob(self, request: jobs_pb2.PauseJobRequest, _context: Any) -> jobs_pb2.Job:
        return messages.job(await self._control.wish(current_principal(), "PauseJob", request.name))

    async def ResumeJob(self, request: jobs_pb2.ResumeJobRequest, _context: Any) -> jobs_pb2.Job:
        return messages.job(await self._control.wish(current_principal(), "ResumeJob", request.name))

    async def StopJob(self, request: jobs_pb2.StopJobRequest, _context: Any) -> jobs_pb2.Job:
        return messages.job(await self._control.wish(current_principal(), "StopJob", request.name))

    async def UpdateJob(self, request: jobs_pb2.UpdateJobRequest, _context: Any) -> jobs_pb2.Job:
        change = Update(
            paths=list(request.update_mask.paths),
            display_name=request.job.display_name,
            labels=dict(request.job.labels),
            priority=request.job.priority,
            notifications=messages.targets(request.job.notifications),
        )
        updated = await self._control.update(current_principal(), request.job.name, request.job.etag, change)
        return messages.job(updated)

    async def ShareJob(self, request: jobs_pb2.ShareJobRequest, _context: Any) -> jobs_pb2.Job:
        shared = await self._control.share(current_principal(), request.name, request.add, request.remove)
        return messages.job(shared)

    async def DeleteJob(
        self, request: jobs_pb2.DeleteJobRequest, _context: Any
    ) -> jobs_pb2.DeleteJobResponse:
        await self._control.delete(current_principal(), request.name, request.etag)
        return jobs_pb2.DeleteJobResponse()

    async def PurgeJobs(
        self, request: jobs_pb2.PurgeJobsRequest, _context: Any
    ) -> jobs_pb2.PurgeJobsResponse:
        purged = await self._control.purge(
            current_principal(),
            names.project_of(request.parent),
            request.filter,
            include_queued=request.include_queued,
            force=request.force,
        )
        return jobs_pb2.PurgeJobsResponse(
            deleted=purged.deleted,
            skipped_running=purged.skipped_running,
            skipped_queued=purged.skipped_queued,
            skipped_publishing=purged.skipped_publishing,
        )

    async def ClaimJob(self, request: jobs_pb2.ClaimJobRequest, _context: Any) -> jobs_pb2.Job:
        return messages.job(await self._control.claim(current_principal(), request.name))

    async def ListAttempts(
        self, request: jobs_pb2.ListAttemptsRequest, _context: Any
    ) -> jobs_pb2.ListAttemptsResponse:
        found, token = await self._jobs.attempts(
            current_principal(), request.parent, request.page_size, request.page_token
        )
        return jobs_pb2.ListAttemptsResponse(attempts=map(messages.attempt, found), next_page_token=token)

    async def ListPipelines(
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

    async def GetPipeline(self, request: jobs_pb2.GetPipelineRequest, _context: Any) -> jobs_pb2.Pipeline:
        known = registry.pipelines()
        if request.name not in known:
            raise NotFound(f"pipeline {request.name} does not exist", metadata={"resource": request.name})
        return _pipeline(known[request.name], await self._workers.live_by_pipeline())


def _submission(request: jobs_pb2.SubmitJobRequest, project: str) -> Submission:
    return Submission(
        project=project,
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
        notifications=messages.targets(request.notifications),
        annotations=messages.document(request.annotations),
    )


def _batch(request: jobs_pb2.BatchSubmitJobsRequest) -> Batch:
    """What is submitted together.

    Raises:
        InvalidArgument: one of the requests has what only the whole has.
    """
    project = names.project_of(request.parent)
    submissions = [
        _part(item, f"requests[{place}]", request.parent, project)
        for place, item in enumerate(request.requests)
    ]
    if not request.HasField("sweep"):
        return Batch(submissions, None)
    sweep = request.sweep
    axes = [Axis(axis.path, messages.values(axis.values)) for axis in sweep.axes]
    template = _part(sweep.template, "sweep.template", request.parent, project)
    return Batch(submissions, Sweep(template, axes, sweep.zipped))


def _part(request: jobs_pb2.SubmitJobRequest, path: str, parent: str, project: str) -> Submission:
    if request.parent not in ("", parent):
        raise InvalidArgument.field(f"{path}.parent", request.parent, f"{parent!r} or nothing")
    if request.request_id:
        raise InvalidArgument.field(f"{path}.request_id", request.request_id, "nothing: the batch has one")
    if request.validate_only:
        raise InvalidArgument.field(f"{path}.validate_only", True, "nothing: the batch has it")
    return _submission(request, project)


def _unnamed(seen: Seen) -> jobs_pb2.Job:
    """A job that was only checked: it has no name, for it is not there."""
    message = messages.job(seen)
    message.ClearField("name")
    return message


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
