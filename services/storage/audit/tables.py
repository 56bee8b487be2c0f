"""The table of the schema `audit`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import UUID

from services.storage.columns import schema

metadata = schema("audit")

events = Table(
    "events",
    metadata,
    # From 1, without gaps.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", UUID(as_uuid=False), nullable=False, unique=True),
    Column("time", DateTime(timezone=True), nullable=False),
    Column("service", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("etag_before", Text, nullable=False),
    Column("etag_after", Text, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    # SHA-256 of this row and the seal before it: whoever changes one has to change all that follow.
    Column("seal", LargeBinary, nullable=False),
)
for _column in ("subject", "method", "resource"):
    Index(f"events_{_column}_sequence_idx", events.c[_column], events.c.sequence)
