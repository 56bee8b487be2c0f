"""What services and operators do with the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict

from guidehall.contracts.identity.v1 import audit_pb2
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from services.storage.audit import log
from services.storage.audit.export import export
from services.storage.audit.log import Entry, Recorded
from services.storage.audit.messages import decoded
from services.storage.database import Database
from services.storage.fields import text
from services.storage.lists import Paging

MAX_EVENTS = 1000
_MAX_CHARACTERS = 1000


class AuditLog:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, principal: Principal, entries: Sequence[Entry]) -> int:
        """Appends what another service saw, each event once.

        Returns:
            The last sequence number.

        Raises:
            InvalidArgument: a field is not as it may be, or it is reported for another service.
        """
        if len(entries) > MAX_EVENTS:
            raise InvalidArgument.field("events", f"{len(entries)} events", f"at most {MAX_EVENTS}")
        for index, entry in enumerate(entries):
            self._check(f"events[{index}]", entry, principal)
        async with self._database.transaction() as connection:
            return await log.append(connection, entries)

    async def append_own(self, events: Sequence[audit_pb2.AuditEvent]) -> None:
        """Appends what this service itself has counted.

        Raises:
            Unavailable: the database does not answer.
        """
        await self.append(Principal(log.SERVICE, "service"), [decoded("events", event) for event in events])

    async def page(
        self, principal: Principal, filter_text: str, order_by: str, paging: Paging
    ) -> tuple[list[Recorded], str]:
        """One page of what the caller may see, and the token of the next.

        Raises:
            InvalidArgument: the filter, the order or the token is none.
        """
        async with self._database.transaction() as connection:
            return await log.entries(connection, principal, filter_text, order_by, paging)

    def export(self, after_seal: int) -> AsyncIterator[list[str]]:
        """The log with its seals as lines, some at a time; see `export`."""
        if after_seal < 0:
            raise InvalidArgument.field("after_seal", after_seal, "0 or the number of a seal")
        return export(self._database, after_seal)

    def _check(self, field: str, entry: Entry, principal: Principal) -> None:
        for name, value in asdict(entry).items():
            if isinstance(value, str):
                text(f"{field}.{name}", value, _MAX_CHARACTERS)
        if entry.service != principal.subject:
            raise InvalidArgument.field(
                f"{field}.service", entry.service, f"{principal.subject!r}, the caller"
            )
        if entry.count < 1:
            raise InvalidArgument.field(f"{field}.count", entry.count, "1 or more")
