"""The tables of the schema `audit`. Triggers refuse to change rows, and to delete them but for retention."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Index, LargeBinary, Table, Text
from sqlalchemy.dialects.postgresql import UUID

from services.storage.columns import moment, schema

metadata = schema("audit")

events = Table(
    "events",
    metadata,
    # From 1, without gaps.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", UUID(as_uuid=False), nullable=False, unique=True),
    Column("time", DateTime(timezone=True), nullable=False),
    Column("service", Text, nullable=False),
    # Of a person the pseudonym; in `resource`, too.
    Column("subject", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("etag_before", Text, nullable=False),
    Column("etag_after", Text, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    # SHA-256 of this row, as guidehall.core.audit_chain says.
    Column("digest", LargeBinary, nullable=False),
)
for _column in ("subject", "method", "resource", "job", "time"):
    Index(f"events_{_column}_sequence_idx", events.c[_column], events.c.sequence)

seals = Table(
    "seals",
    metadata,
    # From 1, without gaps. The first that is there is the anchor when retention has removed its events.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("first_sequence", BigInteger, nullable=False, unique=True),
    Column("last_sequence", BigInteger, nullable=False, unique=True),
    Column("time", DateTime(timezone=True), nullable=False),
    # Once each: the chain cannot fork, whoever writes to it.
    Column("previous", LargeBinary, nullable=False, unique=True),
    Column("content", LargeBinary, nullable=False),
    Column("seal", LargeBinary, nullable=False, unique=True),
    CheckConstraint("first_sequence <= last_sequence", name="sequence"),
)

# Who is meant in the log by what; without its row a pseudonym is nobody's any more.
people = Table(
    "people",
    metadata,
    Column("pseudonym", Text, primary_key=True),
    Column("user_id", Text, nullable=False, unique=True),
    moment("create_time"),
)
