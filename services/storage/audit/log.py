"""The audit log: appended in order, each row sealed with the one before, read newest first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import DataLoss
from services.storage.audit.tables import events
from services.storage.lists import Paging, TextField, conditions, page

# Any number, the same everywhere: one writer at a time, for each row needs the one before.
_LOCK = 7_102_002
_START = bytes(32)
_VERIFY_PAGE = 1000
_FIELDS = {
    name: TextField(events.c[name]) for name in ("subject", "method", "resource", "outcome", "service")
}


@dataclass(frozen=True)
class Entry:
    """One thing that somebody did, or tried."""

    event_id: str
    time: datetime
    service: str
    subject: str
    kind: str
    actor: str
    method: str
    resource: str
    outcome: str
    etag_before: str
    etag_after: str
    trace_id: str
    count: int


@dataclass(frozen=True)
class Recorded:
    """An entry in its place."""

    sequence: int
    entry: Entry


async def append(connection: AsyncConnection, entries: Sequence[Entry]) -> int:
    """Appends what is not there yet, by event id.

    Returns:
        The last sequence number of the log; 0 when nothing was given.
    """
    if not entries:
        return 0
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    newest = select(events.c.sequence, events.c.seal).order_by(events.c.sequence.desc()).limit(1)
    last = (await connection.execute(newest)).one_or_none()
    sequence, seal = (0, _START) if last is None else (last.sequence, last.seal)
    ids = [entry.event_id for entry in entries]
    known = set((await connection.scalars(select(events.c.event_id).where(events.c.event_id.in_(ids)))).all())
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry.event_id in known:
            continue
        known.add(entry.event_id)
        sequence += 1
        seal = _seal(seal, sequence, entry)
        rows.append(asdict(entry) | {"sequence": sequence, "seal": seal})
    if rows:
        await connection.execute(insert(events), rows)
    return sequence


async def entries(
    connection: AsyncConnection, filter_text: str, paging: Paging
) -> tuple[list[Recorded], str]:
    """One page, newest first, and the token of the next."""
    query = select(events).where(*conditions(filter_text, _FIELDS))
    rows, token = await page(connection, query, events.c.sequence, paging, "audit", filter_text)
    return [_recorded(row._mapping) for row in rows], token


async def verify(connection: AsyncConnection) -> int:
    """Checks every seal.

    Returns:
        How many rows the log has.

    Raises:
        DataLoss: a row was changed, removed or put in.
    """
    seal, sequence = _START, 0
    while True:
        query = (
            select(events).where(events.c.sequence > sequence).order_by(events.c.sequence).limit(_VERIFY_PAGE)
        )
        rows = (await connection.execute(query)).all()
        if not rows:
            return sequence
        for row in rows:
            recorded = _recorded(row._mapping)
            sequence += 1
            seal = _seal(seal, sequence, recorded.entry)
            if recorded.sequence != sequence or row.seal != seal:
                raise DataLoss(
                    f"the audit log does not hold from row {sequence} on", reason="AUDIT_LOG_BROKEN"
                )


def _seal(previous: bytes, sequence: int, entry: Entry) -> bytes:
    fields = asdict(entry) | {"time": entry.time.astimezone(UTC).isoformat(timespec="microseconds")}
    line = json.dumps([sequence, fields], sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(previous + line).digest()


def _recorded(row: Any) -> Recorded:
    return Recorded(row["sequence"], Entry(**{name: row[name] for name in Entry.__dataclass_fields__}))
