"""Jobs and messages keep the trace of the request that they come from."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the columns."""
    op.execute("ALTER TABLE trainer.jobs ADD COLUMN traceparent TEXT DEFAULT '' NOT NULL")
    op.execute("ALTER TABLE trainer.outbox ADD COLUMN origin JSONB")


def downgrade() -> None:
    """Drops them."""
    op.execute("ALTER TABLE trainer.outbox DROP COLUMN origin")
    op.execute("ALTER TABLE trainer.jobs DROP COLUMN traceparent")
