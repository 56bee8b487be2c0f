"""`/auth/device…`: a program without a browser logs in by one where its user has a session (RFC 8628)."""

from __future__ import annotations

import time
from html import escape
from typing import Annotated
from urllib.parse import quote

import grpc
from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field

from guidehall.contracts.identity.v1 import accounts_pb2, log_ins_pb2
from guidehall.core.auth import Principal
from guidehall.core.errors import AppError, PermissionDenied, Unauthenticated, from_rpc_error
from services.gateway import cookies
from services.gateway.api.auth import log_in_providers
from services.gateway.api.common import BackendsDep, Body, Text, returns
from services.gateway.api.log_ins import log_ins_of, origin, public_url, told
from services.gateway.backends import Backends
from services.gateway.callers import set_caller
from services.gateway.identity import HttpIdentity
from services.gateway.log_in import pages
from services.gateway.messages import to_json

router = APIRouter(prefix="/auth/device", tags=["auth"])

_PATH = "/auth/device"
_FORM_SECONDS = 600
_Word = Annotated[str, Form(max_length=4096)]
_UserCode = Annotated[str, Query(max_length=32)]


class BeginDevice(Body):
    """A program that wants to log in."""

    client: Text = Field("", max_length=200, description="What it calls itself, for its user to recognise it")


class DeviceCodes(BaseModel):
    """As in RFC 8628, 3.2."""

    device_code: str
    user_code: str = Field(description="What the user types")
    verification_uri: str = Field(description="Where")
    verification_uri_complete: str
    expires_in: int = Field(description="seconds")
    interval: float = Field(description="seconds to wait at least between two questions")


class FinishDevice(Body):
    """The question whether somebody has decided."""

    device_code: Text = Field(max_length=200)


@router.post("/code")
async def begin_device_log_in(
    request: Request, backends: BackendsDep, body: BeginDevice | None = None
) -> DeviceCodes:
    """Begins the log-in of a program, which shows its user the code and the address."""
    message = log_ins_pb2.BeginDeviceLogInRequest(origin=origin(request, body.client if body else ""))
    codes = await backends.log_ins.BeginDeviceLogIn(message, timeout=backends.timeouts.call)
    where = public_url(request) + _PATH
    return DeviceCodes(
        device_code=codes.device_code,
        user_code=codes.user_code,
        verification_uri=where,
        verification_uri_complete=f"{where}?user_code={codes.user_code}",
        expires_in=max(0, round(codes.expire_time.seconds - time.time())),
        interval=codes.interval_seconds,
    )


@router.post("/token", **returns(accounts_pb2.SessionTokens))
async def finish_device_log_in(body: FinishDevice, request: Request, backends: BackendsDep) -> JSONResponse:
    """The tokens, once. Until somebody has decided, 400 `AUTHORIZATION_PENDING`; 429 `SLOW_DOWN` asks to wait
    5 s longer from now on; then 403 `ACCESS_DENIED` or 401 `EXPIRED_TOKEN`."""
    message = log_ins_pb2.FinishDeviceLogInRequest(device_code=body.device_code, origin=origin(request, ""))
    tokens = await backends.log_ins.FinishDeviceLogIn(message, timeout=backends.timeouts.call)
    return JSONResponse(to_json(tokens), headers={"Cache-Control": "no-store"})


@router.get("", include_in_schema=False)
async def show_device_log_in(request: Request, backends: BackendsDep, user_code: _UserCode = "") -> Response:
    """The page where the user types the code, sees who asks, and decides."""
    principal = await _session(request)
    if principal is None:
        return await _log_in_page(request, backends, user_code)
    if not user_code:
        field = '<input name="user_code" placeholder="BCDF-GHJK" autocomplete="off" autofocus required>'
        return pages.page(
            "Log a program in",
            f'<form method="get" action="{_PATH}"><p>The code that it shows: {field} '
            "<button>Next</button></p></form>",
        )
    set_caller(principal)
    message = log_ins_pb2.GetDeviceLogInRequest(user_code=user_code)
    try:
        asked = await backends.log_ins.GetDeviceLogIn(message, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        return told(request, from_rpc_error(error))
    sealed = log_ins_of(request).forms.close({"session": principal.credential_id, "code": user_code})
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in (("user_code", user_code), ("form", sealed))
    )
    return pages.page(
        "Log a program in",
        f"<p>A program that calls itself <b>{escape(asked.client or 'nothing')}</b>, at "
        f"<b>{escape(asked.address or 'an unknown address')}</b>, asks to act as "
        f"<b>{escape(principal.subject)}</b>.</p>"
        f"<p>Approve it only if you have just started it and it shows <b>{escape(user_code)}</b>.</p>"
        f'<form method="post" action="{_PATH}">{hidden}'
        '<button name="decision" value="approve">Approve</button> '
        '<button name="decision" value="deny">Refuse</button></form>',
    )


@router.post("", include_in_schema=False)
async def decide_device_log_in(
    request: Request, backends: BackendsDep, user_code: _Word, decision: _Word, form: _Word
) -> Response:
    """Approves or refuses."""
    principal = await _session(request)
    if principal is None:
        return _back(user_code)
    begun = log_ins_of(request).forms.open(form, _FORM_SECONDS)
    if begun != {"session": principal.credential_id, "code": user_code}:
        refusal = PermissionDenied("this form is not of your session, or too old", reason="BAD_FORM")
        return told(request, refusal)
    set_caller(principal)
    approve = decision == "approve"
    message = log_ins_pb2.DecideDeviceLogInRequest(user_code=user_code, approve=approve)
    try:
        await backends.log_ins.DecideDeviceLogIn(message, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        return told(request, from_rpc_error(error))
    done = "The program is logged in." if approve else "The program is refused."
    return pages.page("Log a program in", f"<p>{done} You may close this page.</p>")


@router.post("/log-in", include_in_schema=False)
async def log_in_for_device(
    request: Request,
    backends: BackendsDep,
    user: Annotated[str, Form(max_length=128)],
    password: _Word,
    user_code: _Word = "",
) -> Response:
    """Begins a browser's session with a local account, and leads back to the code."""
    message = accounts_pb2.LogInRequest(user_id=user, password=password, origin=origin(request, ""))
    try:
        tokens = await backends.accounts.LogIn(message, timeout=backends.timeouts.call)
        response = _back(user_code)
        cookies.keep(response, request, tokens)
    except grpc.aio.AioRpcError as error:
        return told(request, from_rpc_error(error))
    except AppError as error:
        return told(request, error)
    return response


async def _log_in_page(request: Request, backends: Backends, user_code: str) -> Response:
    """How one logs in here, in a browser."""
    message = accounts_pb2.GetLogInOptionsRequest()
    try:
        options = await backends.accounts.GetLogInOptions(message, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        return told(request, from_rpc_error(error))
    then = quote(f"{_PATH}?user_code={quote(user_code, safe='')}", safe="")
    body = "".join(
        f'<p><a href="{escape(item.login)}?next={then}">Log in with {escape(item.title)}</a></p>'
        for item in log_in_providers(request)
    )
    if "password" in options.methods:
        body += (
            f'<form method="post" action="{_PATH}/log-in">'
            f'<input type="hidden" name="user_code" value="{escape(user_code)}">'
            '<p>Name <input name="user" autocomplete="username" required></p>'
            '<p>Password <input name="password" type="password" autocomplete="current-password" required></p>'
            "<p><button>Log in</button></p></form>"
        )
    return pages.page("Log in first", body or "<p>Nobody logs in here.</p>")


async def _session(request: Request) -> Principal | None:
    """Who has a session in this browser. No other credential counts: it may have fewer roles than the session
    that would come of it."""
    token = cookies.access_token_of_form(request)
    if request.app.state.settings.auth.mode != "token" or not token:
        return None
    identity: HttpIdentity = request.app.state.identity
    try:
        principal = await identity({"authorization": f"Bearer {token}"}, "unknown")
    except (Unauthenticated, PermissionDenied):
        return None
    return principal if "/sessions/" in (principal.credential_id or "") else None


def _back(user_code: str) -> Response:
    return RedirectResponse(f"{_PATH}?user_code={quote(user_code, safe='')}", 303)
