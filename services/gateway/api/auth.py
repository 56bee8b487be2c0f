"""`/auth/…`: logging in and out, for programs and for browsers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from guidehall.contracts.identity.v1 import accounts_pb2, identity_pb2
from guidehall.core.auth import current_principal
from guidehall.core.errors import Unauthenticated
from services.gateway import cookies
from services.gateway.api.common import BackendsDep, Body, Text, answer, returns
from services.gateway.api.log_ins import origin
from services.gateway.messages import Json, to_json
from services.gateway.settings import GatewaySettings

router = APIRouter(prefix="/auth", tags=["auth"])


class LogIn(Body):
    """A local account."""

    user: Text = Field(max_length=128)
    # Its length is checked where it cannot be repeated by a refusal.
    password: Text
    cookie: bool = Field(
        False, description="Keep the session in the browser's cookies, in the place of tokens in the answer"
    )


class RefreshSession(Body):
    """A program's session; a browser's is in its cookie."""

    refresh_token: Text = ""


class ChangePassword(Body):
    """One's own."""

    current: Text
    new: Text


class Register(Body):
    """A new account, where people may make their own."""

    user: Text = Field(max_length=128)
    password: Text
    display_name: Text = Field("", max_length=200)
    email: Text = Field("", max_length=320)
    invitation: Text = Field("", description="The secret of an invitation, where one is asked for")


class LogInProvider(BaseModel):
    """One that proves who somebody is."""

    name: str
    title: str = Field(description="What people call it")
    kind: Literal["openid", "github"]
    login: str = Field(description="Where a browser begins; `?next=` says where it ends")


class LogInMethods(BaseModel):
    """How one logs in here."""

    mode: Literal["single", "proxy", "token"]
    methods: list[str] = Field(description='"password" where there are local accounts')
    providers: list[LogInProvider]
    registration: Literal["off", "invite", "on"]
    endpoints: dict[str, str] = Field(description="Where the services are for programs that speak gRPC")


def log_in_providers(request: Request) -> list[LogInProvider]:
    """Those that are set up; they count in mode "token" alone."""
    settings: GatewaySettings = request.app.state.settings
    if settings.auth.mode != "token":
        return []
    return [
        LogInProvider(
            name=name,
            title=provider.title or name,
            kind=provider.kind,
            login=f"/auth/oidc/{name}/login",
        )
        for name, provider in settings.log_in.providers.items()
    ]


@router.get("/methods")
async def get_log_in_methods(request: Request, backends: BackendsDep) -> LogInMethods:
    """How one logs in here. Needs no credential."""
    settings: GatewaySettings = request.app.state.settings
    options = accounts_pb2.LogInOptions(registration="off")
    if settings.auth.mode == "token":
        options = await backends.accounts.GetLogInOptions(
            accounts_pb2.GetLogInOptionsRequest(), timeout=backends.timeouts.call
        )
    return LogInMethods.model_validate(
        {
            "mode": settings.auth.mode,
            "methods": list(options.methods),
            "providers": log_in_providers(request),
            "registration": options.registration,
            "endpoints": settings.public_endpoints,
        }
    )


@router.post("/login", **returns(accounts_pb2.SessionTokens))
async def log_in(body: LogIn, request: Request, backends: BackendsDep) -> JSONResponse:
    """Begins a session."""
    message = accounts_pb2.LogInRequest(user_id=body.user, password=body.password, origin=origin(request))
    tokens = await backends.accounts.LogIn(message, timeout=backends.timeouts.call)
    return _told(request, tokens, in_cookie=body.cookie)


@router.post("/refresh", **returns(accounts_pb2.SessionTokens))
async def refresh_session(
    request: Request, backends: BackendsDep, body: RefreshSession | None = None
) -> JSONResponse:
    """The next tokens of a session. A refresh token is good for one refresh: the answer has the next one. A
    used one that comes again ends the session."""
    given = body.refresh_token if body else ""
    in_cookie = not given
    token = given or cookies.refresh_token(request)
    if not token:
        raise Unauthenticated("there is no session to refresh", reason="NO_SESSION")
    message = accounts_pb2.RefreshSessionRequest(refresh_token=token, origin=origin(request))
    tokens = await backends.accounts.RefreshSession(message, timeout=backends.timeouts.call)
    return _told(request, tokens, in_cookie=in_cookie)


@router.post("/logout", status_code=204)
async def log_out(request: Request, backends: BackendsDep, body: RefreshSession | None = None) -> Response:
    """Ends a session. Its access token, which is not asked about anywhere, holds until it expires."""
    given = body.refresh_token if body else ""
    token = given or cookies.refresh_token(request)
    if token:
        message = accounts_pb2.LogOutRequest(refresh_token=token)
        await backends.accounts.LogOut(message, timeout=backends.timeouts.call)
    response = Response(status_code=204)
    if not given:
        cookies.forget(response, request)
    return response


@router.post("/password", **returns(accounts_pb2.SessionTokens))
async def change_password(body: ChangePassword, request: Request, backends: BackendsDep) -> JSONResponse:
    """Gives the caller another password: every session ends, and the answer is a new one."""
    message = accounts_pb2.ChangePasswordRequest(
        current_password=body.current, new_password=body.new, origin=origin(request)
    )
    tokens = await backends.accounts.ChangePassword(message, timeout=backends.timeouts.call)
    return _told(request, tokens, in_cookie="authorization" not in request.headers)


@router.post("/register", status_code=201, **returns(identity_pb2.User))
async def register(body: Register, request: Request, backends: BackendsDep) -> JSONResponse:
    """Makes an account. Its roles are not the caller's choice."""
    message = accounts_pb2.RegisterRequest(
        user_id=body.user,
        password=body.password,
        display_name=body.display_name,
        email=body.email,
        invitation=body.invitation,
        origin=origin(request),
    )
    return await answer(await backends.accounts.Register(message, timeout=backends.timeouts.call), 201)


class CurrentSession(BaseModel):
    """Who calls, and by what."""

    principal: Json = Field(description="As `GET /api/v1/whoami` has it")
    credential: str = Field(description="Name of the session or of the API key; empty for another credential")


@router.get("/session")
async def get_session(backends: BackendsDep) -> CurrentSession:
    """Who the caller is, and the name of the session or the key that says so."""
    credential = current_principal().credential_id or ""
    principal = await backends.identity.WhoAmI(identity_pb2.WhoAmIRequest(), timeout=backends.timeouts.call)
    return CurrentSession(
        principal=to_json(principal), credential=credential if credential.startswith("users/") else ""
    )


def _told(request: Request, tokens: accounts_pb2.SessionTokens, *, in_cookie: bool) -> JSONResponse:
    """The tokens of a session, in cookies or in the body, which then nobody on the way may keep."""
    body = to_json(tokens)
    if in_cookie:
        body |= {"access_token": "", "refresh_token": ""}
    response = JSONResponse(body, headers={"Cache-Control": "no-store"})
    if in_cookie:
        cookies.keep(response, request, tokens)
    return response
