"""Transactions: to read, and to change something together with its audit entry and its announcement."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from guidehall.core.auth import Principal
from guidehall.core.postgres import transaction
from guidehall.core.telemetry import current_trace_id, request_id
from services.storage import outbox
from services.storage.audit import log


@dataclass(frozen=True)
class Caller:
    """Who calls which rpc, such as "/guidehall.models.v1.ModelsService/DeleteModel"."""

    principal: Principal
    method: str

    def as_user(self, id: str) -> Caller:
        """The user who has just been proven, by way of who asks."""
        return Caller(Principal(id, "user", actor=self.principal.subject), self.method)


@dataclass(frozen=True)
class Mutation:
    """A change under way. Audit entries and announcements are written last, right before the commit."""

    connection: AsyncConnection
    caller: Caller
    _entries: list[log.Entry] = field(default_factory=list)
    _announcements: list[outbox.Announcement] = field(default_factory=list)

    def record(
        self, resource: str, etag_before: str = "", etag_after: str = "", *, outcome: str = "OK"
    ) -> None:
        """Adds an audit entry: the caller did this to `resource`, or tried to with another outcome."""
        principal = self.caller.principal
        entry = log.Entry(
            event_id=str(uuid.uuid4()),
            time=datetime.now(UTC),
            service=log.SERVICE,
            subject=principal.subject,
            kind=principal.kind,
            actor=principal.actor or "",
            method=self.caller.method,
            resource=resource,
            outcome=outcome,
            etag_before=etag_before,
            etag_after=etag_after,
            trace_id=current_trace_id() or "",
            count=1,
            request_id=request_id.get(),
        )
        self._entries.append(entry)

    def announce(self, subject: str, **payload: Any) -> None:
        """Has the bus told, once the change is committed."""
        self._announcements.append(outbox.Announcement(subject, payload))


class Database:
    """The service's database.

    Attributes:
        announced: set whenever a commit has left something to announce.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.announced = asyncio.Event()

    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction of its own kind: to read, or upkeep that no caller asked for."""
        return transaction(self._engine)

    @asynccontextmanager
    async def mutation(self, caller: Caller) -> AsyncIterator[Mutation]:
        """A change that a caller asked for."""
        async with transaction(self._engine) as connection:
            mutation = Mutation(connection, caller)
            yield mutation
            await outbox.enqueue(connection, mutation._announcements)
            # The log's lock is the last that a transaction takes, so it cannot be part of a deadlock.
            await log.append(connection, mutation._entries)
        if mutation._announcements:
            self.announced.set()
