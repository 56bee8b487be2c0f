"""From what a call carries to the principal behind it."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote

from guidehall.core.auth.api_keys import API_KEY_PREFIX, ApiKeyVerifier, KeyDirectory
from guidehall.core.auth.keys import TrustStore
from guidehall.core.auth.principals import Kind, Principal, Role
from guidehall.core.auth.tokens import TokenVerifier, VerifiedToken, principal_of
from guidehall.core.errors import Unauthenticated
from guidehall.core.settings import AuthSettings

ON_BEHALF_OF = "x-guidehall-on-behalf-of"
# Whom a service may act for; everybody else comes with a credential of their own. A tuple, for what is
# looked for in it may be any JSON.
DELEGABLE: tuple[Kind, ...] = ("user", "guest", "service_account")
_DELEGATED = ("sub", "kind", "roles", "groups", "writable_groups", "scopes")


class Authenticator:
    """Turns what a call carries into a principal.

    Args:
        settings: the mode, and whom to trust.
        service_name: of the service that is called.
        directory: who knows API keys; without one none counts.

    Raises:
        SettingsError: there is a trust file that cannot be read.
    """

    def __init__(
        self, settings: AuthSettings, service_name: str, directory: KeyDirectory | None = None
    ) -> None:
        self._settings = settings
        self._verifier: TokenVerifier | None = None
        if settings.trust_file is not None:
            trust = TrustStore(settings.trust_file)
            self._verifier = TokenVerifier(trust, service_name, settings.leeway_seconds)
        self._api_keys: ApiKeyVerifier | None = None
        if directory is not None:
            self.look_up_keys(directory)

    def look_up_keys(self, directory: KeyDirectory) -> None:
        """Has API keys count from now on, as `directory` knows them."""
        self._api_keys = ApiKeyVerifier(directory, self._settings.lookups)

    async def authenticate(self, metadata: Mapping[str, str], peer: str) -> Principal:
        """The principal behind a call.

        Args:
            metadata: headers, names in lower case.
            peer: gRPC's name of the other side, such as "ipv4:127.0.0.1:1234".

        Raises:
            Unauthenticated: no credential where one is needed, or one that does not hold.
            Unavailable: an API key that is not known here cannot be looked up now.
        """
        authorization = metadata.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Unauthenticated("authorization must be a bearer token", reason="BAD_CREDENTIAL")
            token = token.strip()
            if token.startswith(API_KEY_PREFIX):
                return await self._bearer(token, metadata)
            if self._verifier is None:
                raise Unauthenticated("no token is trusted here", reason="BAD_CREDENTIAL")
            verified = self._verifier.verify(token)
            delegated = metadata.get(ON_BEHALF_OF)
            return verified.principal if delegated is None else _delegate(verified, delegated)
        if self._settings.mode == "single" and _is_local(peer):
            return Principal(self._settings.local_user, "user", frozenset({Role.ADMIN}))
        raise Unauthenticated("a credential is needed", reason="NO_CREDENTIAL")

    async def _bearer(self, secret: str, metadata: Mapping[str, str]) -> Principal:
        if self._api_keys is None:
            raise Unauthenticated("no API key counts here", reason="BAD_CREDENTIAL")
        if ON_BEHALF_OF in metadata:
            raise Unauthenticated("this caller may not act for others", reason="BAD_CREDENTIAL")
        return await self._api_keys.verify(secret)


def encode_delegation(principal: Principal) -> str:
    """What a service that may delegate sends to act for `principal`."""
    body = {
        "sub": principal.subject,
        "kind": principal.kind,
        "roles": sorted(role.name for role in principal.roles),
        "groups": sorted(principal.groups),
        "writable_groups": sorted(principal.writable_groups),
        "scopes": sorted(principal.scopes),
    }
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode("ascii")


def _delegate(service: VerifiedToken, text: str) -> Principal:
    """The user or guest that a service speaks for; never anybody with a credential of its own kind."""
    if service.principal.kind != "service" or not service.key.may_delegate:
        raise Unauthenticated("this caller may not act for others", reason="BAD_CREDENTIAL")
    try:
        claims = json.loads(base64.urlsafe_b64decode(text.encode("ascii")))
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict) or claims.get("kind") not in DELEGABLE:
        raise Unauthenticated("the delegation makes no sense", reason="BAD_CREDENTIAL")
    known = {name: claims[name] for name in _DELEGATED if name in claims}
    return replace(principal_of(known), actor=service.principal.subject)


def _is_local(peer: str) -> bool:
    """Whether a call comes from this machine."""
    scheme, _, address = peer.partition(":")
    if scheme == "unix":
        return True
    host = unquote(address).rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
