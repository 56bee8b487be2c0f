"""API keys as credentials: how one is recognised, and who it speaks for."""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from guidehall.core.auth.lookups import Answer, Lookups
from guidehall.core.auth.principals import Principal
from guidehall.core.errors import Unauthenticated
from guidehall.core.settings import LookupSettings

# No token begins so: those are JSON in base64, which begins with "ey".
API_KEY_PREFIX = "gh_"
_API_KEY = re.compile(API_KEY_PREFIX + r"[A-Za-z0-9_-]{43}")


class KeyDirectory(Protocol):
    """Who knows API keys: storage, asked from elsewhere or within itself."""

    async def bearer(self, secret: str) -> Answer[Principal]:
        """Whom a key speaks for.

        Raises:
            Unavailable: that cannot be found out now.
        """
        ...


class ApiKeyVerifier:
    """Says who a key speaks for. A key that ends counts for as long as its answer is remembered."""

    def __init__(self, directory: KeyDirectory, settings: LookupSettings) -> None:
        self._directory = directory
        self._known: Lookups[Principal] = Lookups(settings)

    async def verify(self, secret: str) -> Principal:
        """The principal behind a key.

        Raises:
            Unauthenticated: there is no such key, it has ended, or its user is disabled.
            Unavailable: it is not known here, and cannot be looked up now.
        """
        # Keys stay out of memory but for the call that looks one up.
        digest = hashlib.sha256(secret.encode()).digest()
        well_formed = _API_KEY.fullmatch(secret) is not None
        principal = (
            await self._known.get(digest, lambda: self._directory.bearer(secret)) if well_formed else None
        )
        if principal is None:
            raise Unauthenticated("the API key does not hold", reason="BAD_CREDENTIAL")
        return principal
