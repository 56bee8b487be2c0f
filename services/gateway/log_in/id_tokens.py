"""ID tokens: held against the provider's keys, and against the log-in that they are to answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt

from guidehall.core.errors import Unauthenticated

# Signatures by keys of which only the provider has the private half; "none" and HS256 are not among them.
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
_LEEWAY_SECONDS = 30.0
_MAX_TOKEN_CHARACTERS = 32 << 10


class ProviderKeys:
    """A provider's public keys, asked for anew when they are old, or when a token names an unknown one.

    Args:
        ask: gives the provider's JWK set.
        keep_seconds: after which it is asked again.
        retry_seconds: before which an unknown key is no reason to ask again.
    """

    def __init__(self, ask: Callable[[], Awaitable[Any]], keep_seconds: float, retry_seconds: float) -> None:
        self._ask = ask
        self._keep_seconds = keep_seconds
        self._retry_seconds = retry_seconds
        self._keys: list[dict[str, Any]] = []
        self._asked = float("-inf")

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """The key that signs with this algorithm under this id; without an id, the only one.

        Raises:
            Unauthenticated: there is none.
            Unavailable: the provider does not tell its keys.
        """
        age = time.monotonic() - self._asked
        key = self._known(kid, algorithm) if age < self._keep_seconds else None
        if key is None and age >= self._retry_seconds:
            self._keys = _keys(await self._ask())
            self._asked = time.monotonic()
            key = self._known(kid, algorithm)
        if key is None:
            raise refusal("it is signed with a key that the provider does not have")
        return key

    def _known(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        found = []
        for item in self._keys:
            if item.get("use", "sig") != "sig" or item.get("alg", algorithm) != algorithm:
                continue
            if kid is not None and item.get("kid") != kid:
                continue
            try:
                # Raises where the kind of key and the algorithm do not belong together.
                found.append(jwt.PyJWK.from_dict(item, algorithm))
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue
        return found[0] if len(found) == 1 else None


def _keys(answer: Any) -> list[dict[str, Any]]:
    keys = answer.get("keys") if isinstance(answer, dict) else None
    return [item for item in keys if isinstance(item, dict)] if isinstance(keys, list) else []


async def verify(
    token: Any, keys: ProviderKeys, *, issuer: str, client_id: str, nonce: str
) -> dict[str, Any]:
    """The claims of an ID token (OpenID Connect Core 3.1.3.7).

    Raises:
        Unauthenticated: signature, algorithm, issuer, audience, times or nonce do not hold.
        Unavailable: the provider does not tell its keys.
    """
    if not isinstance(token, str) or len(token) > _MAX_TOKEN_CHARACTERS:
        raise refusal("there is none")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, RecursionError):
        raise refusal("it is none") from None
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise refusal("its algorithm does not count here")
    key = await keys.find(kid, algorithm)
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=client_id,
            issuer=issuer,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
    except (jwt.PyJWTError, RecursionError) as error:
        raise refusal(_WHY.get(type(error), "it does not hold")) from None
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if claims.get("azp", client_id) != client_id or (len(audiences) > 1 and "azp" not in claims):
        raise refusal("it was made for another client")
    if claims.get("nonce") != nonce:
        raise refusal("it answers another log-in")
    return claims


_WHY: dict[type, str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.InvalidAudienceError: "it was made for another client",
    jwt.InvalidIssuerError: "another issuer has made it",
    jwt.InvalidSignatureError: "its signature does not hold",
}


def refusal(why: str) -> Unauthenticated:
    """What is said of an ID token that does not hold."""
    return Unauthenticated(f"the provider's ID token: {why}", reason="BAD_ID_TOKEN")
