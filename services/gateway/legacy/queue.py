"""/api/queue: what waits, runs and has ended, and who works."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import grpc
from fastapi import Query, Request
from fastapi.responses import JSONResponse

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.auth import Principal, current_principal
from guidehall.core.errors import AppError, from_rpc_error
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy.common import OldRouter, is_guest, require_admin
from services.gateway.legacy.pools import all_pools, live_workers, remote_worker, worker_view
from services.gateway.legacy.runs import CALL_LABEL, LABEL, LABEL_VALUE, Memory, cancel, is_run, memory, owned
from services.gateway.legacy.status import phase, time_text
from services.gateway.messages import Json

router = OldRouter()

_SECONDS = 1.0
# How many of each state are listed, newest first but for those that wait; all together at most 50.
_LISTED = {
    "RUNNING": 10,
    "LEASED": 10,
    "QUEUED": 20,
    "PAUSED": 10,
    "SUCCEEDED": 10,
    "FAILED": 10,
    "CANCELLED": 10,
}
_MOST_STARTED, _MOST_FINISHED, _MOST_FAILED = 10, 10, 10
_STALE_SECONDS = 600
_MOST_SCANNED = 200
_Jobs = dict[str, list[jobs_pb2.Job]]
# Where the broker of the old app was; here there is none that a page could reach.
_NO_BROKER = {"scheme": "guidehall", "host": "", "port": 0, "db": 0}


@router.get("/queue")
async def get_queue(request: Request, backends: BackendsDep) -> JSONResponse:
    """The queue as the caller may see it: own jobs and those of guests. Always 200."""
    try:
        return JSONResponse(await _queue(memory(request), backends, current_principal()))
    except grpc.aio.AioRpcError as error:
        return JSONResponse({"available": False, "error": from_rpc_error(error).message})
    except AppError as error:
        return JSONResponse({"available": False, "error": error.message})


async def _queue(store: Memory, backends: Backends, caller: Principal) -> Json:
    owners = [""] if is_guest(caller) else ["", caller.subject]
    found = await asyncio.gather(*(_listed(store, backends, owner) for owner in owners))
    workers = await live_workers(store, backends)
    jobs = {state: _newest([job for listed in found for job in listed[state]]) for state in _LISTED}
    started = jobs["RUNNING"] + jobs["LEASED"]
    queued = sorted(jobs["QUEUED"], key=lambda job: job.queue_position)
    # A paused job has ended for now; of the cancelled ones those that had begun are stopped.
    ended = _newest(jobs["SUCCEEDED"] + jobs["PAUSED"])
    failed = _newest(jobs["FAILED"] + [job for job in jobs["CANCELLED"] if job.HasField("start_time")])
    shown = frozenset(job.name for job in started)
    listed = [*started[:_MOST_STARTED], *queued[:20], *ended[:_MOST_FINISHED], *failed[:_MOST_FAILED]]
    answer: Json = {
        "available": True,
        "queue_name": "training",
        "queued_jobs": len(queued),
        "started_jobs": len(started),
        "job_ids": [job.name.rpartition("/")[2] for job in listed],
        "redis": _NO_BROKER,
        "remote_workers_compatible": True,
        "local_worker_enabled": bool(workers),
        "workers": [worker_view(worker, shown) for worker in workers],
    }
    if queued and not workers:
        answer["remote_worker"] = await remote_worker(store, backends, queued[0].pool)
    return answer


def _newest(jobs: list[jobs_pb2.Job]) -> list[jobs_pb2.Job]:
    return sorted(jobs, key=lambda job: (job.create_time.seconds, job.create_time.nanos), reverse=True)


async def _listed(store: Memory, backends: Backends, owner: str) -> _Jobs:
    """The newest jobs of one owner by state, as of at most a second ago."""

    async def of_state(state: str, most: int) -> list[jobs_pb2.Job]:
        terms = f'{owned(owner)} AND state = {state} AND labels.{CALL_LABEL} = "submit"'
        order = "create_time" if state == "QUEUED" else "create_time desc"
        request = jobs_pb2.ListJobsRequest(page_size=most, filter=terms, order_by=order)
        answer = await backends.jobs.ListJobs(request, timeout=backends.timeouts.call)
        return list(filter(is_run, answer.jobs))

    async def ask() -> _Jobs:
        found = await asyncio.gather(*(of_state(*item) for item in _LISTED.items()))
        return dict(zip(_LISTED, found, strict=True))

    return await store.as_of_late(f"jobs of {owner}", _SECONDS, ask)


@router.post("/queue/spawn")
async def spawn_worker(request: Request, backends: BackendsDep) -> JSONResponse:
    """Tells whether a worker is on its way: the platform starts them where it can."""
    require_admin(request)
    store = memory(request)
    pools = await all_pools(store, backends)
    wanting = [name for name, pool in pools.items() if pool.queued_jobs and not pool.live_workers]
    if not wanting:
        reason = "every pool with jobs that wait has workers"
        return JSONResponse({"remote_worker": {"triggered": False, "reason": reason}})
    return JSONResponse({"remote_worker": await remote_worker(store, backends, wanting[0])})


@router.post("/queue/cleanup")
async def clean_up(
    request: Request,
    backends: BackendsDep,
    dry_run: bool = False,
    threshold_seconds: Annotated[int, Query(ge=1, le=10**7)] = _STALE_SECONDS,
) -> JSONResponse:
    """Ends runs that have told nothing for long, or, dry, only lists them.

    Their workers are there: those that are gone lose their jobs within seconds.
    """
    require_admin(request)

    async def of_state(state: str) -> list[jobs_pb2.Job]:
        terms = f'labels.{LABEL} = "{LABEL_VALUE}" AND state = {state}'
        wanted = jobs_pb2.ListJobsRequest(page_size=_MOST_SCANNED, filter=terms)
        answer = await backends.jobs.ListJobs(wanted, timeout=backends.timeouts.call)
        return list(filter(is_run, answer.jobs))

    with as_platform():
        held = await asyncio.gather(of_state("RUNNING"), of_state("LEASED"))
    running = [job for jobs in held for job in jobs]
    now = datetime.now(UTC)
    ages = [(now - job.update_time.ToDatetime(tzinfo=UTC)).total_seconds() for job in running]
    silent = [(job, age) for job, age in zip(running, ages, strict=True) if age > threshold_seconds]
    cleaned, errors = (
        ([], []) if dry_run else await _end(memory(request), backends, [job for job, _ in silent])
    )
    stale = [
        {
            "job_id": job.name.rpartition("/")[2],
            "age_seconds": round(age),
            "last_seen": time_text(job, "update_time"),
            "phase": phase(job),
            "user_id": job.owner or None,
            "name": job.display_name or None,
            "reason": f"nothing was told for {age:.0f} seconds; its worker holds the lease",
        }
        for job, age in silent
    ]
    return JSONResponse(
        {
            "scanned": len(running),
            "stale": stale,
            "cleaned": cleaned,
            "errors": errors,
            "threshold_seconds": threshold_seconds,
            "dry_run": dry_run,
        }
    )


async def _end(store: Memory, backends: Backends, jobs: list[jobs_pb2.Job]) -> tuple[list[str], list[Json]]:
    """Cancels jobs; ids of those that end now, and why others do not."""
    cleaned, errors = [], []
    for job in jobs:
        id = job.name.rpartition("/")[2]
        try:
            with as_platform():
                await cancel(backends, job)
            cleaned.append(id)
        except grpc.aio.AioRpcError as error:
            errors.append({"job_id": id, "error": from_rpc_error(error).message})
    store.changed()
    return cleaned, errors
