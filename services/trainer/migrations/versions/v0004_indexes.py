"""Indexes by what is looked for: the outbox by kind, and jobs whose events or retries are."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

_UP = """
DROP INDEX trainer.outbox_next_time_idx;
CREATE INDEX outbox_kind_next_time_idx ON trainer.outbox (kind, next_time, id);
DROP INDEX trainer.jobs_lease_until_idx;
CREATE INDEX jobs_whole_past_idx ON trainer.jobs (end_time)
    WHERE end_reason IS NOT NULL AND first_seq < (last_seq - (result IS NOT NULL)::int);
CREATE INDEX jobs_retried_from_idx ON trainer.jobs (retried_from) WHERE retried_from IS NOT NULL
"""
_DOWN = """
DROP INDEX trainer.jobs_retried_from_idx;
DROP INDEX trainer.jobs_whole_past_idx;
CREATE INDEX jobs_lease_until_idx ON trainer.jobs (lease_until) WHERE state IN ('LEASED', 'RUNNING');
DROP INDEX trainer.outbox_kind_next_time_idx;
CREATE INDEX outbox_next_time_idx ON trainer.outbox (next_time, id)
"""


def upgrade() -> None:
    """To this revision."""
    for statement in _UP.split(";"):
        op.execute(statement)


def downgrade() -> None:
    """Back from it."""
    for statement in _DOWN.split(";"):
        op.execute(statement)
