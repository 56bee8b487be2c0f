"""Tokens: minting them in the name of a service, and holding those of others against the trust file."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from guidehall.core.auth.keys import ALGORITHM, KeyFile, KeyPair, TrustedKey, TrustStore
from guidehall.core.auth.principals import Kind, Principal, Role
from guidehall.core.errors import Unauthenticated

# Everything in the platform is the audience; a token for one service alone names that service.
PLATFORM = "guidehall"

_MAX_TOKEN_CHARACTERS = 8192
# A verified token is remembered, for a signature costs as much time as all the rest of a small call.
_REMEMBERED_TOKENS = 1024


@dataclass(frozen=True)
class TokenIssuer:
    """Mints tokens in the name of one service."""

    issuer: str
    key: KeyPair | KeyFile

    def mint(
        self,
        subject: str,
        kind: Kind,
        *,
        ttl_seconds: float,
        roles: Sequence[Role] = (),
        groups: Sequence[str] = (),
        audience: str | Sequence[str] = PLATFORM,
        **claims: Any,
    ) -> str:
        """A signed token. `claims` may hold job_id, lease_epoch, pool, inputs, project, jti,
        writable_groups, scopes."""
        now = time.time()
        body = {
            "iss": self.issuer,
            "sub": subject,
            "kind": kind,
            "aud": audience if isinstance(audience, str) else list(audience),
            "iat": now,
            "nbf": now,
            "exp": now + ttl_seconds,
            "jti": claims.pop("jti", None) or str(uuid.uuid4()),
            "roles": [role.name for role in roles],
            "groups": list(groups),
            **claims,
        }
        return self.key.sign(body)


@dataclass(frozen=True)
class VerifiedToken:
    """A token that holds, until its time is over."""

    principal: Principal
    key: TrustedKey
    expires: float


class TokenVerifier:
    """Says who a token speaks for, to one audience."""

    def __init__(self, trust: TrustStore, audience: str, leeway_seconds: float) -> None:
        self._trust = trust
        self._audience = (PLATFORM, audience)
        self._leeway_seconds = leeway_seconds
        self._keys = trust.keys()
        self._remembered: dict[str, VerifiedToken] = {}

    def verify(self, token: str) -> VerifiedToken:
        """Checks signature, issuer, audience, times and that the issuer may speak for such a principal.

        Raises:
            Unauthenticated: one of these does not hold.
        """
        keys = self._trust.keys()
        if keys is not self._keys:
            self._keys = keys
            self._remembered.clear()
        verified = self._remembered.get(token)
        if verified is None:
            verified = self._verify(token)
            if len(self._remembered) >= _REMEMBERED_TOKENS:
                self._remembered.clear()
            self._remembered[token] = verified
        elif verified.expires + self._leeway_seconds <= time.time():
            del self._remembered[token]
            raise _expired()
        if verified.key.until <= time.time():
            raise _bad("the token's key is trusted no longer")
        return verified

    def _verify(self, token: str) -> VerifiedToken:
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise _bad("the token is too long")
        try:
            key = self._keys.get(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                raise _bad("the token's key is not trusted")
            claims = jwt.decode(
                token,
                key.public_key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=key.issuer,
                leeway=self._leeway_seconds,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except (jwt.PyJWTError, RecursionError):
            raise _bad("the token does not hold") from None
        kind = claims.get("kind")
        if (
            not isinstance(kind, str)
            or kind not in key.may_issue
            or (kind == "service" and claims["sub"] != key.issuer)
        ):
            raise _bad("the token's issuer may not speak for that")
        return VerifiedToken(principal_of(claims), key, float(claims["exp"]))


def principal_of(claims: Mapping[str, Any]) -> Principal:
    """The principal that claims describe.

    Raises:
        Unauthenticated: the claims make no sense.
    """
    try:
        epoch = claims.get("lease_epoch")
        return Principal(
            subject=str(claims["sub"]),
            kind=claims["kind"],
            roles=frozenset(Role[name] for name in claims.get("roles", ())),
            groups=frozenset(map(str, claims.get("groups", ()))),
            job_id=claims.get("job_id"),
            lease_epoch=None if epoch is None else int(epoch),
            pool=claims.get("pool"),
            credential_id=claims.get("jti"),
            inputs=tuple(map(str, claims.get("inputs", ()))),
            project=claims.get("project"),
            writable_groups=frozenset(map(str, claims.get("writable_groups", ()))),
            scopes=frozenset(map(str, claims.get("scopes", ()))),
        )
    except (KeyError, TypeError, ValueError):
        raise _bad("the token's claims make no sense") from None


def _bad(message: str) -> Unauthenticated:
    return Unauthenticated(message, reason="BAD_CREDENTIAL")


def _expired() -> Unauthenticated:
    return Unauthenticated("the token has expired", reason="EXPIRED_CREDENTIAL")
