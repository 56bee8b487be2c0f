"""Who calls, and what they may do. Verified in every server, for every call; what is not declared is refused.

Tokens are JSON Web Tokens signed with Ed25519. A trust file says which key belongs to which issuer and for which kinds
of principal that issuer may speak: storage for users, the trainer for workers and jobs, each service for itself.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from guidehall.core.errors import PermissionDenied, Unauthenticated
from guidehall.core.settings import AuthSettings

Kind = Literal["user", "guest", "service", "worker", "job"]
KINDS: tuple[str, ...] = get_args(Kind)
ALGORITHM = "EdDSA"
LEEWAY_SECONDS = 30
ON_BEHALF_OF = "x-guidehall-on-behalf-of"
# Everything in the platform is the audience; a token for one service alone names that service.
PLATFORM = "guidehall"


class Role(IntEnum):
    """Each role may do what the ones before it may; numbers as in identity.proto."""

    VIEWER = 1
    SCIENTIST = 2
    OPERATOR = 3
    ADMIN = 4


@dataclass(frozen=True)
class Principal:
    """Who the platform takes a caller for."""

    subject: str
    kind: Kind
    roles: frozenset[Role] = frozenset()
    groups: frozenset[str] = frozenset()
    # The service that acts for the subject, if any.
    actor: str | None = None
    job_id: str | None = None
    lease_epoch: int | None = None
    pool: str | None = None
    credential_id: str | None = None
    # Dataset version names that a job's token opens.
    inputs: tuple[str, ...] = ()
    project: str | None = None


@dataclass(frozen=True)
class Policy:
    """Who may call a method: these kinds, users from this role on, services from this list (any when None)."""

    kinds: frozenset[str] = frozenset({"user", "service"})
    min_role: Role = Role.VIEWER
    services: frozenset[str] | None = None

    def check(self, principal: Principal, method: str) -> None:
        """Raises PermissionDenied unless `principal` may call `method`."""
        allowed = principal.kind in self.kinds
        if principal.kind == "user":
            allowed = allowed and any(role >= self.min_role for role in principal.roles)
        if principal.kind == "service" and self.services is not None:
            allowed = allowed and principal.subject in self.services
        if not allowed:
            raise PermissionDenied(f"{principal.kind} {principal.subject!r} may not call {method}", metadata={"method": method})


_principal: ContextVar[Principal | None] = ContextVar("guidehall_principal", default=None)


def current_principal() -> Principal:
    """The caller of the request at hand.

    Raises:
        Unauthenticated: outside any request.
    """
    principal = _principal.get()
    if principal is None:
        raise Unauthenticated("no caller is known here")
    return principal


def set_principal(principal: Principal) -> None:
    """Makes `principal` the caller for the rest of the task that handles its request."""
    _principal.set(principal)


class KeyPair:
    """An Ed25519 key and its id, a digest of the public half."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public_key = base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")
        self.kid = self.public_key[:16]

    @classmethod
    def generate(cls) -> KeyPair:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> KeyPair:
        """Reads a PEM file that `save` wrote."""
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError(f"{path.name} holds no Ed25519 key")
        return cls(private)

    def save(self, path: Path) -> None:
        """Writes a PEM file that only its owner reads."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    def sign(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self._private, algorithm=ALGORITHM, headers={"kid": self.kid})


@dataclass(frozen=True)
class TrustedKey:
    """One entry of the trust file."""

    issuer: str
    public_key: str
    may_issue: tuple[str, ...]
    may_delegate: bool = False


class TrustStore:
    """The trust file: `{key id: {issuer, public_key, may_issue, may_delegate}}`, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, TrustedKey] = {}

    @staticmethod
    def entry(key: KeyPair, issuer: str, may_issue: Sequence[str], may_delegate: bool = False) -> dict[str, Any]:
        """The trust file's entry for a key, by its id."""
        body = {"issuer": issuer, "public_key": key.public_key, "may_issue": list(may_issue), "may_delegate": may_delegate}
        return {key.kid: body}

    def get(self, key_id: str) -> TrustedKey | None:
        """The key by that id, if it is trusted."""
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            document = json.loads(self._path.read_text())
            self._keys = {
                kid: TrustedKey(e["issuer"], e["public_key"], tuple(e["may_issue"]), bool(e.get("may_delegate")))
                for kid, e in document.items()
            }
            self._stamp = stamp
        return self._keys.get(key_id)


@dataclass(frozen=True)
class TokenIssuer:
    """Mints tokens in the name of one service."""

    issuer: str
    key: KeyPair

    def mint(
        self,
        subject: str,
        kind: Kind,
        *,
        ttl_seconds: float,
        roles: Sequence[Role] = (),
        groups: Sequence[str] = (),
        audience: str = PLATFORM,
        **claims: Any,
    ) -> str:
        """A signed token. `claims` may hold job_id, lease_epoch, pool, inputs, project, jti."""
        now = time.time()
        body = {
            "iss": self.issuer, "sub": subject, "kind": kind, "aud": audience, "iat": now, "nbf": now,
            "exp": now + ttl_seconds, "jti": claims.pop("jti", None) or str(uuid.uuid4()),
            "roles": [role.name for role in roles], "groups": list(groups), **claims,
        }  # fmt: skip
        return self.key.sign(body)


@dataclass(frozen=True)
class Authenticator:
    """Turns what a call carries into a principal."""

    settings: AuthSettings
    service_name: str
    _trust: TrustStore | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.settings.trust_file is not None:
            object.__setattr__(self, "_trust", TrustStore(self.settings.trust_file))

    def authenticate(self, metadata: Mapping[str, str], peer: str) -> Principal:
        """The principal behind a call.

        Args:
            metadata: headers, names in lower case.
            peer: gRPC's name of the other side, such as "ipv4:127.0.0.1:1234".

        Raises:
            Unauthenticated: no credential where one is needed, or one that does not hold.
        """
        authorization = metadata.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Unauthenticated("authorization must be a bearer token", reason="BAD_CREDENTIAL")
            principal, key = self._verify(token.strip())
            delegated = metadata.get(ON_BEHALF_OF)
            return principal if delegated is None else _delegate(principal, key, delegated)
        if self.settings.mode == "single" and _is_local(peer):
            return Principal(self.settings.local_user, "user", frozenset({Role.ADMIN}))
        raise Unauthenticated("a credential is needed", reason="NO_CREDENTIAL")

    def _verify(self, token: str) -> tuple[Principal, TrustedKey]:
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
            key = self._trust.get(key_id) if self._trust is not None else None
            if key is None:
                raise Unauthenticated("the token's key is not trusted", reason="BAD_CREDENTIAL")
            claims = jwt.decode(
                token,
                _public_key(key.public_key),
                algorithms=[ALGORITHM],
                audience=[PLATFORM, self.service_name],
                issuer=key.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired", reason="EXPIRED_CREDENTIAL") from None
        except jwt.PyJWTError:
            raise Unauthenticated("the token does not hold", reason="BAD_CREDENTIAL") from None
        kind = claims.get("kind")
        if kind not in key.may_issue or (kind == "service" and claims["sub"] != key.issuer):
            raise Unauthenticated("the token's issuer may not speak for that", reason="BAD_CREDENTIAL")
        return _principal_of(claims), key


def _principal_of(claims: Mapping[str, Any]) -> Principal:
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
        )
    except (KeyError, TypeError, ValueError):
        raise Unauthenticated("the token's claims make no sense", reason="BAD_CREDENTIAL") from None


def encode_delegation(principal: Principal) -> str:
    """What a service that may delegate sends to act for `principal`."""
    body = {
        "sub": principal.subject,
        "kind": principal.kind,
        "roles": sorted(role.name for role in principal.roles),
        "groups": sorted(principal.groups),
    }
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode("ascii")


def _delegate(service: Principal, key: TrustedKey, text: str) -> Principal:
    if service.kind != "service" or not key.may_delegate:
        raise Unauthenticated("this caller may not act for others", reason="BAD_CREDENTIAL")
    try:
        claims = json.loads(base64.urlsafe_b64decode(text.encode("ascii")))
        if claims["kind"] not in ("user", "guest"):
            raise ValueError
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise Unauthenticated("the delegation makes no sense", reason="BAD_CREDENTIAL") from None
    principal = _principal_of(claims)
    return Principal(principal.subject, principal.kind, principal.roles, principal.groups, actor=service.subject)


def _public_key(text: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def _is_local(peer: str) -> bool:
    """Whether a call comes from this machine."""
    scheme, _, address = peer.partition(":")
    if scheme == "unix":
        return True
    host = address.rsplit(":", 1)[0].strip("[]").replace("%5B", "").replace("%5D", "")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
