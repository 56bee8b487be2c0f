"""/api/jobs: runs that wait in the queue, are looked at and acted on.

Who may: of a guest's job everybody who knows its id, of a user's its owner. The page looks at, cancels and
deletes its user's jobs without saying who it is. So these three are open to a caller without a name, too:
none of them stops what runs, or ends what is paused and can still go on.
"""

from __future__ import annotations

import asyncio
import uuid

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.names import LONGEST_DISPLAY_NAME
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy import keeping
from services.gateway.legacy.common import OldRouter, in_production, require_admin, user
from services.gateway.legacy.finished import finished
from services.gateway.legacy.making import submit
from services.gateway.legacy.pools import remote_worker, waiting
from services.gateway.legacy.requests import GenerateRequest
from services.gateway.legacy.runs import (
    KEPT_LABEL,
    LABEL,
    LABEL_VALUE,
    NO_CHECKPOINT_LABEL,
    Memory,
    acting_on,
    cancel,
    find,
    is_final,
    memory,
    require_not_another,
    require_owner,
    set_labels,
)
from services.gateway.legacy.status import HELD, Told, meta, phase, status, stopped_early, time_text
from services.gateway.legacy.telling import told, watch
from services.gateway.legacy.translation import APPLY, BOTH
from services.gateway.messages import Json, struct_json, to_struct
from services.gateway.rate_limits import admit_job

router = OldRouter()

_RETRIED = ("failed", "finished", "canceled", "stopped")
# A retry has the labels of the first job, of which these say what became of that one.
_OF_ONE_JOB = (KEPT_LABEL, NO_CHECKPOINT_LABEL)
# How long a purge by force waits for a worker to let go.
_END_SECONDS = 15.0


class Rename(BaseModel):
    """A new name; blank removes it."""

    name: str | None = None


@router.post("/jobs/submit")
async def submit_job(body: GenerateRequest, request: Request, backends: BackendsDep) -> JSONResponse:
    """Queues a run."""
    await admit_job(request)
    job = await submit(request.app.state.settings, backends, body, "submit")
    return JSONResponse(await _queued(memory(request), backends, job, "the job waits for a worker"))


async def _queued(store: Memory, backends: Backends, job: jobs_pb2.Job, message: str) -> Json:
    store.changed()
    return {
        "job_id": _id(job),
        "status": "queued",
        "message": message,
        # 1 is the next one; 0 has a worker already.
        "queue_position": job.queue_position + 1,
        "remote_worker": await remote_worker(store, backends, job.pool),
    }


# Before the paths with an id, which would take its name for one.
@router.delete("/jobs/purge")
async def purge_jobs(request: Request, backends: BackendsDep, include_queued: bool = False) -> JSONResponse:
    """Deletes the caller's own jobs that have ended."""
    wanted = jobs_pb2.PurgeJobsRequest(
        filter=f'labels.{LABEL} = "{LABEL_VALUE}"', include_queued=include_queued, force=True
    )
    caller = user()
    purged = await backends.jobs.PurgeJobs(wanted, timeout=backends.timeouts.call)
    memory(request).changed()
    return JSONResponse(
        {
            "user_id": caller.subject,
            "deleted": purged.deleted,
            "skipped_running": purged.skipped_running,
            "skipped_queued": purged.skipped_queued,
            # Others' and guests' jobs are not looked at.
            "skipped_unowned": 0,
            "missing": 0,
            "include_queued": include_queued,
        }
    )


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, request: Request, backends: BackendsDep) -> Response:
    """A job as it stands; its whole result once it has finished."""
    job = await find(backends, job_id)
    require_not_another(job)
    headers = {"Cache-Control": "private, no-cache"}
    if is_final(job):
        # Nothing but its name changes any more.
        headers["ETag"] = f'W/"{job.etag.strip(chr(34))}-{job.last_seq}"'
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
    return JSONResponse(await _view(memory(request), backends, job), headers=headers)


async def _view(store: Memory, backends: Backends, job: jobs_pb2.Job) -> Json:
    state, so_far = status(job), await told(store, backends, job)
    view: Json = {
        "job_id": _id(job),
        "status": state,
        "enqueued_at": time_text(job, "create_time"),
        "started_at": time_text(job, "start_time"),
        "ended_at": time_text(job, "end_time"),
        "exc_info": job.error.message if state == "failed" else None,
        "meta": meta(job, so_far),
    }
    if state == "queued":
        view["position"] = job.queue_position + 1
        view["queue_length"] = max(await waiting(store, backends, job.pool), job.queue_position + 1)
    if state == "finished":
        view["result"] = await _result(store, backends, job, so_far)
    if state == "finished" and job.owner:
        store.do_apart(keeping.keep(store, backends, job))
    return view


async def _result(store: Memory, backends: Backends, job: jobs_pb2.Job, so_far: Told) -> Json:
    if job.state == jobs_pb2.JOB_STATE_PAUSED:
        epoch = (so_far.progress or {}).get("epoch")
        return {"paused": True, "phase": job.progress.phase or None, "epoch": epoch}
    document = await finished(store, backends, job)
    # The best so far is a result, too.
    return document | ({"stopped": True, "phase": "training"} if stopped_early(job) else {})


@router.patch("/jobs/{job_id}/name")
async def rename_job(job_id: str, body: Rename, request: Request, backends: BackendsDep) -> JSONResponse:
    """Names a job; a guest's becomes the caller's."""
    name = (body.name or "").strip()
    if len(name) > LONGEST_DISPLAY_NAME:
        raise HTTPException(400, f"name: got {len(name)} characters; allowed: at most {LONGEST_DISPLAY_NAME}")
    job = await _claim(memory(request), backends, job_id)
    change = jobs_pb2.UpdateJobRequest(job=jobs_pb2.Job(name=job.name, display_name=name))
    change.update_mask.paths.append("display_name")
    renamed = await backends.jobs.UpdateJob(change, timeout=backends.timeouts.call)
    return JSONResponse({"job_id": job_id, "name": renamed.display_name or None})


@router.post("/jobs/{job_id}/claim")
async def claim_job(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Makes a guest's job the caller's own; a finished run goes into the history."""
    job = await _claim(memory(request), backends, job_id)
    await keeping.keep(memory(request), backends, job)
    return JSONResponse({"job_id": job_id, "user_id": job.owner, "status": "claimed"})


async def _claim(store: Memory, backends: Backends, job_id: str) -> jobs_pb2.Job:
    user()
    job = await find(backends, job_id)
    require_owner(job)
    if job.owner:
        return job
    request = jobs_pb2.ClaimJobRequest(name=job.name)
    claimed: jobs_pb2.Job = await backends.jobs.ClaimJob(request, timeout=backends.timeouts.call)
    store.changed()
    return claimed


@router.post("/jobs/{job_id}/retry")
async def retry_job(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Runs a job once more: one that failed goes on from its checkpoint if it has one, others begin anew."""
    job = await find(backends, job_id)
    require_owner(job)
    if status(job) not in _RETRIED:
        raise HTTPException(
            400, f"a job that is {status(job)} cannot be retried; allowed: {', '.join(_RETRIED)}"
        )
    await admit_job(request)
    with acting_on(job):
        made = await (_again if is_final(job) else _beside)(backends, job)
    answer = await _queued(memory(request), backends, made, f"once more what {job_id[:8]} was")
    return JSONResponse(answer | {"retried_from": job_id})


async def _again(backends: Backends, job: jobs_pb2.Job) -> jobs_pb2.Job:
    request = jobs_pb2.RetryJobRequest(name=job.name, from_start=NO_CHECKPOINT_LABEL in job.labels)
    if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
        # Its model stays; the new one is another.
        request.param_changes.CopyFrom(to_struct(_new_model_names(job), "param_changes"))
    made: jobs_pb2.Job = await backends.jobs.RetryJob(request, timeout=backends.timeouts.call)
    labels = {name: value for name, value in made.labels.items() if name not in _OF_ONE_JOB}
    if labels != made.labels:
        await set_labels(backends, made, labels)
    return made


def _new_model_names(job: jobs_pb2.Job) -> Json:
    if job.pipeline == APPLY:
        return {}
    new = str(uuid.uuid4())
    if job.pipeline != BOTH:
        return {"model_name": new}
    names = {"chi.model_name": f"{new}-chi"}
    return names | ({"cnn.model_name": new} if struct_json(job.params).get("cnn") else {})


async def _beside(backends: Backends, job: jobs_pb2.Job) -> jobs_pb2.Job:
    """Another job like one that is paused, which stays as it is and can still go on."""
    params = struct_json(job.params)
    for path, value in _new_model_names(job).items():
        *parents, name = path.split(".")
        (params[parents[0]] if parents else params)[name] = value
    request = jobs_pb2.SubmitJobRequest(
        pipeline=job.pipeline,
        params=to_struct(params, "params"),
        display_name=job.display_name,
        seed=job.seed,
        inputs=job.inputs,
        pool=job.pool,
        labels=job.labels,
        annotations=job.annotations,
    )
    made: jobs_pb2.Job = await backends.jobs.SubmitJob(request, timeout=backends.timeouts.call)
    return made


@router.post("/jobs/{job_id}/stop")
async def stop_job(job_id: str, request: Request, backends: BackendsDep, hard: bool = False) -> JSONResponse:
    """Ends a run: with its best so far, or hard, at once and with nothing."""
    job = await _running(backends, request, job_id)
    now = phase(job)
    with acting_on(job):
        if hard:
            await cancel(backends, job)
        else:
            await backends.jobs.StopJob(
                jobs_pb2.StopJobRequest(name=job.name), timeout=backends.timeouts.call
            )
    return JSONResponse(
        {
            "job_id": job_id,
            "status": "stop_requested",
            "hard_stop": hard,
            "phase": now,
            # It leaves the queue when its worker has let go, and not before.
            "cleanup": {"removed_from_queue": False, "removed_from_registries": []},
            "message": "it ends now, and nothing is kept" if hard else "it ends with the best it has",
        }
    )


@router.post("/jobs/{job_id}/pause")
async def pause_job(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Has a run save its state and give up its device."""
    job = await _running(backends, request, job_id)
    with acting_on(job):
        await backends.jobs.PauseJob(jobs_pb2.PauseJobRequest(name=job.name), timeout=backends.timeouts.call)
    message = "it saves its state and can be resumed"
    return JSONResponse({"job_id": job_id, "status": "pause_requested", "message": message})


async def _running(backends: Backends, request: Request, job_id: str) -> jobs_pb2.Job:
    if in_production(request):
        user()
    job = await find(backends, job_id)
    require_owner(job)
    if job.state not in HELD:
        raise HTTPException(400, f"the job is {status(job)}; allowed while it runs")
    return job


@router.delete("/jobs/{job_id}")
async def cancel_job(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Takes a job out of the queue."""
    job = await find(backends, job_id)
    require_not_another(job)
    if status(job) not in ("queued", "canceled"):
        raise HTTPException(400, f"a job that is {status(job)} cannot be cancelled; allowed: queued")
    with as_platform():
        await cancel(backends, job)
    memory(request).changed()
    return JSONResponse({"job_id": job_id, "status": "cancelled", "message": "the job will not run"})


@router.delete("/jobs/{job_id}/delete")
async def delete_job(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Forgets a job that does not run; its result in a history and its model stay."""
    job = await find(backends, job_id)
    require_not_another(job)
    if status(job) == "started":
        raise HTTPException(400, "the job runs; stop it first")
    if job.state == jobs_pb2.JOB_STATE_PAUSED:
        # It ends with that: for those who may stop it.
        if in_production(request):
            user()
        require_owner(job)
    with as_platform():
        await _delete(backends, job)
    memory(request).changed()
    return JSONResponse({"job_id": job_id, "status": "deleted"})


async def _delete(backends: Backends, job: jobs_pb2.Job) -> None:
    if not is_final(job):
        await cancel(backends, job)
    await backends.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=job.name), timeout=backends.timeouts.call)


@router.post("/jobs/{job_id}/force-purge")
async def force_purge(job_id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Ends a job whatever it does, and forgets it."""
    require_admin(request)
    job = await find(backends, job_id)
    was = status(job)
    with as_platform():
        if not is_final(job):
            await cancel(backends, job)
            await _end_of(backends, job)
        await backends.jobs.DeleteJob(
            jobs_pb2.DeleteJobRequest(name=job.name), timeout=backends.timeouts.call
        )
    memory(request).changed()
    return JSONResponse({"success": True, "job_id": job_id, "removed_from": [was]})


async def _end_of(backends: Backends, job: jobs_pb2.Job) -> None:
    """Returns when a job has ended, or when that takes too long."""
    call = watch(backends, job, job.last_seq)
    try:
        async with asyncio.timeout(_END_SECONDS):
            async for _ in call:
                pass
    except TimeoutError:
        raise HTTPException(500, "the job's worker has not let go yet; try again") from None
    finally:
        call.cancel()


def _id(job: jobs_pb2.Job) -> str:
    return job.name.rpartition("/")[2]
