"""Jobs keep what the client that submitted them wants back."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the column."""
    op.execute("ALTER TABLE trainer.jobs ADD COLUMN annotations JSONB DEFAULT '{}' NOT NULL")


def downgrade() -> None:
    """Drops it."""
    op.execute("ALTER TABLE trainer.jobs DROP COLUMN annotations")
