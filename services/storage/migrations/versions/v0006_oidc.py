"""Log-ins by way of a provider, and of programs without a browser."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS = (
    # What the provider said at the log-in; with the session it ends.
    """
    ALTER TABLE identity.sessions ADD COLUMN groups TEXT[] DEFAULT '{}' NOT NULL
    """,
    """
    CREATE TABLE identity.identities (
        id UUID NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        user_id TEXT NOT NULL,
        provider TEXT NOT NULL,
        subject TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        last_use_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT identities_pkey PRIMARY KEY (id),
        CONSTRAINT identities_seq_key UNIQUE (seq),
        CONSTRAINT identities_provider_subject_key UNIQUE (provider, subject),
        CONSTRAINT identities_user_id_fkey FOREIGN KEY(user_id) REFERENCES identity.users (id)
    )
    """,
    """
    CREATE INDEX identities_user_id_seq_idx ON identity.identities (user_id, seq)
    """,
    """
    CREATE TABLE identity.device_log_ins (
        device_code_sha256 BYTEA NOT NULL,
        user_code_sha256 BYTEA NOT NULL,
        client TEXT NOT NULL,
        address TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        interval_seconds DOUBLE PRECISION NOT NULL,
        last_poll_time TIMESTAMP WITH TIME ZONE,
        user_id TEXT,
        groups TEXT[] DEFAULT '{}' NOT NULL,
        approved BOOLEAN,
        CONSTRAINT device_log_ins_pkey PRIMARY KEY (device_code_sha256),
        CONSTRAINT device_log_ins_user_code_sha256_key UNIQUE (user_code_sha256),
        CONSTRAINT device_log_ins_device_code_sha256_check CHECK (octet_length(device_code_sha256) = 32),
        CONSTRAINT device_log_ins_user_code_sha256_check CHECK (octet_length(user_code_sha256) = 32),
        CONSTRAINT device_log_ins_user_id_fkey FOREIGN KEY(user_id) REFERENCES identity.users (id)
    )
    """,
    """
    CREATE INDEX device_log_ins_expire_time_idx ON identity.device_log_ins (expire_time)
    """,
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drops them: who has no password logs in no more."""
    op.execute("DROP TABLE identity.device_log_ins")
    op.execute("DROP TABLE identity.identities")
    op.execute("ALTER TABLE identity.sessions DROP COLUMN groups")
