"""The directory of callers as storage's own server asks it: within the process."""

from __future__ import annotations

from guidehall.core.auth import Answer, Principal
from services.storage.identity.api_keys import ApiKeys


class LocalDirectory:
    """Storage's tables, asked by its own server."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    async def bearer(self, secret: str) -> Answer[Principal]:
        """Whom an API key speaks for.

        Raises:
            Unavailable: the database does not answer.
        """
        bearer = await self._api_keys.introspect(secret)
        if bearer is None:
            return Answer(None)
        expires = bearer.key.expire_time
        return Answer(bearer.principal(), None if expires is None else expires.timestamp())
