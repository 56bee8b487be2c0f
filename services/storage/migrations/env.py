"""Runs the steps on the connection that `guidehall.core.migrations` gives."""

from __future__ import annotations

from alembic import context

from services.storage.audit import tables as audit_tables
from services.storage.identity import tables as identity_tables
from services.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[metadata, identity_tables.metadata, audit_tables.metadata],
    version_table_schema=metadata.schema,
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
