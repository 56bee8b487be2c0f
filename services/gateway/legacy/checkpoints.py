"""/api/checkpoints: runs that can go on from where they were."""

from __future__ import annotations

import asyncio

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.auth import current_principal
from guidehall.core.names import LONGEST_DISPLAY_NAME
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.legacy.common import OldRouter, in_production, is_guest, user
from services.gateway.legacy.runs import (
    NO_CHECKPOINT_LABEL,
    Memory,
    acting_on,
    cancel,
    find,
    is_run,
    memory,
    owned,
    require_owner,
    set_labels,
)
from services.gateway.rate_limits import admit_job

router = OldRouter()

_SUFFIX = " (resumed)"
_SECONDS = 1.0
_MOST = 100


@router.get("/checkpoints")
async def list_checkpoints(request: Request, backends: BackendsDep) -> JSONResponse:
    """Ids of the jobs that can go on: the caller's own and those of guests."""
    caller = current_principal()
    owners = [""] if is_guest(caller) else ["", caller.subject]
    found = await asyncio.gather(*(_resumable(memory(request), backends, owner) for owner in owners))
    return JSONResponse({"checkpoints": [job.name.rpartition("/")[2] for jobs in found for job in jobs]})


async def _resumable(store: Memory, backends: Backends, owner: str) -> list[jobs_pb2.Job]:
    async def of_state(state: str) -> list[jobs_pb2.Job]:
        terms = f"{owned(owner)} AND state = {state}"
        request = jobs_pb2.ListJobsRequest(page_size=_MOST, filter=terms)
        return list((await backends.jobs.ListJobs(request, timeout=backends.timeouts.call)).jobs)

    async def ask() -> list[jobs_pb2.Job]:
        paused, failed = await asyncio.gather(of_state("PAUSED"), of_state("FAILED"))
        return [job for job in paused + failed if is_run(job) and _can_go_on(job)]

    return await store.as_of_late(f"checkpoints of {owner}", _SECONDS, ask)


def _can_go_on(job: jobs_pb2.Job) -> bool:
    if job.state == jobs_pb2.JOB_STATE_PAUSED:
        return True
    kept = job.HasField("checkpoint") and NO_CHECKPOINT_LABEL not in job.labels
    return kept and job.state == jobs_pb2.JOB_STATE_FAILED and not job.latest_retry


@router.post("/checkpoints/{job_id}/resume")
async def resume(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Lets a paused job go on; of one that failed, another one goes on from its checkpoint."""
    job = await _with_checkpoint(backends, request, job_id)
    if job.state != jobs_pb2.JOB_STATE_PAUSED:
        await admit_job(request)
    with acting_on(job):
        if job.state == jobs_pb2.JOB_STATE_PAUSED:
            wish = jobs_pb2.ResumeJobRequest(name=job.name)
            resumed = await backends.jobs.ResumeJob(wish, timeout=backends.timeouts.call)
        else:
            again = jobs_pb2.RetryJobRequest(name=job.name)
            resumed = await backends.jobs.RetryJob(again, timeout=backends.timeouts.call)
        if not resumed.display_name.endswith(_SUFFIX):
            name = resumed.display_name[: LONGEST_DISPLAY_NAME - len(_SUFFIX)] + _SUFFIX
            change = jobs_pb2.UpdateJobRequest(job=jobs_pb2.Job(name=resumed.name, display_name=name.strip()))
            change.update_mask.paths.append("display_name")
            await backends.jobs.UpdateJob(change, timeout=backends.timeouts.call)
    memory(request).changed()
    return JSONResponse(
        {
            "job_id": resumed.name.rpartition("/")[2],
            "status": "queued",
            "message": "it goes on from its checkpoint",
            "resumed_from": job_id,
        }
    )


@router.delete("/checkpoints/{job_id}")
async def delete_checkpoint(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Gives up a checkpoint: a paused job ends with it, one that failed stays, and a retry begins anew."""
    try:
        job = await _with_checkpoint(backends, request, job_id)
    except HTTPException as error:
        if error.status_code != 404:
            raise
        message = "the job has no checkpoint"
        return JSONResponse({"job_id": job_id, "deleted": False, "message": message})
    with acting_on(job):
        if job.state == jobs_pb2.JOB_STATE_PAUSED:
            await cancel(backends, job)
            message = "the job has ended, and its state is deleted"
        else:
            await set_labels(backends, job, {**job.labels, NO_CHECKPOINT_LABEL: "1"})
            message = "it is not used any more, and goes with its job"
    memory(request).changed()
    return JSONResponse({"job_id": job_id, "deleted": True, "message": message})


async def _with_checkpoint(backends: Backends, request: Request, job_id: str) -> jobs_pb2.Job:
    """A job that can go on and that the caller may change.

    Raises:
        NotFound: there is no such job.
        HTTPException: 401 in production for a guest, 403 another's, 404 it cannot go on.
    """
    if in_production(request):
        user()
    job = await find(backends, job_id)
    require_owner(job)
    if not _can_go_on(job):
        raise HTTPException(404, f"job {job_id} has no checkpoint to go on from")
    return job
