"""Which accounts at providers are whose."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from guidehall.contracts.identity.v1 import log_ins_pb2
from guidehall.core.names import IDENTITY, USER
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

router = APIRouter(tags=["identity"])


class CreateIdentity(Body):
    """An account at a provider."""

    provider: Text = Field(max_length=64, description="As `GET /auth/methods` names it")
    subject: Text = Field(max_length=255, description="What the provider calls the account, for good")


@router.get("/users/{user}/identities", **returns(log_ins_pb2.ListIdentitiesResponse))
async def list_identities(
    user: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """A user's accounts at providers, newest first: one's own, or, for administrators, anybody's."""
    request = log_ins_pb2.ListIdentitiesRequest(
        parent=resource(USER, user=user), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.log_ins.ListIdentities(request, timeout=backends.timeouts.call))


@router.post("/users/{user}/identities", status_code=201, **returns(log_ins_pb2.Identity))
async def create_identity(user: str, body: CreateIdentity, backends: BackendsDep) -> JSONResponse:
    """Lets an account at a provider log in as a user. For administrators."""
    request = log_ins_pb2.CreateIdentityRequest(
        parent=resource(USER, user=user), provider=body.provider, subject=body.subject
    )
    return await answer(await backends.log_ins.CreateIdentity(request, timeout=backends.timeouts.call), 201)


@router.delete("/users/{user}/identities/{identity}", status_code=204)
async def delete_identity(user: str, identity: str, backends: BackendsDep) -> Response:
    """Takes an account at a provider from a user, and ends every session of the user. For administrators."""
    request = log_ins_pb2.DeleteIdentityRequest(name=resource(IDENTITY, user=user, identity=identity))
    await backends.log_ins.DeleteIdentity(request, timeout=backends.timeouts.call)
    return Response(status_code=204)
