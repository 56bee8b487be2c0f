"""Tags of models, and versions that are pinned."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the columns."""
    op.execute("ALTER TABLE storage.models ADD COLUMN tags JSONB DEFAULT '{}' NOT NULL")
    op.execute("ALTER TABLE storage.model_versions ADD COLUMN pinned BOOLEAN DEFAULT false NOT NULL")


def downgrade() -> None:
    """Drops them."""
    op.execute("ALTER TABLE storage.models DROP COLUMN tags")
    op.execute("ALTER TABLE storage.model_versions DROP COLUMN pinned")
