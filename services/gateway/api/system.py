"""Health, who the caller is, and what is the caller's."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from guidehall import __version__
from guidehall.contracts.identity.v1 import identity_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.usage.v1 import usage_pb2
from services.gateway.api.common import BackendsDep, answer, returns

router = APIRouter(tags=["system"])


class Health(BaseModel):
    """How the platform is."""

    status: Literal["ready", "degraded"]
    version: str
    services: dict[str, bool] = Field(description="Which services behind the gateway serve")


@router.get("/health")
async def health(backends: BackendsDep) -> Health:
    """The gateway answers: 200. `status` is "ready" when every service behind it serves, else "degraded"."""
    services = await backends.health()
    return Health(
        status="ready" if all(services.values()) else "degraded", version=__version__, services=services
    )


class Usage(BaseModel):
    """What the caller has stored, and the caller's jobs."""

    dataset_bytes: int
    model_bytes: int
    artifact_bytes: int = Field(description="Files of results")
    log_bytes: int = Field(description="Logs of jobs without a result")
    total_bytes: int = Field(description="What was deleted counts as long as it is kept")
    allowed_bytes: int = Field(description="Uploads beyond it are refused; 0 is no limit")
    queued_jobs: int = Field(description="Paused ones too")
    running_jobs: int
    ended_jobs: int = Field(description="Those that have not been deleted")


@router.get("/usage")
async def usage(backends: BackendsDep) -> Usage:
    """How much of the platform the caller takes up, and how much it may be."""
    seconds = backends.timeouts.call
    stored, jobs = await asyncio.gather(
        backends.usage.GetUsage(usage_pb2.GetUsageRequest(), timeout=seconds),
        backends.jobs.CountJobs(jobs_pb2.CountJobsRequest(), timeout=seconds),
    )
    return Usage(
        dataset_bytes=stored.dataset_bytes,
        model_bytes=stored.model_bytes,
        artifact_bytes=stored.artifact_bytes,
        log_bytes=stored.log_bytes,
        total_bytes=stored.total_bytes,
        allowed_bytes=stored.allowed_bytes,
        queued_jobs=jobs.queued,
        running_jobs=jobs.running,
        ended_jobs=jobs.ended,
    )


@router.get("/whoami", **returns(identity_pb2.Principal))
async def who_am_i(backends: BackendsDep) -> JSONResponse:
    """Who the platform takes the caller for."""
    return await answer(
        await backends.identity.WhoAmI(identity_pb2.WhoAmIRequest(), timeout=backends.timeouts.call)
    )
