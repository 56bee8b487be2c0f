"""Logs of jobs that end without a result are kept."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

_KINDS = """
    ALTER TABLE storage.staged_objects
        DROP CONSTRAINT staged_objects_kind_check,
        ADD CONSTRAINT staged_objects_kind_check CHECK (kind IN ({kinds}))
"""
# Whatever refers to them no more is deleted by the garbage collector.
_DROP_LOGS = """
    WITH dropped AS (
        DELETE FROM storage.staged_objects WHERE kind = 'log' RETURNING object_key
    ), logs AS (
        SELECT object_key FROM dropped UNION SELECT object_key FROM storage.job_logs
    )
    UPDATE storage.objects SET state = 'garbage', next_time = now() FROM logs WHERE key = logs.object_key
"""


def upgrade() -> None:
    """Adds the table; jobs that have ended already have no log to keep."""
    op.execute(
        """
        CREATE TABLE storage.job_logs (
            project TEXT NOT NULL,
            job UUID NOT NULL,
            owner TEXT NOT NULL,
            object_key TEXT NOT NULL,
            create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT job_logs_pkey PRIMARY KEY (project, job),
            CONSTRAINT job_logs_object_key_fkey FOREIGN KEY(object_key) REFERENCES storage.objects (key),
            CONSTRAINT job_logs_object_key_key UNIQUE (object_key)
        )
        """
    )
    op.execute("CREATE INDEX job_logs_create_time_idx ON storage.job_logs (create_time)")
    op.execute(_KINDS.format(kinds="'artifact', 'model', 'checkpoint', 'log'"))


def downgrade() -> None:
    """Drops the logs with their table."""
    op.execute(_DROP_LOGS)
    op.execute("DROP TABLE storage.job_logs")
    op.execute(_KINDS.format(kinds="'artifact', 'model', 'checkpoint'"))
