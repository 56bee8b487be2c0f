"""Who an HTTP request comes from: a bearer token, a proxy that proves itself, or, in single mode, this
machine's user."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import replace

from guidehall.core.auth import DELEGABLE, Authenticator, Lookups, Principal, Role
from guidehall.core.directory import RemoteDirectory
from guidehall.core.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from guidehall.core.settings import AuthSettings

PROXY_SECRET_HEADER = "x-guidehall-proxy-secret"  # noqa: S105 (a header's name)
USER_HEADER = "x-user-id"
GROUPS_HEADER = "x-user-groups"
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")


class HttpIdentity:
    """The three modes over HTTP headers.

    Args:
        settings: the mode.
        authenticator: verifies what callers carry themselves.
    """

    def __init__(self, settings: AuthSettings, authenticator: Authenticator) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._users: Lookups[Principal] = Lookups(settings.lookups)
        self._directory: RemoteDirectory | None = None

    def look_up(self, directory: RemoteDirectory) -> None:
        """Has API keys and users count from now on, as storage knows them."""
        self._directory = directory
        self._authenticator.look_up_keys(directory)

    async def __call__(self, headers: Mapping[str, str], peer: str) -> Principal:
        """The caller.

        Raises:
            Unauthenticated: no credential where one is needed, or one that does not hold.
            Unavailable: who calls cannot be looked up now.
            PermissionDenied: the credential of a service, a worker or a job; these call the services.
        """
        if self._settings.mode == "proxy" and "authorization" not in headers:
            return await self._from_proxy(headers)
        only_token = {name: headers[name] for name in ("authorization",) if name in headers}
        principal = await self._authenticator.authenticate(only_token, peer)
        if principal.kind not in DELEGABLE:
            message = f"the credential of a {principal.kind} is not for the gateway; allowed: a user's"
            raise PermissionDenied(message, reason="WRONG_KIND")
        return principal

    async def _from_proxy(self, headers: Mapping[str, str]) -> Principal:
        secret = self._settings.proxy_secret
        given = headers.get(PROXY_SECRET_HEADER, "")
        if secret is None or not hmac.compare_digest(given.encode(), secret.get_secret_value().encode()):
            raise Unauthenticated("only the authenticating proxy may call", reason="NO_PROXY_SECRET")
        named = _named(headers)
        if named.kind == "guest":
            return named
        known = await self._known(named.subject)
        return replace(known, groups=known.groups | named.groups)

    async def _known(self, user: str) -> Principal:
        """A user of the proxy with what storage keeps about them."""
        directory = self._directory
        if directory is None:
            raise Unavailable("nobody is known yet", reason="IDENTITY_UNAVAILABLE")
        known = await self._users.get(user.encode(), lambda: directory.user(user))
        if known is None:
            raise Unauthenticated(f"the user {user!r} is disabled", reason="USER_DISABLED")
        return known

    async def of_old_path(self, headers: Mapping[str, str], peer: str) -> Principal:
        """The caller of a path of the old web app, whose page sends `X-User-ID` or nothing.

        In single mode everybody on this machine is its user, so that the header only says whose things are
        meant; without it they are a guest's. In the other modes it counts as it does everywhere.

        Raises:
            Unauthenticated, PermissionDenied: as for other paths.
            PermissionDenied: the API key has scopes, which these paths know nothing of.
            InvalidArgument: the header's value cannot be a user's name.
        """
        principal = await self(headers, peer)
        if principal.scopes:
            raise PermissionDenied(
                "an API key with scopes is for /api/v1, /v2 and gRPC", reason="SCOPE_MISSING"
            )
        if self._settings.mode == "single" and "authorization" not in headers:
            return _named({name: headers[name] for name in (USER_HEADER,) if name in headers})
        return principal


def _named(headers: Mapping[str, str]) -> Principal:
    """Whom headers that count name: a user, or nobody."""
    user = headers.get(USER_HEADER)
    if user is None:
        return Principal("guest", "guest")
    if not _SUBJECT.fullmatch(user):
        raise InvalidArgument.field("X-User-ID", user, "letters, digits and . _ @ + -, at most 128")
    groups = frozenset(group.strip() for group in headers.get(GROUPS_HEADER, "").split(",") if group.strip())
    return Principal(user, "user", frozenset({Role.SCIENTIST}), groups)
