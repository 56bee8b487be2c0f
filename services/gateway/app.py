"""The HTTP application: routes, errors, limits, documentation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from google.protobuf.descriptor import Descriptor
from starlette.middleware.cors import CORSMiddleware

from guidehall import __version__
from services.gateway import problems
from services.gateway.api import control, inference, jobs, pools, storage, submissions, system
from services.gateway.api.common import DOCUMENTED
from services.gateway.backends import Backends
from services.gateway.messages import schema
from services.gateway.middleware import (
    BodyLimit,
    Identify,
    LocalHost,
    SameSite,
    SecurityHeaders,
    Trace,
    Unexpected,
)
from services.gateway.settings import GatewaySettings

DESCRIPTION = "Measured curves in, physics out. Errors are problem details (RFC 9457)."


def create_app(
    settings: GatewaySettings, identify: Identify.Authenticate, backends: Callable[[], Backends]
) -> FastAPI:
    """The application.

    Args:
        settings: read once, at start.
        identify: finds out who calls, from headers and peer.
        backends: opens the channels; called when the event loop runs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backends = backends()
        try:
            yield
        finally:
            await app.state.backends.close()

    app = _documented(lifespan)
    api = APIRouter(prefix="/api/v1")
    for module in (system, jobs, submissions, control, pools, storage, inference):
        api.include_router(module.router)
    app.include_router(api)
    app.add_api_route("/", _front_page, include_in_schema=False)
    problems.install(app)
    app.state.settings = settings
    # The last one added is the first to see a request.
    app.add_middleware(
        BodyLimit,
        limit_bytes=settings.http.max_body_bytes,
        array_limit_bytes=settings.http.max_array_body_bytes,
        seconds=settings.http.body_seconds,
    )
    app.add_middleware(Identify, authenticate=identify)
    app.add_middleware(SameSite, allowed_origins=settings.cors_origins)
    app.add_middleware(Unexpected)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        max_age=600,
    )
    if settings.auth.mode == "single":
        # Without credentials the host name is what tells this machine's user from a page that rebound its
        # name here.
        app.add_middleware(LocalHost)
    app.add_middleware(Trace)
    return app


async def _front_page() -> RedirectResponse:
    return RedirectResponse("/docs")


def _documented(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """An app whose documentation pages carry their own scripts and whose schema knows the protos'
    messages."""
    app = FastAPIOffline(
        title="Guidehall",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/openapi.json",
    )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            components = document.setdefault("components", {}).setdefault("schemas", {})
            for message in sorted(DOCUMENTED, key=lambda message: message.DESCRIPTOR.name):
                schema(cast(Descriptor, message.DESCRIPTOR), components)
            _document_problems(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _document_problems(document: dict[str, Any]) -> None:
    """Every operation fails in one shape."""
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    text, violation = {"type": "string"}, {"$ref": "#/components/schemas/FieldViolation"}
    schemas["Problem"] = {
        "type": "object",
        "title": "Problem",
        "description": "RFC 9457. `reason` is for programs, `detail` for people.",
        "required": ["type", "title", "status"],
        "properties": {
            **dict.fromkeys(("type", "title", "detail", "instance", "reason", "trace_id"), text),
            "status": {"type": "integer"},
            "metadata": {"type": "object", "additionalProperties": text},
            "violations": {"type": "array", "items": violation},
        },
    }
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "What went wrong", "content": problem}
