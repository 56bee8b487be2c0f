"""`/auth/oidc/…`: logging in by way of a provider."""

from __future__ import annotations

from html import escape
from typing import Annotated
from urllib.parse import quote

import grpc
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from guidehall.contracts.identity.v1 import accounts_pb2, log_ins_pb2
from guidehall.core.errors import HTTP_STATUS, AppError, PermissionDenied, from_rpc_error
from services.gateway import cookies
from services.gateway.api.common import BackendsDep
from services.gateway.log_in import LogIns, pages
from services.gateway.problems import respond

router = APIRouter(prefix="/auth", tags=["auth"])

_COOKIE = "guidehall_pending"
# Browsers keep no more, and servers read no more.
_Word = Annotated[str, Query(max_length=4096)]


@router.get("/oidc/{provider}/login", status_code=303, response_class=RedirectResponse)
async def begin_log_in(
    provider: str,
    request: Request,
    then: Annotated[str, Query(alias="next", max_length=1000, description="A path here")] = "/",
) -> Response:
    """For a browser: leads to the provider's page, which leads to `/auth/oidc/{provider}/callback`."""
    log_ins = log_ins_of(request)
    back = f"{public_url(request)}/auth/oidc/{provider}/callback"
    try:
        address, kept = await log_ins.begin(provider, back, then)
    except AppError as error:
        return told(request, error)
    response = RedirectResponse(address, 303, headers={"Cache-Control": "no-store"})
    _keep(response, request, provider, kept, log_ins.settings.pending_seconds)
    return response


@router.get("/oidc/{provider}/callback", status_code=303, response_class=RedirectResponse)
async def finish_log_in(
    provider: str,
    request: Request,
    backends: BackendsDep,
    state: _Word = "",
    code: _Word = "",
    error: _Word = "",
    iss: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """Where the provider sends the browser: begins the same session as `POST /auth/login` with
    `"cookie": true`, and leads on to `next`."""
    try:
        if error:
            # The provider's words are whatever the address said, so they are not shown.
            raise PermissionDenied("the provider has not let you in", reason="PROVIDER_REFUSED")
        person, then = await log_ins_of(request).finish(
            provider, request.cookies.get(_COOKIE, ""), state, code, iss
        )
        message = log_ins_pb2.LogInWithProviderRequest(
            provider=provider,
            subject=person.subject,
            username=person.username,
            display_name=person.display_name,
            verified_email=person.verified_email,
            groups=person.groups,
            origin=origin(request),
        )
        tokens = await backends.log_ins.LogInWithProvider(message, timeout=backends.timeouts.call)
        response: Response = RedirectResponse(then, 303, headers={"Cache-Control": "no-store"})
        cookies.keep(response, request, tokens)
    except AppError as refused:
        response = told(request, refused)
    except grpc.aio.AioRpcError as refused:
        response = told(request, from_rpc_error(refused))
    # Good for one answer, whatever it was.
    _keep(response, request, provider, "", 0)
    return response


def public_url(request: Request) -> str:
    """Where browsers reach the gateway."""
    told_url = log_ins_of(request).settings.public_url
    return told_url or str(request.base_url).rstrip("/")


def origin(request: Request, client: str = "") -> accounts_pb2.Origin:
    """What a program calls itself, here or in its header, and where it calls from."""
    client = client or request.headers.get("user-agent", "")[:200]
    return accounts_pb2.Origin(client=client, address=request.client.host if request.client else "")


def told(request: Request, error: AppError) -> Response:
    """A refusal as a page, for a person, or as problem details, for a program."""
    if "text/html" not in request.headers.get("accept", ""):
        return respond(request, error)
    body = f"<p>{escape(error.message)}</p><p><small>{escape(error.reason)}</small></p>"
    return pages.page("Not logged in", body, HTTP_STATUS[error.code])


def log_ins_of(request: Request) -> LogIns:
    """The log-ins by providers."""
    log_ins: LogIns = request.app.state.log_ins
    return log_ins


def _keep(response: Response, request: Request, provider: str, kept: str, seconds: int) -> None:
    response.set_cookie(
        _COOKIE,
        kept,
        max_age=seconds,
        # As the address has it: it may be anything, and a semicolon would begin another attribute.
        path=f"/auth/oidc/{quote(provider, safe='')}",
        secure=request.url.scheme == "https",
        httponly=True,
        # Sent when the provider leads back here, and with nothing that another site's page asks for.
        samesite="lax",
    )
