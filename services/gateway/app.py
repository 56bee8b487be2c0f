"""The HTTP application: routes, errors, limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware.cors import CORSMiddleware

from services.gateway import problems
from services.gateway.api import (
    auth,
    control,
    groups,
    inference,
    jobs,
    pools,
    storage,
    submissions,
    system,
)
from services.gateway.api import (
    identity as identities,
)
from services.gateway.backends import Backends
from services.gateway.documentation import documented
from services.gateway.identity import HttpIdentity
from services.gateway.legacy.routers import ROUTERS
from services.gateway.legacy.runs import Memory
from services.gateway.middleware import (
    BodyLimit,
    Identify,
    LocalHost,
    SameSite,
    SecurityHeaders,
    Trace,
    Unexpected,
)
from services.gateway.rate_limits import RateLimits
from services.gateway.settings import GatewaySettings


def create_app(
    settings: GatewaySettings, identity: HttpIdentity, backends: Callable[[], Backends]
) -> FastAPI:
    """The application.

    Args:
        settings: read once, at start.
        identity: finds out who calls, from headers and peer.
        backends: opens the channels; called when the event loop runs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backends = backends()
        identity.look_up(app.state.backends.directory)
        try:
            yield
        finally:
            await app.state.backends.close()

    app = documented(lifespan)
    api = APIRouter(prefix="/api/v1")
    for module in (system, jobs, submissions, control, pools, storage, inference, identities, groups):
        api.include_router(module.router)
    app.include_router(api)
    app.include_router(auth.router)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/", _front_page, include_in_schema=False)
    problems.install(app)
    app.state.settings = settings
    app.state.old_jobs = Memory()
    app.state.rate_limits = RateLimits.of(settings.legacy)
    # The last one added is the first to see a request.
    app.add_middleware(
        BodyLimit,
        limit_bytes=settings.http.max_body_bytes,
        array_limit_bytes=settings.http.max_array_body_bytes,
        seconds=settings.http.body_seconds,
    )
    app.add_middleware(
        Identify,
        authenticate=identity,
        authenticate_old=identity.of_old_path,
        cookies_count=settings.auth.mode == "token",
    )
    app.add_middleware(
        SameSite,
        allowed_origins=settings.cors_origins,
        origin_pattern=settings.http.cors_origin_regex,
    )
    app.add_middleware(Unexpected)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_origin_regex=settings.http.cors_origin_regex,
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
