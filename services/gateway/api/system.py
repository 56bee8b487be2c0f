"""Health, and who the caller is."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from guidehall import __version__
from guidehall.contracts.identity.v1 import identity_pb2
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


@router.get("/whoami", **returns(identity_pb2.Principal))
async def who_am_i(backends: BackendsDep) -> JSONResponse:
    """Who the platform takes the caller for."""
    return await answer(
        await backends.identity.WhoAmI(identity_pb2.WhoAmIRequest(), timeout=backends.timeouts.call)
    )
