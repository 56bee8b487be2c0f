"""Groups, service accounts, scopes of API keys, and with whom things are shared."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

_SHARED = ("datasets", "models", "results")

_UP = (
    """
    CREATE TABLE identity.groups (
        id TEXT NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        revision BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT groups_pkey PRIMARY KEY (id),
        CONSTRAINT groups_seq_key UNIQUE (seq)
    )
    """,
    """
    CREATE TABLE identity.memberships (
        group_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        role SMALLINT NOT NULL,
        CONSTRAINT memberships_pkey PRIMARY KEY (group_id, user_id),
        CONSTRAINT memberships_group_id_fkey FOREIGN KEY(group_id) REFERENCES identity.groups (id),
        CONSTRAINT memberships_user_id_fkey FOREIGN KEY(user_id) REFERENCES identity.users (id),
        CONSTRAINT memberships_role_check CHECK (role BETWEEN 1 AND 3)
    )
    """,
    "CREATE INDEX memberships_user_id_idx ON identity.memberships (user_id)",
    """
    ALTER TABLE identity.users
        ADD COLUMN kind TEXT DEFAULT 'user' NOT NULL,
        ADD COLUMN owner_group TEXT,
        ADD COLUMN delete_time TIMESTAMP WITH TIME ZONE,
        ADD CONSTRAINT users_kind_check CHECK (kind IN ('user', 'service_account')),
        ADD CONSTRAINT users_owner_group_check CHECK ((kind = 'service_account') = (owner_group IS NOT NULL)),
        ADD CONSTRAINT users_owner_group_fkey FOREIGN KEY(owner_group) REFERENCES identity.groups (id)
    """,
    """
    CREATE INDEX users_owner_group_seq_idx ON identity.users (owner_group, seq)
        WHERE owner_group IS NOT NULL
    """,
    "ALTER TABLE identity.api_keys ADD COLUMN scopes TEXT[] DEFAULT '{}' NOT NULL",
    *(f"ALTER TABLE storage.{table} ADD COLUMN readers TEXT[] DEFAULT '{{}}' NOT NULL" for table in _SHARED),
    *(f"CREATE INDEX {table}_readers_idx ON storage.{table} USING gin (readers)" for table in _SHARED),
)

# What is left of a service account must not become somebody who logs in.
_DOWN = (
    *(f"ALTER TABLE storage.{table} DROP COLUMN readers" for table in _SHARED),
    "UPDATE identity.api_keys SET revoke_time = coalesce(revoke_time, now()) WHERE scopes <> '{}'",
    "ALTER TABLE identity.api_keys DROP COLUMN scopes",
    "UPDATE identity.users SET disabled = true WHERE kind <> 'user'",
    """
    ALTER TABLE identity.users
        DROP COLUMN delete_time,
        DROP COLUMN kind,
        DROP COLUMN owner_group
    """,
    "DROP TABLE identity.memberships",
    "DROP TABLE identity.groups",
)


def upgrade() -> None:
    """Makes the tables and columns."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Drops them; keys that were limited to scopes, and service accounts, end."""
    for statement in _DOWN:
        op.execute(statement)
