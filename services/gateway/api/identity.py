"""Users, their API keys and their sessions."""

from __future__ import annotations

import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from guidehall.contracts.identity.v1 import accounts_pb2, identity_pb2
from guidehall.core.durations import ALLOWED
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import API_KEY, INVITATION, SESSION, USER
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
from services.gateway.api.control import Etag
from services.gateway.api.submissions import Seconds
from services.gateway.messages import enum_choices, enum_number

router = APIRouter(tags=["identity"])

_ROLE = identity_pb2.Role.DESCRIPTOR
ROLES = "VIEWER, SCIENTIST, OPERATOR, ADMIN: each may do what those before it may"


class UserBody(Body):
    """What an administrator says about a user."""

    display_name: Text = Field("", max_length=200)
    email: Text = Field("", max_length=320)
    roles: list[Text] = Field(default_factory=list, description=ROLES)
    groups: list[Text] = Field(default_factory=list)
    disabled: bool = False


class CreateUser(UserBody):
    """A new user; a password is set on its own."""

    user_id: Text = Field(max_length=128)


class UpdateUser(Body):
    """What is to change; what is left out stays."""

    display_name: Text | None = Field(None, max_length=200)
    email: Text | None = Field(None, max_length=320)
    roles: list[Text] | None = Field(None, description=ROLES)
    groups: list[Text] | None = None
    disabled: bool | None = Field(None, description="Ends every session of the user, too")
    etag: Etag = ""


class SetPassword(Body):
    """The first one, or another."""

    password: Text


class CreateApiKey(Body):
    """What a key is for, and how long it counts."""

    display_name: Text = Field("", max_length=200)
    roles: list[Text] = Field(default_factory=list, description=f"Those of the user where empty; {ROLES}")
    ttl: Seconds = Field(0, description=f"{ALLOWED}; 0 is for ever")
    scopes: list[Text] = Field(
        default_factory=list, description="Such as jobs:write; all that the roles allow where empty"
    )


class CreateInvitation(Body):
    """For somebody who shall register."""

    note: Text = Field("", max_length=200)
    roles: list[Text] = Field(default_factory=list, description=f"The usual one where empty; {ROLES}")
    groups: list[Text] = Field(default_factory=list)
    ttl: Seconds = Field(0, description=f"{ALLOWED}; 0 is a week")


@router.get("/users", **returns(identity_pb2.ListUsersResponse))
async def list_users(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Users, newest first. For operators."""
    request = identity_pb2.ListUsersRequest(page_size=page_size, page_token=page_token)
    return await answer(await backends.identity.ListUsers(request, timeout=backends.timeouts.call))


@router.post("/users", status_code=201, **returns(identity_pb2.User))
async def create_user(body: CreateUser, backends: BackendsDep) -> JSONResponse:
    """Adds a user. For administrators."""
    user = identity_pb2.User(
        display_name=body.display_name,
        email=body.email,
        roles=roles_of(body.roles),
        groups=body.groups,
        disabled=body.disabled,
    )
    request = identity_pb2.CreateUserRequest(user_id=body.user_id, user=user)
    return await answer(await backends.identity.CreateUser(request, timeout=backends.timeouts.call), 201)


@router.get("/users/{user}", **returns(identity_pb2.User))
async def get_user(user: str, backends: BackendsDep) -> JSONResponse:
    """One user: oneself, or, for operators, anybody."""
    request = identity_pb2.GetUserRequest(name=resource(USER, user=user))
    return await answer(await backends.identity.GetUser(request, timeout=backends.timeouts.call))


@router.patch("/users/{user}", **returns(identity_pb2.User))
async def update_user(user: str, body: UpdateUser, backends: BackendsDep) -> JSONResponse:
    """Changes what is given. For administrators. `disabled` keeps a user out and ends every session."""
    changed = body.model_dump(exclude={"etag"}, exclude_none=True)
    if not changed:
        raise InvalidArgument("nothing is to change: give display_name, email, roles, groups or disabled")
    name = resource(USER, user=user)
    before = identity_pb2.GetUserRequest(name=name)
    message = await backends.identity.GetUser(before, timeout=backends.timeouts.call)
    for field in ("display_name", "email", "disabled"):
        if field in changed:
            setattr(message, field, changed[field])
    if body.roles is not None:
        message.roles[:] = roles_of(body.roles)
    if body.groups is not None:
        message.groups[:] = body.groups
    # That nobody's change between the two calls gets lost.
    message.etag = body.etag or message.etag
    request = identity_pb2.UpdateUserRequest(user=message)
    return await answer(await backends.identity.UpdateUser(request, timeout=backends.timeouts.call))


@router.post("/users/{user}:set-password", status_code=200, **returns(accounts_pb2.SetPasswordResponse))
async def set_password(user: str, body: SetPassword, backends: BackendsDep) -> JSONResponse:
    """Gives a user a password, the first or another, and ends every session. For administrators."""
    request = accounts_pb2.SetPasswordRequest(name=resource(USER, user=user), password=body.password)
    return await answer(await backends.accounts.SetPassword(request, timeout=backends.timeouts.call))


@router.get("/users/{user}/keys", **returns(identity_pb2.ListApiKeysResponse))
async def list_api_keys(
    user: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """A user's API keys without their secrets, newest first."""
    request = identity_pb2.ListApiKeysRequest(
        parent=resource(USER, user=user), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.identity.ListApiKeys(request, timeout=backends.timeouts.call))


@router.post(
    "/users/{user}/keys",
    status_code=201,
    **returns(identity_pb2.CreateApiKeyResponse, "The secret is told this once"),
)
async def create_api_key(user: str, backends: BackendsDep, body: CreateApiKey | None = None) -> JSONResponse:
    """Makes an API key, which counts as a bearer token everywhere."""
    body = body or CreateApiKey()
    key = identity_pb2.ApiKey(display_name=body.display_name, roles=roles_of(body.roles), scopes=body.scopes)
    if body.ttl:
        key.expire_time.FromSeconds(int(time.time()) + body.ttl)
    request = identity_pb2.CreateApiKeyRequest(parent=resource(USER, user=user), api_key=key)
    made = await backends.identity.CreateApiKey(request, timeout=backends.timeouts.call)
    return await answer(made, status_code=201)


@router.post("/users/{user}/keys/{key}:revoke", **returns(identity_pb2.ApiKey))
async def revoke_api_key(user: str, key: str, backends: BackendsDep) -> JSONResponse:
    """Ends an API key, for good. May be repeated."""
    request = identity_pb2.RevokeApiKeyRequest(name=resource(API_KEY, user=user, key=key))
    return await answer(await backends.identity.RevokeApiKey(request, timeout=backends.timeouts.call))


@router.get("/users/{user}/sessions", **returns(accounts_pb2.ListSessionsResponse))
async def list_sessions(
    user: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Where a user has logged in, newest first: oneself, or, for administrators, anybody."""
    request = accounts_pb2.ListSessionsRequest(
        parent=resource(USER, user=user), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.accounts.ListSessions(request, timeout=backends.timeouts.call))


@router.post("/users/{user}/sessions:revoke", **returns(accounts_pb2.RevokeSessionsResponse))
async def revoke_sessions(user: str, backends: BackendsDep) -> JSONResponse:
    """Ends every session of a user."""
    request = accounts_pb2.RevokeSessionsRequest(parent=resource(USER, user=user))
    return await answer(await backends.accounts.RevokeSessions(request, timeout=backends.timeouts.call))


@router.post("/users/{user}/sessions/{session}:revoke", **returns(accounts_pb2.Session))
async def revoke_session(user: str, session: str, backends: BackendsDep) -> JSONResponse:
    """Ends a session. May be repeated."""
    request = accounts_pb2.RevokeSessionRequest(name=resource(SESSION, user=user, session=session))
    return await answer(await backends.accounts.RevokeSession(request, timeout=backends.timeouts.call))


@router.post(
    "/invitations",
    status_code=201,
    **returns(accounts_pb2.CreateInvitationResponse, "The secret is told this once"),
)
async def create_invitation(backends: BackendsDep, body: CreateInvitation | None = None) -> JSONResponse:
    """Makes an invitation, which is good for one registration. For administrators."""
    body = body or CreateInvitation()
    invitation = accounts_pb2.Invitation(note=body.note, roles=roles_of(body.roles), groups=body.groups)
    if body.ttl:
        invitation.expire_time.FromSeconds(int(time.time()) + body.ttl)
    request = accounts_pb2.CreateInvitationRequest(invitation=invitation)
    made = await backends.accounts.CreateInvitation(request, timeout=backends.timeouts.call)
    return await answer(made, status_code=201)


@router.get("/invitations", **returns(accounts_pb2.ListInvitationsResponse))
async def list_invitations(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Invitations that nobody has used yet, newest first. For administrators."""
    request = accounts_pb2.ListInvitationsRequest(page_size=page_size, page_token=page_token)
    return await answer(await backends.accounts.ListInvitations(request, timeout=backends.timeouts.call))


@router.delete("/invitations/{invitation}", **returns(accounts_pb2.DeleteInvitationResponse))
async def delete_invitation(invitation: str, backends: BackendsDep) -> JSONResponse:
    """Takes an invitation back. For administrators."""
    request = accounts_pb2.DeleteInvitationRequest(name=resource(INVITATION, invitation=invitation))
    return await answer(await backends.accounts.DeleteInvitation(request, timeout=backends.timeouts.call))


def roles_of(texts: list[str]) -> list[identity_pb2.Role.ValueType]:
    """Roles by their names.

    Raises:
        InvalidArgument: one that there is not.
    """
    numbers = []
    for index, text in enumerate(texts):
        number = enum_number(_ROLE, text)
        if number is None:
            raise InvalidArgument.field(f"roles[{index}]", text, ", ".join(enum_choices(_ROLE)))
        numbers.append(identity_pb2.Role.ValueType(number))
    return numbers
