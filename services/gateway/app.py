"""The HTTP application: routes, errors, limits."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware.cors import CORSMiddleware

from services.gateway import problems
from services.gateway.api import (
    audit,
    auth,
    control,
    device,
    groups,
    inference,
    jobs,
    linked,
    log_ins,
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
from services.gateway.log_in import LogIns
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
from services.gateway.watching import Watching


def create_app(
    settings: GatewaySettings,
    identity: HttpIdentity,
    backends: Callable[[], Backends],
    browser_key: bytes | None = None,
) -> FastAPI:
    """The application.

    Args:
        settings: read once, at start.
        identity: finds out who calls, from headers and peer.
        backends: opens the channels; called when the event loop runs.
        browser_key: seals what browsers keep for the gateway; one of this process alone where None.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backends = backends()
        app.state.watching = Watching(app.state.backends.jobs)
        identity.look_up(app.state.backends.directory)
        try:
            yield
        finally:
            app.state.log_ins.close()
            await app.state.backends.close()

    app = documented(lifespan)
    api = APIRouter(prefix="/api/v1")
    # The first that matches answers: `/users/{user}:export` before `/users/{user}`.
    for module in (
        system,
        jobs,
        submissions,
        control,
        pools,
        storage,
        inference,
        audit,
        identities,
        linked,
        groups,
    ):
        api.include_router(module.router)
    app.include_router(api)
    app.include_router(auth.router)
    app.include_router(log_ins.router)
    app.include_router(device.router)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/", _front_page, include_in_schema=False)
    problems.install(app)
    app.state.settings = settings
    app.state.identity = identity
    app.state.log_ins = LogIns(settings.log_in, browser_key or secrets.token_bytes(32))
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
    pattern = settings.http.cors_origin_regex
    app.add_middleware(
        SameSite,
        allowed_origins=settings.cors_origins,
        origin_pattern=pattern,
    )
    app.add_middleware(Unexpected)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_origin_regex=None if pattern is None else pattern.pattern,
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
