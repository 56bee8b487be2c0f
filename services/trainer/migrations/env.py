"""Runs the steps on the connection that `guidehall.core.migrations` gives."""

from __future__ import annotations

from alembic import context

from services.trainer.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
