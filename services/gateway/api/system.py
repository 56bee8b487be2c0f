"""Health, who the caller is, and the queue."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from guidehall import __version__
from guidehall.contracts.identity.v1 import identity_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from services.gateway.api.common import BackendsDep, PageSize, PageToken, answer, returns

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


@router.get("/whoami", **returns(identity_pb2.Principal))
async def who_am_i(backends: BackendsDep) -> JSONResponse:
    """Who the platform takes the caller for."""
    return answer(
        await backends.identity.WhoAmI(identity_pb2.WhoAmIRequest(), timeout=backends.timeouts.call)
    )


@router.get("/pools", **returns(workers_pb2.ListPoolsResponse))
async def list_pools(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """How much waits and runs in each pool."""
    request = workers_pb2.ListPoolsRequest(page_size=page_size, page_token=page_token)
    return answer(await backends.pools.ListPools(request, timeout=backends.timeouts.call))


@router.get("/workers", **returns(workers_pb2.ListWorkersResponse))
async def list_workers(
    backends: BackendsDep, pool: str = "", page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Workers and what they do."""
    request = workers_pb2.ListWorkersRequest(pool=pool, page_size=page_size, page_token=page_token)
    return answer(await backends.pools.ListWorkers(request, timeout=backends.timeouts.call))
