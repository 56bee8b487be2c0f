"""Transactions that leave messages in the outbox when they commit, and wake who waits for the change."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ARRAY, Text, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from guidehall.core.postgres import Listener, transaction
from guidehall.core.settings import PostgresSettings
from services.trainer.documents import Document
from services.trainer.records import Note
from services.trainer.wakes import Wakes, outbox_topic

_CHANNEL = "guidehall_trainer"
# All that a transaction appends, in one statement with one parameter for any number of rows.
_FLUSH = text(
    """
    WITH noted AS (
        INSERT INTO trainer.job_events (job_id, seq, time, kind, payload)
        SELECT job_id, seq, coalesce(time, now()), kind, payload
        FROM jsonb_to_recordset(:events)
            AS r(job_id uuid, seq bigint, time timestamptz, kind text, payload jsonb)
    ), sent AS (
        INSERT INTO trainer.outbox (kind, subject, payload, next_time)
        SELECT kind, subject, payload, now() + make_interval(secs => delay_seconds)
        FROM jsonb_to_recordset(:messages)
            AS r(kind text, subject text, payload jsonb, delay_seconds float8)
    )
    SELECT pg_notify(:channel, topic) FROM unnest(:topics) AS topic
    """
).bindparams(
    bindparam("events", type_=JSONB),
    bindparam("messages", type_=JSONB),
    bindparam("topics", type_=ARRAY(Text)),
)


class Unit:
    """One writing transaction: its connection, and what it appends and whom it wakes when it commits."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.topics: set[str] = set()
        # Kinds of messages that were put into the outbox.
        self.sent: set[str] = set()
        self._events: list[dict[str, Any]] = []
        self._messages: list[dict[str, Any]] = []

    def wake(self, topic: str) -> None:
        """Wakes who listens to `topic`, in every replica."""
        self.topics.add(topic)

    def send(self, kind: str, subject: str, payload: Document, delay_seconds: float = 0.0) -> None:
        """Puts a message into the outbox; see outbox.py for the kinds."""
        message = {"kind": kind, "subject": subject, "payload": payload, "delay_seconds": delay_seconds}
        self._messages.append(message)
        self.sent.add(kind)

    def append_events(self, job_id: str, last_seq: int, notes: Sequence[Note]) -> None:
        """Appends events to a locked job, numbered after `last_seq`, and has them fanned out."""
        for seq, note in enumerate(notes, last_seq + 1):
            time = note.time.isoformat() if note.time else None
            row = {"job_id": job_id, "seq": seq, "time": time, "kind": note.kind, "payload": note.payload}
            self._events.append(row)
        if notes:
            self.send("events", job_id, {"first_seq": last_seq + 1, "last_seq": last_seq + len(notes)})

    async def flush(self, sender: str) -> None:
        """Writes what was collected."""
        if self._events or self._messages or self.topics:
            values = {
                "events": self._events,
                "messages": self._messages,
                "topics": [f"{sender} {topic}" for topic in sorted(self.topics)],
                "channel": _CHANNEL,
            }
            await self.connection.execute(_FLUSH, values)


class Database:
    """The trainer's database."""

    def __init__(self, engine: AsyncEngine, wakes: Wakes) -> None:
        self.wakes = wakes
        self._engine = engine
        # Takes its connections from the same pool.
        self._one_by_one = engine.execution_options(isolation_level="AUTOCOMMIT")
        # Tells our own notifications from those of other replicas.
        self._sender = uuid.uuid4().hex[:8]

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """A writing transaction.

        Raises:
            Unavailable: the database cannot be reached.
        """
        async with transaction(self._engine) as connection:
            unit = Unit(connection)
            yield unit
            await unit.flush(self._sender)
        # The relay of this process tells what was sent; those of others need not be woken for it.
        for topic in (*unit.topics, *map(outbox_topic, unit.sent)):
            self.wakes.ring(topic)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[AsyncConnection]:
        """Statements that are each a transaction: to read, or to write by a single one that wakes nobody."""
        async with transaction(self._one_by_one) as connection:
            yield connection

    @asynccontextmanager
    async def rehearsal(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of which nothing remains."""
        async with transaction(self._engine) as connection:
            yield connection
            await connection.rollback()

    def listener(self, settings: PostgresSettings) -> Listener:
        """Rings here what other replicas rang."""
        return Listener(settings, {_CHANNEL: self._heard})

    def _heard(self, payload: str) -> None:
        sender, _, topic = payload.partition(" ")
        if not payload:
            self.wakes.ring_all()
        elif sender != self._sender:
            self.wakes.ring(topic)
