"""The audit log: appended in order without gaps, sealed in batches, read by filters."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, not_, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import audit_chain, pages
from guidehall.core.access import sees_everything
from guidehall.core.audit_chain import Seal
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from guidehall.core.filters import Term
from services.storage.audit import pseudonyms
from services.storage.audit.tables import events, seals
from services.storage.lists import Field, Paging, SearchField, TextField, conditions, position

SERVICE = "storage"
# Any number, the same everywhere: one writer at a time, for sequence numbers have no gaps.
_LOCK = 7_102_002
# Batches that one sweep removes.
_REMOVED_TOGETHER = 20
_ORDERS = ("", "sequence desc", "sequence")
_JOB = re.compile(r"projects/[^/]+/(?:jobs|results)/([0-9a-f-]{36})(?:/.*)?")
_TIMES = ("=", "<", "<=", ">", ">=")


@dataclass(frozen=True)
class Entry:
    """One thing that somebody did, or tried, with the names that people go by."""

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
    request_id: str = ""
    job: str = ""


def own_entry(method: str, resource: str, count: int = 1) -> Entry:
    """What storage did of itself."""
    return Entry(
        event_id=str(uuid.uuid4()),
        time=datetime.now(UTC),
        service=SERVICE,
        subject=SERVICE,
        kind="service",
        actor="",
        method=method,
        resource=resource,
        outcome="OK",
        etag_before="",
        etag_after="",
        trace_id="",
        count=count,
    )


@dataclass(frozen=True)
class Recorded:
    """An entry in its place; `seal` is the number of its batch, 0 while that is open."""

    sequence: int
    entry: Entry
    seal: int


@dataclass(frozen=True)
class _PersonField:
    operators: tuple[str, ...] = ("=", "!=")

    def condition(self, term: Term) -> ColumnElement[bool]:
        same = pseudonyms.is_person(events.c.subject, term.value)
        return same if term.operator == "=" else not_(func.coalesce(same, False))


@dataclass(frozen=True)
class _ResourceField:
    operators: tuple[str, ...] = ("=", "!=", ":")

    def condition(self, term: Term) -> ColumnElement[bool]:
        if term.operator == ":":
            return SearchField(events.c.resource).condition(term)
        same = pseudonyms.is_resource(events.c.resource, term.value)
        return same if term.operator == "=" else not_(func.coalesce(same, False))


@dataclass(frozen=True)
class _TextOrPart(TextField):
    operators: tuple[str, ...] = ("=", "!=", ":")

    def condition(self, term: Term) -> ColumnElement[bool]:
        if term.operator == ":":
            return SearchField(self.column).condition(term)
        return super().condition(term)


@dataclass(frozen=True)
class _TimeField:
    operators: tuple[str, ...] = _TIMES

    def condition(self, term: Term) -> ColumnElement[bool]:
        try:
            time = datetime.fromisoformat(term.value)
        except ValueError:
            time = None
        if time is None or time.tzinfo is None:
            raise InvalidArgument.field(
                "filter",
                f"{term.field} {term.operator} {term.value}",
                'a time such as "2026-08-01T06:00:00Z"',
            )
        column = events.c.time
        compared: dict[str, ColumnElement[bool]] = {
            "=": column == time,
            "<": column < time,
            "<=": column <= time,
            ">": column > time,
            ">=": column >= time,
        }
        return compared[term.operator]


_FIELDS: Mapping[str, Field] = {
    **{name: TextField(events.c[name]) for name in ("outcome", "service", "kind", "actor")},
    **{name: TextField(events.c[name]) for name in ("trace_id", "request_id", "job")},
    "subject": _PersonField(),
    "method": _TextOrPart(events.c.method),
    "resource": _ResourceField(),
    "time": _TimeField(),
}


async def lock(connection: AsyncConnection) -> None:
    """Keeps other writers out until the transaction ends. The last lock that a transaction takes."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


async def append(connection: AsyncConnection, entries: Sequence[Entry]) -> int:
    """Appends what is not there yet, by event id, with pseudonyms for names of people.

    Returns:
        The last sequence number of the log; 0 when nothing was given.
    """
    if not entries:
        return 0
    await lock(connection)
    sequence = await last_sequence(connection)
    ids = [entry.event_id for entry in entries]
    known = set((await connection.scalars(select(events.c.event_id).where(events.c.event_id.in_(ids)))).all())
    names = await pseudonyms.of(connection, _people(entries))
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry.event_id in known:
            continue
        known.add(entry.event_id)
        sequence += 1
        row = asdict(_hidden(entry, names)) | {"sequence": sequence}
        rows.append(row | {"digest": audit_chain.digest(_hashed(row))})
    if rows:
        await connection.execute(insert(events), rows)
    return sequence


async def last_sequence(connection: AsyncConnection) -> int:
    """Of the events, or, where retention has removed all of them, of the seals."""
    newest = select(
        func.greatest(
            select(func.max(events.c.sequence)).scalar_subquery(),
            select(func.max(seals.c.last_sequence)).scalar_subquery(),
            0,
        )
    )
    return int((await connection.scalar(newest)) or 0)


def _people(entries: Sequence[Entry]) -> set[str]:
    subjects = {entry.subject for entry in entries if entry.kind == "user"}
    owners = {pseudonyms.person_in(entry.resource) for entry in entries}
    return subjects | {owner for owner in owners if owner}


def _hidden(entry: Entry, names: Mapping[str, str]) -> Entry:
    subject = names.get(entry.subject, entry.subject) if entry.kind == "user" else entry.subject
    match = _JOB.fullmatch(entry.resource)
    job = entry.job or ("" if match is None else match[1])
    return replace(entry, subject=subject, resource=pseudonyms.renamed(entry.resource, names), job=job)


def _hashed(row: Mapping[Any, Any]) -> dict[str, Any]:
    """An event as it is hashed: every column but the digest."""
    fields = {name: row[name] for name in (*Entry.__dataclass_fields__, "sequence")}
    return fields | {"time": audit_chain.timestamp(row["time"])}


async def entries(
    connection: AsyncConnection, principal: Principal, filter_text: str, order_by: str, paging: Paging
) -> tuple[list[Recorded], str]:
    """One page of what the caller may see, and the token of the next.

    Raises:
        InvalidArgument: the filter, the order or the token is none.
    """
    if order_by not in _ORDERS:
        raise InvalidArgument.field("order_by", order_by, '"sequence desc" (the usual one) or "sequence"')
    rising = order_by == "sequence"
    key = events.c.sequence
    query = select(events, _seal_of_event().label("batch")).where(*conditions(filter_text, _FIELDS))
    if not sees_everything(principal):
        query = query.where(concerns(principal.subject))
    bound = ("audit", filter_text, order_by, principal.subject)
    cursor = pages.cursor_of(paging.token, *bound)
    if cursor is not None:
        at = position(cursor, paging.token)
        query = query.where(key > at if rising else key < at)
    size = pages.page_size(paging.size)
    query = query.order_by(key if rising else key.desc()).limit(size + 1)
    rows = [row._mapping for row in await connection.execute(query)]
    names = await pseudonyms.names_of(connection, _pseudonyms(rows))
    token = pages.next_token([rows[size - 1]["sequence"]], *bound) if len(rows) > size else ""
    return [_recorded(row, names) for row in rows[:size]], token


def concerns(user: str) -> ColumnElement[bool]:
    """What a user did, and what was done to their account, keys, sessions and history."""
    did = and_(events.c.kind == "user", pseudonyms.is_person(events.c.subject, user))
    return or_(did, pseudonyms.is_about(events.c.resource, user))


def _seal_of_event() -> Any:
    """The number of the batch that an event is in: the first one that ends there or later."""
    at = events.c.sequence
    return (
        select(seals.c.number)
        .where(seals.c.last_sequence >= at)
        .order_by(seals.c.last_sequence)
        .limit(1)
        .scalar_subquery()
    )


def _pseudonyms(rows: Sequence[Mapping[Any, Any]]) -> set[str]:
    owners = {pseudonyms.person_in(row["resource"]) for row in rows}
    return {row["subject"] for row in rows} | {owner for owner in owners if owner}


def _recorded(row: Mapping[Any, Any], names: Mapping[str, str]) -> Recorded:
    entry = Entry(**{name: row[name] for name in Entry.__dataclass_fields__})
    shown = replace(
        entry,
        subject=names.get(entry.subject, entry.subject),
        resource=pseudonyms.renamed(entry.resource, names),
    )
    return Recorded(row["sequence"], shown, row["batch"] or 0)


# Seals --------------------------------------------------------------------------------------------------


async def newest_seal(connection: AsyncConnection) -> Seal | None:
    """The last seal of the chain."""
    row = (await connection.execute(select(seals).order_by(seals.c.number.desc()).limit(1))).one_or_none()
    return None if row is None else _seal(row._mapping)


async def seal_batch(connection: AsyncConnection, most: int) -> Seal | None:
    """Closes a batch of at most so many events; None when there are none that are open.

    The lock keeps other replicas out, and the unique columns would, too.
    """
    await lock(connection)
    last = await newest_seal(connection)
    previous, number, after = (
        (audit_chain.START, 0, 0) if last is None else (last.seal, last.number, last.last)
    )
    open_events = (
        select(events.c.sequence, events.c.digest)
        .where(events.c.sequence > after)
        .order_by(events.c.sequence)
        .limit(most)
    )
    rows = (await connection.execute(open_events)).all()
    if not rows:
        return None
    time: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    first = rows[0].sequence
    made = audit_chain.sealed(
        number + 1, audit_chain.timestamp(time), previous, first, [row.digest for row in rows]
    )
    await connection.execute(
        insert(seals).values(
            number=made.number,
            first_sequence=made.first,
            last_sequence=made.last,
            time=time,
            previous=made.previous,
            content=made.content,
            seal=made.seal,
        )
    )
    return made


async def removable(connection: AsyncConnection, before: datetime) -> int | None:
    """A batch up to which events may go, sealed before that time; None where there is none.

    Not all of a log that was kept for years in one piece: whoever changes anything waits meanwhile.
    """
    # The oldest one that is there is an anchor already, if its events are gone.
    held = select(events.c.sequence).where(events.c.sequence == seals.c.last_sequence).exists()
    oldest = select(seals.c.number).where(seals.c.time < before, held).order_by(seals.c.number)
    some = oldest.limit(_REMOVED_TOGETHER).subquery()
    query = select(func.max(some.c.number))
    number: int | None = await connection.scalar(query)
    return number


async def remove_batches(connection: AsyncConnection, newest: int) -> int:
    """Removes batches up to this one, whose seal stays as the anchor; how many events went."""
    removed = await connection.scalar(text("SELECT audit.remove_batches(:newest)"), {"newest": newest})
    return int(removed or 0)


async def anchor(connection: AsyncConnection, after: int) -> Seal | None:
    """What an export begins after: the batch `after`, or for 0 the last one that retention removed, if any.

    Raises:
        InvalidArgument: there is no such seal any more.
    """
    if after:
        row = (await connection.execute(select(seals).where(seals.c.number == after))).one_or_none()
        if row is None:
            raise InvalidArgument.field("after_seal", after, "the number of a seal that is kept")
        return _seal(row._mapping)
    row = (await connection.execute(select(seals).order_by(seals.c.number).limit(1))).one_or_none()
    if row is None:
        return None
    oldest = _seal(row._mapping)
    kept = select(events.c.sequence).where(events.c.sequence <= oldest.last).limit(1)
    if oldest.number == 1 and await connection.scalar(kept) is not None:
        return None
    return oldest


async def next_seal(connection: AsyncConnection, after: int) -> Seal | None:
    """The seal that follows on a number."""
    query = select(seals).where(seals.c.number > after).order_by(seals.c.number).limit(1)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _seal(row._mapping)


async def event_lines(
    connection: AsyncConnection, after: int, last: int, most: int
) -> tuple[list[str], int | None]:
    """Export lines of events with sequence numbers above `after` and up to `last`, and the last one read."""
    query = select(events).where(events.c.sequence > after, events.c.sequence <= last)
    rows = (await connection.execute(query.order_by(events.c.sequence).limit(most))).mappings().all()
    names = await pseudonyms.names_of(connection, _pseudonyms(rows))
    told = [audit_chain.event_line(_hashed(row), row["digest"], _named(row, names)) for row in rows]
    return told, rows[-1]["sequence"] if rows else None


def _named(row: Mapping[Any, Any], names: Mapping[str, str]) -> dict[str, str]:
    """The names of those that an event tells of."""
    return {one: names[one] for one in _pseudonyms([row]) if one in names}


def _seal(row: Mapping[Any, Any]) -> Seal:
    return Seal(
        row["number"],
        row["first_sequence"],
        row["last_sequence"],
        audit_chain.timestamp(row["time"]),
        row["previous"],
        row["content"],
        row["seal"],
    )
