"""What the old paths share: routers that ask who calls after the body was checked, administration."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from guidehall.core.auth import Principal, Role, current_principal
from services.gateway.callers import require_caller
from services.gateway.legacy.shape import PREFIX
from services.gateway.settings import GatewaySettings, LegacySettings

ADMIN_TOKEN_HEADER = "x-admin-token"  # noqa: S105 (a header's name)


class OldRouter(APIRouter):
    """Routes under /api, whose bodies are checked before it counts who calls: 422 goes before 401.

    Endpoints are coroutine functions. Their dependencies run before the caller is known to be one, so that
    none of them may read or change anything.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(prefix=PREFIX, include_in_schema=False, **arguments)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **arguments: Any) -> None:
        """Adds a route whose endpoint runs for an identified caller only."""
        super().add_api_route(path, identified(endpoint), **arguments)


def identified(endpoint: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The endpoint, which first raises why the caller could not be identified, if so."""

    @wraps(endpoint)
    async def checked(*args: Any, **kwargs: Any) -> Any:
        require_caller()
        return await endpoint(*args, **kwargs)

    return checked


def is_guest(principal: Principal) -> bool:
    """Whether nobody is logged in."""
    return principal.kind == "guest"


def user() -> Principal:
    """The caller, where only somebody who is logged in may be one.

    Raises:
        HTTPException: 401, a guest.
    """
    principal = current_principal()
    if is_guest(principal):
        raise HTTPException(401, "X-User-ID: missing; this needs a user who is logged in")
    return principal


def require_admin(request: Request) -> None:
    """Lets administrators pass: everybody outside production, operators, and who knows the token.

    Raises:
        HTTPException: 503 without a token in the settings, 401 for a wrong one.
    """
    settings = legacy_settings(request)
    if not in_production(request) or current_principal().has(Role.OPERATOR):
        return
    if settings.admin_token is None:
        raise HTTPException(503, "administration is closed: no admin token is set")
    given = request.headers.get(ADMIN_TOKEN_HEADER, "")
    if not hmac.compare_digest(given.encode(), settings.admin_token.get_secret_value().encode()):
        raise HTTPException(401, "X-Admin-Token: missing or wrong")


def legacy_settings(request: Request) -> LegacySettings:
    """The settings of the old paths."""
    settings: GatewaySettings = request.app.state.settings
    return settings.legacy


def in_production(request: Request) -> bool:
    """Whether the limits and locks of a shared installation count."""
    settings: GatewaySettings = request.app.state.settings
    return settings.in_production
