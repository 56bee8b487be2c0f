"""Groups, device classes, notifications, batches, retries from a checkpoint, service of workers, launches."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_UP = """
ALTER TABLE trainer.jobs
    ADD COLUMN group_name TEXT DEFAULT '' NOT NULL,
    ADD COLUMN device_class TEXT DEFAULT '' NOT NULL,
    ADD COLUMN notifications JSONB DEFAULT '[]' NOT NULL,
    ADD COLUMN batch UUID,
    ADD COLUMN batch_position INTEGER,
    ADD COLUMN checkpoint_from UUID,
    ADD COLUMN first_seq BIGINT DEFAULT 1 NOT NULL;
CREATE INDEX jobs_owner_queue_idx ON trainer.jobs (pool, owner, queue_rank, id) WHERE state = 'QUEUED';
CREATE INDEX jobs_batch_idx ON trainer.jobs (batch, batch_position) WHERE batch IS NOT NULL;
CREATE INDEX jobs_end_time_idx ON trainer.jobs (end_time) WHERE end_reason IS NOT NULL;
CREATE INDEX jobs_pipeline_end_time_idx ON trainer.jobs (pipeline, end_time) WHERE state = 'SUCCEEDED';
ALTER TABLE trainer.workers
    ADD COLUMN drain_time TIMESTAMPTZ,
    ADD COLUMN drain_releases_job BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN quarantine_time TIMESTAMPTZ,
    ADD COLUMN quarantine_reason TEXT DEFAULT '' NOT NULL;
CREATE TABLE trainer.launches (
    pool TEXT NOT NULL,
    launch_time TIMESTAMPTZ,
    locked_until TIMESTAMPTZ,
    last_error TEXT DEFAULT '' NOT NULL,
    CONSTRAINT launches_pkey PRIMARY KEY (pool)
)
"""
_DOWN = """
DROP TABLE trainer.launches;
ALTER TABLE trainer.workers
    DROP COLUMN drain_time, DROP COLUMN drain_releases_job,
    DROP COLUMN quarantine_time, DROP COLUMN quarantine_reason;
DROP INDEX trainer.jobs_owner_queue_idx;
ALTER TABLE trainer.jobs
    DROP COLUMN group_name, DROP COLUMN device_class, DROP COLUMN notifications, DROP COLUMN batch,
    DROP COLUMN batch_position, DROP COLUMN checkpoint_from, DROP COLUMN first_seq;
DROP INDEX trainer.jobs_end_time_idx;
DROP INDEX trainer.jobs_pipeline_end_time_idx
"""


def upgrade() -> None:
    for statement in _UP.strip().split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN.strip().split(";\n"):
        op.execute(statement)
