"""Errors as RFC 9457 problem details: every failure of every route in one shape, but for the old paths, which
have their own."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from guidehall.core.errors import (
    HTTP_STATUS,
    AppError,
    Internal,
    InvalidArgument,
    Violation,
    from_rpc_error,
    problem,
    shown,
)
from guidehall.core.telemetry import current_trace_id
from services.gateway.legacy.shape import OldFailure, invalid, is_old
from services.gateway.messages import path_of

logger = logging.getLogger(__name__)

# Where Python's names differ between its versions.
_REASONS = {413: "BODY_TOO_LARGE"}
# Fields whose values no answer repeats.
_SECRET = frozenset({"password", "current", "new", "refresh_token", "invitation", "device_code"})
# As many violations as a person reads.
_MAX_VIOLATIONS = 20


class NothingMore(Exception):
    """There is nothing to answer, now or later: 204."""


class Problem(JSONResponse):
    """Problem details. They name what the caller sent, which need not be text that UTF-8 can say."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def respond(request: Request, error: AppError) -> JSONResponse:
    """The answer that says what went wrong."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if is_old(request.url.path):
        return OldFailure(HTTP_STATUS[error.code], error.message, headers)
    body = problem(error, instance=request.url.path, trace_id=current_trace_id())
    return Problem(body, status_code=HTTP_STATUS[error.code], headers=headers)


async def _app_error(request: Request, error: AppError) -> JSONResponse:
    return respond(request, error)


async def _rpc_error(request: Request, error: grpc.RpcError) -> JSONResponse:
    if isinstance(error, grpc.aio.AioRpcError):
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details:
            # The transport's refusal: another try would be as large.
            return respond_http(request, HTTPException(413, "more than one message to a service can hold"))
    return respond(request, from_rpc_error(error))


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    if is_old(request.url.path):
        return invalid(error.errors())
    violations = [_violation(item) for item in error.errors()[:_MAX_VIOLATIONS]]
    message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:5])
    return respond(request, InvalidArgument(message, reason="INVALID_REQUEST", violations=violations))


def _violation(item: Mapping[str, Any]) -> Violation:
    """One of pydantic's errors as the services write theirs: `curve.q[0]`, and the value of a scalar."""
    description = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "json_invalid":
        # Its place is a number of characters, which is no field.
        return Violation("body", f"{description} at character {item['loc'][-1]}: {item['ctx']['error']}")
    shows = item["type"] != "missing" and not _SECRET.intersection(item["loc"])
    if shows and isinstance(item["input"], (str, int, float)):
        description = f"got {shown(item['input'])}; {description}"
    return Violation(path_of(part for part in item["loc"] if part != "body") or "body", description)


def respond_http(request: Request, error: HTTPException) -> JSONResponse:
    """The same for what has an HTTP status only: unknown paths, wrong methods, bodies that are too long."""
    if is_old(request.url.path):
        return OldFailure(error.status_code, str(error.detail), error.headers)
    status = HTTPStatus(error.status_code)
    body = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": str(error.detail),
        "instance": request.url.path,
        "reason": _REASONS.get(status.value, status.name),
        "trace_id": current_trace_id(),
    }
    return Problem(body, status_code=status.value, headers=error.headers)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return respond_http(request, error)


async def _nothing_more(request: Request, error: NothingMore) -> Response:  # noqa: ARG001 (of every handler)
    return Response(status_code=204)


async def _gone(request: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001 (of every handler)
    # Nobody reads it.
    return Response(status_code=499)


def respond_unexpected(request: Request, error: Exception) -> JSONResponse:
    """The answer to a fault of ours; what it was is in the log alone."""
    error_id = uuid.uuid4().hex
    logger.error("unexpected error %s", error_id, exc_info=error)
    return respond(request, Internal("internal error", metadata={"error_id": error_id}))


def install(app: FastAPI) -> None:
    """Registers a handler for everything that can go wrong in a route, but for faults of ours."""
    app.exception_handler(NothingMore)(_nothing_more)
    app.exception_handler(AppError)(_app_error)
    app.exception_handler(grpc.RpcError)(_rpc_error)
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(ClientDisconnect)(_gone)
