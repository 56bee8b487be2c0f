"""The queues, their workers, and what workers prove themselves with."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.durations import ALLOWED
from guidehall.core.names import POOL, WORKER, WORKER_CREDENTIAL
from services.gateway.api.common import (
    BackendsDep,
    Body,
    PageSize,
    PageToken,
    Text,
    answer,
    resource,
    returns,
)
from services.gateway.api.submissions import Seconds

router = APIRouter(tags=["workers"])

# In the place of a pool: every one.
_EVERY = "-"


class DrainWorker(Body):
    """How a worker leaves."""

    release_job: bool = Field(
        False, description="Its job saves its state and leaves, instead of running to its end"
    )


class CreateWorkerCredential(Body):
    """What a credential is for, and how long it counts."""

    note: Text = Field("", max_length=200)
    ttl: Seconds = Field(0, description=f"{ALLOWED}; 0 is a year")


@router.get("/pools", **returns(workers_pb2.ListPoolsResponse))
async def list_pools(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """How much waits and runs in each pool."""
    request = workers_pb2.ListPoolsRequest(page_size=page_size, page_token=page_token)
    return await answer(await backends.pools.ListPools(request, timeout=backends.timeouts.call))


@router.get("/pools/{pool}", **returns(workers_pb2.Pool))
async def get_pool(pool: str, backends: BackendsDep) -> JSONResponse:
    """One pool."""
    request = workers_pb2.GetPoolRequest(name=resource(POOL, pool=pool))
    return await answer(await backends.pools.GetPool(request, timeout=backends.timeouts.call))


@router.get("/workers", **returns(workers_pb2.ListWorkersResponse))
async def list_workers(
    backends: BackendsDep, pool: str = "", page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Workers and what they do."""
    request = workers_pb2.ListWorkersRequest(pool=pool, page_size=page_size, page_token=page_token)
    return await answer(await backends.pools.ListWorkers(request, timeout=backends.timeouts.call))


@router.post("/workers/{pool}/{worker}:drain", **returns(workers_pb2.Worker))
async def drain_worker(
    pool: str, worker: str, backends: BackendsDep, body: DrainWorker | None = None
) -> JSONResponse:
    """Takes a worker out of service: it finishes its job and takes no other. May be repeated."""
    body = body or DrainWorker()
    name = resource(WORKER, pool=pool, worker=worker)
    request = workers_pb2.DrainWorkerRequest(name=name, release_job=body.release_job)
    return await answer(await backends.pools.DrainWorker(request, timeout=backends.timeouts.call))


@router.post("/workers/{pool}/{worker}:reinstate", **returns(workers_pb2.Worker))
async def reinstate_worker(pool: str, worker: str, backends: BackendsDep) -> JSONResponse:
    """Takes a worker that was drained, or has quarantined itself, into service again. May be repeated."""
    request = workers_pb2.ReinstateWorkerRequest(name=resource(WORKER, pool=pool, worker=worker))
    return await answer(await backends.pools.ReinstateWorker(request, timeout=backends.timeouts.call))


@router.post(
    "/pools/{pool}/credentials",
    status_code=201,
    **returns(workers_pb2.CreateWorkerCredentialResponse, "The token is told this once"),
)
async def create_worker_credential(
    pool: str, backends: BackendsDep, body: CreateWorkerCredential | None = None
) -> JSONResponse:
    """Makes what the workers of a pool prove themselves with."""
    body = body or CreateWorkerCredential()
    request = workers_pb2.CreateWorkerCredentialRequest(
        parent=resource(POOL, pool=pool), note=body.note, ttl_seconds=body.ttl
    )
    made = await backends.pools.CreateWorkerCredential(request, timeout=backends.timeouts.call)
    return await answer(made, status_code=201)


@router.get("/pools/{pool}/credentials", **returns(workers_pb2.ListWorkerCredentialsResponse))
async def list_worker_credentials(
    pool: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """The credentials of a pool's workers; of every pool where `-` stands in its place."""
    parent = "" if pool == _EVERY else resource(POOL, pool=pool)
    request = workers_pb2.ListWorkerCredentialsRequest(
        parent=parent, page_size=page_size, page_token=page_token
    )
    return await answer(await backends.pools.ListWorkerCredentials(request, timeout=backends.timeouts.call))


@router.post("/pools/{pool}/credentials/{credential}:revoke", **returns(workers_pb2.WorkerCredential))
async def revoke_worker_credential(pool: str, credential: str, backends: BackendsDep) -> JSONResponse:
    """Ends a credential: what its workers hold is lost to them. May be repeated."""
    name = resource(WORKER_CREDENTIAL, pool=pool, credential=credential)
    request = workers_pb2.RevokeWorkerCredentialRequest(name=name)
    return await answer(await backends.pools.RevokeWorkerCredential(request, timeout=backends.timeouts.call))
