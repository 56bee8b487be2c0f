"""Local accounts: passwords, sessions with their refresh tokens, invitations, and attempts to log in."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

# Dropped in the reverse order.
_TABLES = (
    "identity.passwords",
    "identity.sessions",
    "identity.refresh_tokens",
    "identity.invitations",
    "identity.attempts",
)

_STATEMENTS = (
    """
    CREATE TABLE identity.passwords (
        user_id TEXT NOT NULL,
        hash TEXT NOT NULL,
        change_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT passwords_pkey PRIMARY KEY (user_id),
        CONSTRAINT passwords_user_id_fkey FOREIGN KEY(user_id) REFERENCES identity.users (id)
    )
    """,
    """
    CREATE TABLE identity.sessions (
        id UUID NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        user_id TEXT NOT NULL,
        method TEXT NOT NULL,
        client TEXT NOT NULL,
        address TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        last_use_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        revoke_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT sessions_pkey PRIMARY KEY (id),
        CONSTRAINT sessions_seq_key UNIQUE (seq),
        CONSTRAINT sessions_user_id_fkey FOREIGN KEY(user_id) REFERENCES identity.users (id)
    )
    """,
    """
    CREATE INDEX sessions_user_id_seq_idx ON identity.sessions (user_id, seq)
    """,
    """
    CREATE INDEX sessions_expire_time_idx ON identity.sessions (expire_time)
    """,
    """
    CREATE TABLE identity.refresh_tokens (
        secret_sha256 BYTEA NOT NULL,
        session_id UUID NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        use_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT refresh_tokens_pkey PRIMARY KEY (secret_sha256),
        CONSTRAINT refresh_tokens_secret_sha256_check CHECK (octet_length(secret_sha256) = 32),
        CONSTRAINT refresh_tokens_session_id_fkey FOREIGN KEY(session_id)
            REFERENCES identity.sessions (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX refresh_tokens_session_id_idx ON identity.refresh_tokens (session_id)
    """,
    """
    CREATE TABLE identity.invitations (
        id UUID NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        note TEXT NOT NULL,
        roles TEXT[] NOT NULL,
        groups TEXT[] NOT NULL,
        secret_sha256 BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT invitations_pkey PRIMARY KEY (id),
        CONSTRAINT invitations_seq_key UNIQUE (seq),
        CONSTRAINT invitations_secret_sha256_check CHECK (octet_length(secret_sha256) = 32),
        CONSTRAINT invitations_secret_sha256_key UNIQUE (secret_sha256)
    )
    """,
    """
    CREATE TABLE identity.attempts (
        key BYTEA NOT NULL,
        count BIGINT NOT NULL,
        since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT attempts_pkey PRIMARY KEY (key)
    )
    """,
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drops them, with every password and session."""
    for table in reversed(_TABLES):
        op.execute(f"DROP TABLE {table}")
