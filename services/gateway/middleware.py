"""What every request passes through, as plain ASGI: nothing here buffers a body or an answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeAlias

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guidehall.core.auth import Principal
from guidehall.core.errors import AppError, InvalidArgument, PermissionDenied
from guidehall.core.telemetry import begin_request, end_request
from services.gateway import cookies
from services.gateway.callers import set_caller
from services.gateway.legacy.shape import is_old
from services.gateway.problems import respond, respond_http, respond_unexpected

_OLD_UPLOADS = frozenset({"/api/upload", "/api/models/upload"})
_HEADERS = (
    # What is answered is data: a browser that is led to show it as a page runs and loads nothing of it.
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
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
    """Headers that browsers heed, on every answer that does not say otherwise itself."""

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


class Unexpected:
    """Answers what nothing else could: within all that puts headers on answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await respond_unexpected(Request(scope), error)(scope, receive, send)


class Identify:
    """Finds out who calls before any route runs; the pages that only describe the interface are open, and
    those where one logs in.

    A route of the old paths that takes JSON is let run, and raises itself what is wrong with its caller.
    """

    _OPEN = frozenset({"/api/v1/health", "/api/health"})
    _CLOSED = frozenset({"/auth/session", "/auth/password"})
    Authenticate: TypeAlias = Callable[[Mapping[str, str], str], Awaitable[Principal]]

    def __init__(
        self, app: ASGIApp, authenticate: Authenticate, authenticate_old: Authenticate, *, cookies_count: bool
    ) -> None:
        self._app = app
        self._authenticate = authenticate
        self._authenticate_old = authenticate_old
        self._cookies_count = cookies_count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not self._is_closed(path):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        peer = f"ipv4:{request.client.host}:{request.client.port}" if request.client else "unknown"
        old = is_old(path)
        found: Principal | AppError
        try:
            authenticate = self._authenticate_old if old else self._authenticate
            found = await authenticate(self._credentials(request), peer)
        except AppError as error:
            # A form may hold a whole file, which is not read from somebody unknown.
            if not old or _is_form(request):
                await respond(request, error)(scope, receive, send)
                return
            found = error
        set_caller(found)
        await self._app(scope, receive, send)

    def _is_closed(self, path: str) -> bool:
        return (path.startswith("/api/") and path not in self._OPEN) or path in self._CLOSED

    def _credentials(self, request: Request) -> Mapping[str, str]:
        """The headers, with a browser's session as if it were a program's."""
        if not self._cookies_count or "authorization" in request.headers:
            return request.headers
        token = cookies.access_token(request)
        return {**request.headers, "authorization": f"Bearer {token}"} if token else request.headers


class LocalHost:
    """Takes requests only that name this machine as it names itself: a page elsewhere whose name was rebound
    to this machine is another host."""

    _LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE | re.ASCII)

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if not self._LOCAL.fullmatch(host):
                error = InvalidArgument.field("Host", host, "localhost, 127.0.0.1 or [::1]")
                await respond(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class SameSite:
    """Refuses what a page of another site would have a browser write: browsers send such requests with the
    user's standing, and without asking first when they look like a form's."""

    _READS = frozenset({"GET", "HEAD", "OPTIONS"})

    def __init__(
        self, app: ASGIApp, allowed_origins: Collection[str], origin_pattern: re.Pattern[str] | None = None
    ) -> None:
        self._app = app
        self._allowed_origins = frozenset(allowed_origins)
        self._origin_pattern = origin_pattern

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in self._READS and self._foreign(scope):
            error = PermissionDenied("a page of another site may not write here", reason="CROSS_SITE")
            await respond(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if "*" in self._allowed_origins or origin in self._allowed_origins:
            return False
        if origin is None:
            return site == "cross-site"
        if self._origin_pattern is not None and self._origin_pattern.fullmatch(origin):
            return False
        # Behind a proxy that ends TLS the browser's scheme is not ours, but the browser says that it is our
        # page.
        return site != "same-origin" and origin != f"{scope['scheme']}://{headers.get('host')}"


class BodyLimit:
    """Refuses bodies over a limit, declared or not, before they are read whole, those that do not arrive in
    time, and those that are mostly structure. Raw uploads have their own limits.

    Args:
        app: what follows.
        limit_bytes: of a body.
        array_limit_bytes: of the bodies that hold measured curves and tensors.
        seconds: longest wait for a whole body.
    """

    # Numbers and text are cheap; arrays, objects and names cost enough to keep everybody else waiting.
    _MAX_STRUCTURE = 20_000
    _ARRAYS = frozenset({"/api/v1/analyze", "/api/v1/predict", "/api/history"})

    def __init__(self, app: ASGIApp, limit_bytes: int, array_limit_bytes: int, seconds: float) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._array_limit_bytes = array_limit_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_upload(scope):
            await self._app(scope, receive, send)
            return
        limit = self._array_limit_bytes if scope["path"] in self._ARRAYS else self._limit_bytes
        # What is still on its way is not waited for.
        headers = {"Connection": "close"}
        too_large = HTTPException(413, f"the body is larger than {limit} bytes", headers)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            await respond_http(Request(scope), too_large)(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._seconds
        received, structure, whole = 0, 0, False

        async def receive_limited() -> Message:
            nonlocal received, structure, whole
            try:
                async with asyncio.timeout_at(None if whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body has not arrived within {self._seconds:g} seconds", headers
                ) from None
            whole = not message.get("more_body", False)
            body = message.get("body", b"")
            received += len(body)
            structure += sum(body.count(sign) for sign in (b"[", b"{", b":"))
            if received > limit:
                raise too_large
            if structure > self._MAX_STRUCTURE:
                raise HTTPException(
                    413, f"more than {self._MAX_STRUCTURE} arrays, objects and names in the body", headers
                )
            return message

        await self._app(scope, receive_limited, send)


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/")


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    if scope["method"] != "POST":
        return False
    return path in _OLD_UPLOADS or (path.startswith("/api/v1/datasets/") and path.endswith("/versions"))
