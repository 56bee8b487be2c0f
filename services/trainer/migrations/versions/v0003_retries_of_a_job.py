"""The retries of a job are found without a look at the others."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX jobs_retried_from_idx ON trainer.jobs (retried_from) WHERE retried_from IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX trainer.jobs_retried_from_idx")
