"""What every request passes through, as plain ASGI: nothing here buffers a body or an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guidehall.core.auth import Principal, set_principal
from guidehall.core.errors import AppError
from guidehall.core.telemetry import begin_request, end_request
from services.gateway.problems import respond, respond_http

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class Trace:
    """Takes up the caller's trace and request id, or starts new ones; the answer names the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = begin_request(Request(scope).headers, f"HTTP {scope['method']}")
        status = 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("ascii"))]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            end_request(failed=status >= 500)


class SecurityHeaders:
    """Headers that browsers heed, on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [header for header in _HEADERS if header[0] not in present]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_guarded)


class Identify:
    """Finds out who calls before any route runs; the pages that only describe the interface are open."""

    Authenticate: TypeAlias = Callable[[Mapping[str, str], str], Principal]

    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or not scope["path"].startswith("/api/")
            or scope["path"] == "/api/v1/health"
        ):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        peer = f"ipv4:{request.client.host}:{request.client.port}" if request.client else "unknown"
        try:
            principal = self._authenticate(request.headers, peer)
        except AppError as error:
            await respond(request, error)(scope, receive, send)
            return
        set_principal(principal)
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses bodies over a limit, declared or not, before they are read whole. Raw uploads have their
    own."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_upload(scope):
            await self._app(scope, receive, send)
            return
        error = HTTPException(413, f"the body is larger than {self._limit_bytes} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit_bytes:
            await respond_http(Request(scope), error)(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit_bytes:
                raise error
            return message

        await self._app(scope, receive_limited, send)


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "POST" and path.startswith("/api/v1/datasets/") and path.endswith("/versions")
