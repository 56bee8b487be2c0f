"""Requests that name themselves: a repeat gives what the first one made."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import InvalidArgument
from services.storage.database import Caller
from services.storage.documents import digest
from services.storage.tables import requests


class Request:
    """One request of a caller, by the id that the caller gave it; an empty id is never a repeat."""

    def __init__(self, caller: Caller, request_id: str, *content: object) -> None:
        principal = caller.principal
        self._key = {
            "caller": f"{principal.kind}:{principal.subject}",
            "method": caller.method,
            "request_id": request_id,
        }
        self._digest = digest(content)

    async def first_made(self, connection: AsyncConnection) -> str | None:
        """Name of what the first such request made; None when this one is the first.

        Two at one time: the second waits for the first one's commit.

        Raises:
            InvalidArgument: the first one had another content.
        """
        if not self._key["request_id"]:
            return None
        row = {**self._key, "content_digest": self._digest, "resource": ""}
        claimed = insert(requests).values(row).on_conflict_do_nothing().returning(requests.c.method)
        if (await connection.execute(claimed)).first() is not None:
            return None
        query = select(requests.c.content_digest, requests.c.resource).filter_by(**self._key)
        first = (await connection.execute(query)).one()
        if first.content_digest != self._digest:
            allowed = "an id that no request with another content has had"
            raise InvalidArgument.field("request_id", self._key["request_id"], allowed)
        return str(first.resource)

    async def made(self, connection: AsyncConnection, resource: str) -> None:
        """Remembers the name of what this request made."""
        if self._key["request_id"]:
            await connection.execute(update(requests).filter_by(**self._key).values(resource=resource))
