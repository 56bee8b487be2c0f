"""The tables of the schema `identity`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from services.storage.columns import moment, schema, sequence

metadata = schema("identity")

groups = Table(
    "groups",
    metadata,
    Column("id", Text, primary_key=True),
    sequence(),
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default="1"),
    moment("create_time"),
    moment("update_time"),
    # A deleted one keeps its name: what was shared with it must not open to another.
    Column("delete_time", DateTime(timezone=True)),
)

users = Table(
    "users",
    metadata,
    # The subject.
    Column("id", Text, primary_key=True),
    sequence(),
    Column("display_name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("roles", ARRAY(Text), nullable=False),
    Column("groups", ARRAY(Text), nullable=False),
    Column("disabled", Boolean, nullable=False, server_default="false"),
    Column("revision", BigInteger, nullable=False, server_default="1"),
    moment("create_time"),
    moment("update_time"),
    Column("kind", Text, nullable=False, server_default="user"),
    # Of a service account.
    Column("owner_group", ForeignKey(groups.c.id)),
    Column("delete_time", DateTime(timezone=True)),
    CheckConstraint("kind IN ('user', 'service_account')", name="kind"),
    CheckConstraint("(kind = 'service_account') = (owner_group IS NOT NULL)", name="owner_group"),
)
Index(
    "users_owner_group_seq_idx",
    users.c.owner_group,
    users.c.seq,
    postgresql_where=users.c.owner_group.is_not(None),
)

memberships = Table(
    "memberships",
    metadata,
    Column("group_id", ForeignKey(groups.c.id), primary_key=True),
    Column("user_id", ForeignKey(users.c.id), primary_key=True, index=True),
    # The number of a GroupRole.
    Column("role", SmallInteger, nullable=False),
    CheckConstraint("role BETWEEN 1 AND 3", name="role"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    sequence(),
    Column("user_id", ForeignKey(users.c.id), nullable=False),
    Column("display_name", Text, nullable=False),
    Column("roles", ARRAY(Text), nullable=False),
    # Its first characters, to recognise it by.
    Column("prefix", Text, nullable=False),
    # Of a secret with 256 random bits, as all of these.
    Column("secret_sha256", LargeBinary, nullable=False, unique=True),
    moment("create_time"),
    Column("expire_time", DateTime(timezone=True)),
    Column("revoke_time", DateTime(timezone=True)),
    Column("last_use_time", DateTime(timezone=True)),
    # Empty is all that the roles allow.
    Column("scopes", ARRAY(Text), nullable=False, server_default="{}"),
    CheckConstraint("octet_length(secret_sha256) = 32", name="secret_sha256"),
)
Index("api_keys_user_id_seq_idx", api_keys.c.user_id, api_keys.c.seq)

passwords = Table(
    "passwords",
    metadata,
    Column("user_id", ForeignKey(users.c.id), primary_key=True),
    # As argon2 writes it, with its parameters and its salt.
    Column("hash", Text, nullable=False),
    moment("change_time"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    sequence(),
    Column("user_id", ForeignKey(users.c.id), nullable=False),
    Column("method", Text, nullable=False),
    # Besides the user's own: those that the provider named at the log-in.
    Column("groups", ARRAY(Text), nullable=False, server_default="{}"),
    Column("client", Text, nullable=False),
    Column("address", Text, nullable=False),
    moment("create_time"),
    moment("last_use_time"),
    Column("expire_time", DateTime(timezone=True), nullable=False, index=True),
    Column("revoke_time", DateTime(timezone=True)),
)
Index("sessions_user_id_seq_idx", sessions.c.user_id, sessions.c.seq)

# Of a session, the one that is good and those that were: a used one that comes again was stolen.
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("secret_sha256", LargeBinary, primary_key=True),
    Column("session_id", ForeignKey(sessions.c.id, ondelete="CASCADE"), nullable=False, index=True),
    moment("create_time"),
    Column("use_time", DateTime(timezone=True)),
    CheckConstraint("octet_length(secret_sha256) = 32", name="secret_sha256"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    sequence(),
    Column("note", Text, nullable=False),
    Column("roles", ARRAY(Text), nullable=False),
    Column("groups", ARRAY(Text), nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False, unique=True),
    moment("create_time"),
    Column("expire_time", DateTime(timezone=True), nullable=False),
    CheckConstraint("octet_length(secret_sha256) = 32", name="secret_sha256"),
)

# Of an account or an address, hashed: what people type where their name belongs may be their password. And of
# whose calls are limited in number.
attempts = Table(
    "attempts",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("count", BigInteger, nullable=False),
    moment("since"),
)

# Of all that is kept about a person. The name goes with the last step; what remains says that it was done.
erasures = Table(
    "erasures",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    sequence(),
    Column("user_id", Text, unique=True),
    Column("pseudonym", Text, nullable=False),
    # The user who gets what was theirs; empty deletes it.
    Column("hand_over_to", Text, nullable=False),
    moment("create_time"),
    # Before, a token that was given out earlier could still make new things.
    Column("due_time", DateTime(timezone=True), nullable=False),
    Column("done_time", DateTime(timezone=True)),
)

erasure_steps = Table(
    "erasure_steps",
    metadata,
    Column("erasure_id", ForeignKey(erasures.c.id), primary_key=True),
    Column("step", Text, primary_key=True),
    moment("done_time"),
)

# Who users are at providers. Never found by an e-mail address: those change hands, and two providers may give
# one to two people.
identities = Table(
    "identities",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    sequence(),
    Column("user_id", ForeignKey(users.c.id), nullable=False),
    Column("provider", Text, nullable=False),
    Column("subject", Text, nullable=False),
    moment("create_time"),
    Column("last_use_time", DateTime(timezone=True)),
    UniqueConstraint("provider", "subject", name="identities_provider_subject_key"),
)
Index("identities_user_id_seq_idx", identities.c.user_id, identities.c.seq)

device_log_ins = Table(
    "device_log_ins",
    metadata,
    Column("device_code_sha256", LargeBinary, primary_key=True),
    Column("user_code_sha256", LargeBinary, nullable=False, unique=True),
    Column("client", Text, nullable=False),
    Column("address", Text, nullable=False),
    moment("create_time"),
    Column("expire_time", DateTime(timezone=True), nullable=False, index=True),
    Column("interval_seconds", Double, nullable=False),
    Column("last_poll_time", DateTime(timezone=True)),
    # Who has decided, and how; with the groups of that session.
    Column("user_id", ForeignKey(users.c.id)),
    Column("groups", ARRAY(Text), nullable=False, server_default="{}"),
    Column("approved", Boolean),
    CheckConstraint("octet_length(device_code_sha256) = 32", name="device_code_sha256"),
    CheckConstraint("octet_length(user_code_sha256) = 32", name="user_code_sha256"),
)
