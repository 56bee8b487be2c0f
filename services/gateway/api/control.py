"""What is done to a job after its submission."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import JOB, LONGEST_DISPLAY_NAME
from services.gateway.api.common import BackendsDep, Body, Text, answer, resource, returns
from services.gateway.api.submissions import Notification, priority_number

router = APIRouter(tags=["jobs"])

Etag = Annotated[Text, Field(max_length=200, description="Unless empty, the present one")]


class UpdateJob(Body):
    """What is to change; what is left out stays."""

    display_name: Text | None = Field(None, max_length=LONGEST_DISPLAY_NAME)
    labels: dict[Text, Text] | None = None
    priority: Text | None = Field(None, description="LOW, NORMAL or HIGH, while it is queued")
    notifications: list[Notification] | None = Field(None, max_length=20)
    etag: Etag = ""

    def message(self, name: str) -> jobs_pb2.UpdateJobRequest:
        """As the trainer takes it."""
        job = jobs_pb2.Job(
            name=name,
            display_name=self.display_name or "",
            labels=self.labels or {},
            notifications=[item.message() for item in self.notifications or ()],
            etag=self.etag,
        )
        if self.priority is not None:
            job.priority = priority_number(self.priority, "priority")
        request = jobs_pb2.UpdateJobRequest(job=job)
        changed = self.model_dump(exclude={"etag"}, exclude_none=True)
        if not changed:
            raise InvalidArgument(
                "nothing is to change: give display_name, labels, priority or notifications"
            )
        request.update_mask.paths.extend(changed)
        return request


class PurgeJobs(Body):
    """Which of the caller's own jobs."""

    filter: Text = Field("", max_length=2000, description="As in `GET /api/v1/jobs`")
    include_queued: bool = Field(False, description="Cancel and delete queued and paused ones too")
    force: bool = Field(False, description="Without it the answer only counts")


@router.post("/jobs/{job}:cancel", **returns(jobs_pb2.Job))
async def cancel_job(job: str, backends: BackendsDep) -> JSONResponse:
    """Asks for the end of a job. May be repeated."""
    request = jobs_pb2.CancelJobRequest(name=resource(JOB, job=job))
    return await answer(await backends.jobs.CancelJob(request, timeout=backends.timeouts.call))


@router.post("/jobs/{job}:pause", **returns(jobs_pb2.Job))
async def pause_job(job: str, backends: BackendsDep) -> JSONResponse:
    """Asks a job to save its state and to give up its device. May be repeated."""
    request = jobs_pb2.PauseJobRequest(name=resource(JOB, job=job))
    return await answer(await backends.jobs.PauseJob(request, timeout=backends.timeouts.call))


@router.post("/jobs/{job}:resume", **returns(jobs_pb2.Job))
async def resume_job(job: str, backends: BackendsDep) -> JSONResponse:
    """Lets a paused job go on from where it was. May be repeated."""
    request = jobs_pb2.ResumeJobRequest(name=resource(JOB, job=job))
    return await answer(await backends.jobs.ResumeJob(request, timeout=backends.timeouts.call))


@router.post("/jobs/{job}:stop", **returns(jobs_pb2.Job))
async def stop_job(job: str, backends: BackendsDep) -> JSONResponse:
    """Asks for an early end that keeps the best so far. May be repeated."""
    request = jobs_pb2.StopJobRequest(name=resource(JOB, job=job))
    return await answer(await backends.jobs.StopJob(request, timeout=backends.timeouts.call))


@router.post("/jobs/{job}:claim", **returns(jobs_pb2.Job))
async def claim_job(job: str, backends: BackendsDep) -> JSONResponse:
    """Makes a guest's job the caller's own."""
    request = jobs_pb2.ClaimJobRequest(name=resource(JOB, job=job))
    return await answer(await backends.jobs.ClaimJob(request, timeout=backends.timeouts.call))


@router.patch("/jobs/{job}", **returns(jobs_pb2.Job))
async def update_job(job: str, body: UpdateJob, backends: BackendsDep) -> JSONResponse:
    """Changes name, labels, priority or notifications."""
    request = body.message(resource(JOB, job=job))
    return await answer(await backends.jobs.UpdateJob(request, timeout=backends.timeouts.call))


@router.delete("/jobs/{job}", **returns(jobs_pb2.DeleteJobResponse))
async def delete_job(
    job: str, backends: BackendsDep, etag: Annotated[str, Query(max_length=200)] = ""
) -> JSONResponse:
    """Deletes a job that has ended. Its result and models stay."""
    request = jobs_pb2.DeleteJobRequest(name=resource(JOB, job=job), etag=etag)
    return await answer(await backends.jobs.DeleteJob(request, timeout=backends.timeouts.call))


@router.post("/jobs:purge", **returns(jobs_pb2.PurgeJobsResponse))
async def purge_jobs(body: PurgeJobs, backends: BackendsDep) -> JSONResponse:
    """Counts, or with `force` deletes, the caller's own jobs that have ended. Results and models stay."""
    request = jobs_pb2.PurgeJobsRequest(**body.model_dump())
    return await answer(await backends.jobs.PurgeJobs(request, timeout=backends.timeouts.call))
