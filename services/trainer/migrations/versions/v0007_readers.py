"""Jobs are shared with others for reading."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds the column and its index."""
    op.execute("ALTER TABLE trainer.jobs ADD COLUMN readers TEXT[] DEFAULT '{}' NOT NULL")
    op.execute("CREATE INDEX jobs_readers_idx ON trainer.jobs USING gin (readers)")


def downgrade() -> None:
    """Drops them, with all that was shared."""
    op.execute("ALTER TABLE trainer.jobs DROP COLUMN readers")
