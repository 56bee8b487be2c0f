"""Transactions that leave messages in the outbox when they commit, and wake who waits for the change."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ARRAY, Text, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from guidehall.core.postgres import Listener, transaction
from guidehall.core.settings import PostgresSettings
from guidehall.core.telemetry import trace_headers
from services.trainer.documents import Document
from services.trainer.records import Note
from services.trainer.wakes import Ear, Wakes, outbox_topic

_CHANNEL = "guidehall_trainer"
# The transaction's time, in a document that the database reads.
NOW = "now"
# All that a transaction leaves besides rows of jobs, in one statement with one parameter for any number of
# rows of a kind. Of an attempt nothing is ever taken back.
_FLUSH = text(
    """
    WITH begun AS (
        INSERT INTO trainer.attempts (job_id, epoch, number, worker_id)
        SELECT job_id, epoch, number, worker_id
        FROM jsonb_to_recordset(:begun) AS r(job_id uuid, epoch bigint, number int, worker_id uuid)
    ), changed AS (
        UPDATE trainer.attempts AS a
        SET start_time = coalesce(r.start_time, a.start_time), end_time = coalesce(r.end_time, a.end_time),
            end_reason = coalesce(r.end_reason, a.end_reason), error = coalesce(r.error, a.error),
            finished = coalesce(r.finished, a.finished),
            last_event_number = coalesce(r.last_event_number, a.last_event_number),
            checkpoint_ordinal = coalesce(r.checkpoint_ordinal, a.checkpoint_ordinal),
            checkpoint_step = coalesce(r.checkpoint_step, a.checkpoint_step)
        FROM jsonb_to_recordset(:changed) AS r(
            job_id uuid, epoch bigint, start_time timestamptz, end_time timestamptz, end_reason text,
            error jsonb, finished boolean, last_event_number bigint, checkpoint_ordinal bigint,
            checkpoint_step bigint)
        WHERE a.job_id = r.job_id AND a.epoch = r.epoch
    ), forgotten AS (
        DELETE FROM trainer.checkpoints WHERE job_id = ANY(:forgotten)
    ), seen AS (
        UPDATE trainer.workers SET last_seen_time = now() WHERE id = ANY(:seen)
    ), noted AS (
        INSERT INTO trainer.job_events (job_id, seq, time, kind, payload)
        SELECT job_id, seq, coalesce(time, now()), kind, payload
        FROM jsonb_to_recordset(:events)
            AS r(job_id uuid, seq bigint, time timestamptz, kind text, payload jsonb)
    ), sent AS (
        INSERT INTO trainer.outbox (kind, subject, payload, next_time, origin)
        SELECT kind, subject, payload, now() + make_interval(secs => delay_seconds), :origin
        FROM jsonb_to_recordset(:messages)
            AS r(kind text, subject text, payload jsonb, delay_seconds float8)
    )
    SELECT pg_notify(:channel, topic) FROM unnest(:topics) AS topic
    """
).bindparams(
    bindparam("begun", type_=JSONB),
    bindparam("changed", type_=JSONB),
    bindparam("forgotten", type_=ARRAY(UUID(as_uuid=False))),
    bindparam("seen", type_=ARRAY(UUID(as_uuid=False))),
    bindparam("events", type_=JSONB),
    bindparam("messages", type_=JSONB),
    bindparam("origin", type_=JSONB(none_as_null=True)),
    bindparam("topics", type_=ARRAY(Text)),
)


class Unit:
    """One writing transaction: its connection, and what it appends and whom it wakes when it commits."""

    def __init__(self, connection: AsyncConnection, sender: str) -> None:
        self.connection = connection
        self._sender = sender
        self.topics: set[str] = set()
        # Kinds of messages that were put into the outbox.
        self.sent: set[str] = set()
        self._begun: list[dict[str, Any]] = []
        # One row for each attempt: a statement changes a row only once.
        self._changed: dict[tuple[str, int], dict[str, Any]] = {}
        self._forgotten: list[str] = []
        self._seen: list[str] = []
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

    def unsend(self, kind: str, subject: str) -> None:
        """Takes back what was to be told of a subject."""
        self._messages = [
            message for message in self._messages if (message["kind"], message["subject"]) != (kind, subject)
        ]

    def append_events(self, job_id: str, last_seq: int, notes: Sequence[Note]) -> None:
        """Appends events to a locked job, numbered after `last_seq`, and has them fanned out."""
        for seq, note in enumerate(notes, last_seq + 1):
            time = note.time.isoformat() if note.time else None
            row = {"job_id": job_id, "seq": seq, "time": time, "kind": note.kind, "payload": note.payload}
            self._events.append(row)
        if notes:
            self.send("events", job_id, {"first_seq": last_seq + 1, "last_seq": last_seq + len(notes)})

    def begin_attempt(self, job_id: str, epoch: int, number: int, worker_id: str | None) -> None:
        """Adds the row of an attempt at a locked job."""
        row = {"job_id": job_id, "epoch": epoch, "number": number, "worker_id": worker_id}
        self._begun.append(row)

    def change_attempt(self, job_id: str, epoch: int, values: Document) -> None:
        """Sets columns of an attempt at a locked job; None leaves one as it is, and `NOW` is a time."""
        row = self._changed.setdefault((job_id, epoch), {"job_id": job_id, "epoch": epoch})
        row |= values

    def forget_checkpoints(self, job_id: str) -> None:
        """Drops the rows of a locked job's checkpoints."""
        self._forgotten.append(job_id)

    def see(self, worker_id: str) -> None:
        """Something was heard of a worker."""
        self._seen.append(worker_id)

    async def flush(self) -> None:
        """Writes what was collected since the last time; at the latest when the transaction commits.

        Comes after any lock on a job: a heartbeat takes them in that order.
        """
        collected = (self._begun, self._changed, self._forgotten, self._seen, self._events, self._messages)
        if any(collected) or self.topics:
            values = {
                "begun": self._begun,
                "changed": list(self._changed.values()),
                "forgotten": self._forgotten,
                "seen": self._seen,
                "events": self._events,
                "messages": self._messages,
                "origin": (trace_headers() or None) if self._messages else None,
                "topics": [f"{self._sender} {topic}" for topic in sorted(self.topics)],
                "channel": _CHANNEL,
            }
            await self.connection.execute(_FLUSH, values)
            for rows in collected:
                rows.clear()


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
    async def unit(self, deaf: Ear | None = None) -> AsyncIterator[Unit]:
        """A writing transaction.

        Args:
            deaf: an ear that is not woken: of who writes, and reads under the same locks what others wrote.

        Raises:
            Unavailable: the database cannot be reached.
        """
        unit = None
        try:
            async with transaction(self._engine) as connection:
                unit = Unit(connection, self._sender)
                yield unit
                await unit.flush()
        finally:
            # Also when it is not known whether that was committed: who is woken for nothing waits on.
            # The relay of this process tells what was sent; those of others need not be woken for it.
            if unit is not None:
                for topic in (*unit.topics, *map(outbox_topic, unit.sent)):
                    self.wakes.ring(topic, deaf)

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
