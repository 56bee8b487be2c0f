"""A browser's session: two cookies that no script reads, and what a write with them needs."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import HTTPConnection
from starlette.responses import Response

from guidehall.contracts.identity.v1 import accounts_pb2
from guidehall.core.errors import FailedPrecondition, PermissionDenied

# Only a page of ours, or of an origin that is listed, can send a header of its own making.
CSRF_HEADER = "x-guidehall-csrf"
_ACCESS = "guidehall_access"
_REFRESH = "guidehall_refresh"
# The refresh token travels to where it is used, and nowhere else.
_REFRESH_PATH = "/auth"
# Browsers keep no larger ones.
_MAX_CHARACTERS = 4000
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def access_token(connection: HTTPConnection) -> str:
    """The access token of a browser's session; empty without one.

    Raises:
        PermissionDenied: a write without the header that other sites' pages cannot send.
    """
    token = connection.cookies.get(_ACCESS, "")
    if token and connection.scope["method"] not in _READS:
        require_header(connection.headers)
    return token


def access_token_of_form(connection: HTTPConnection) -> str:
    """The same for a page's form, which cannot send a header: the form has a secret of its own instead."""
    return connection.cookies.get(_ACCESS, "")


def refresh_token(connection: HTTPConnection) -> str:
    """The refresh token of a browser's session; empty without one.

    Raises:
        PermissionDenied: without the header that other sites' pages cannot send.
    """
    token = connection.cookies.get(_REFRESH, "")
    if token:
        require_header(connection.headers)
    return token


def require_header(headers: Mapping[str, str]) -> None:
    """Raises PermissionDenied unless the header is there, whatever it says."""
    if CSRF_HEADER not in headers:
        raise PermissionDenied(
            "a browser's session writes with the header X-Guidehall-CSRF, such as X-Guidehall-CSRF: 1",
            reason="CSRF_HEADER_MISSING",
        )


def keep(response: Response, connection: HTTPConnection, tokens: accounts_pb2.SessionTokens) -> None:
    """Has the browser keep a session's tokens for as long as they hold.

    Raises:
        FailedPrecondition: the user is in so many groups that no browser would keep the token.
    """
    if len(tokens.access_token) > _MAX_CHARACTERS:
        raise FailedPrecondition(
            "the user is in too many groups for a browser's session", reason="TOO_MANY_GROUPS"
        )
    now = tokens.session.last_use_time.seconds
    _set(response, connection, _ACCESS, tokens.access_token, "/", tokens.access_expire_time.seconds - now)
    if tokens.refresh_token:
        left = tokens.session.expire_time.seconds - now
        _set(response, connection, _REFRESH, tokens.refresh_token, _REFRESH_PATH, left)


def forget(response: Response, connection: HTTPConnection) -> None:
    """Has the browser forget its session."""
    for name, path in ((_ACCESS, "/"), (_REFRESH, _REFRESH_PATH)):
        _set(response, connection, name, "", path, 0)


def _set(
    response: Response, connection: HTTPConnection, name: str, value: str, path: str, seconds: int
) -> None:
    response.set_cookie(
        name,
        value,
        max_age=max(0, seconds),
        path=path,
        # Behind a proxy that ends TLS, as that proxy says.
        secure=connection.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
