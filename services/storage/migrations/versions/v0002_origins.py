"""Announcements keep the trace of the request that they come from."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column; what waits already has none."""
    op.execute("ALTER TABLE storage.outbox ADD COLUMN origin JSONB")


def downgrade() -> None:
    """Drops it."""
    op.execute("ALTER TABLE storage.outbox DROP COLUMN origin")
