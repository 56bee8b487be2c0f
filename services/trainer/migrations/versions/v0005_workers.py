"""Indexes by which workers are found that no job and no attempt refers to."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_UP = """
CREATE INDEX attempts_worker_idx ON trainer.attempts (worker_id);
DROP INDEX trainer.jobs_worker_idx;
CREATE INDEX jobs_worker_idx ON trainer.jobs (worker_id) WHERE worker_id IS NOT NULL
"""
_DOWN = """
DROP INDEX trainer.jobs_worker_idx;
CREATE INDEX jobs_worker_idx ON trainer.jobs (worker_id) WHERE state IN ('LEASED', 'RUNNING');
DROP INDEX trainer.attempts_worker_idx
"""


def upgrade() -> None:
    """To this revision."""
    for statement in _UP.split(";"):
        op.execute(statement)


def downgrade() -> None:
    """Back from it."""
    for statement in _DOWN.split(";"):
        op.execute(statement)
