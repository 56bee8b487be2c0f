"""The tables of the schema `storage`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from services.storage.columns import moment, readers, schema, sequence

metadata = schema("storage")

# Every object in the bucket has its row before it has its first byte, and loses it after its last.
objects = Table(
    "objects",
    metadata,
    Column("key", Text, primary_key=True),
    # writing: an upload is under way. kept: something below refers to it. garbage: to be deleted.
    Column("state", Text, nullable=False),
    Column("size_bytes", BigInteger),
    Column("sha256", Text),
    Column("media_type", Text, nullable=False),
    moment("create_time"),
    # Garbage is not tried before, and has been tried so many times.
    moment("next_time"),
    Column("tries", Integer, nullable=False, server_default="0"),
    CheckConstraint("state IN ('writing', 'kept', 'garbage')", name="state"),
    CheckConstraint("state <> 'kept' OR (size_bytes IS NOT NULL AND sha256 IS NOT NULL)", name="kept"),
)
Index("objects_unkept_idx", objects.c.state, objects.c.next_time, postgresql_where=text("state <> 'kept'"))


def _series(name: str) -> Table:
    """A named series of versions: datasets and models alike."""
    table = Table(
        name,
        metadata,
        Column("project", Text, primary_key=True),
        Column("id", Text, primary_key=True),
        sequence(),
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        # Subject of the owner; empty for what a guest's job made.
        Column("owner", Text, nullable=False),
        # With whom it is shared: "user:..." and "group:...".
        readers(),
        Column("labels", JSONB, nullable=False),
        Column("latest_version", BigInteger, nullable=False, server_default="0"),
        # Counts changes; its text is the etag.
        Column("revision", BigInteger, nullable=False, server_default="1"),
        moment("create_time"),
        moment("update_time"),
        Column("delete_time", DateTime(timezone=True)),
    )
    Index(f"{name}_project_owner_seq_idx", table.c.project, table.c.owner, table.c.seq)
    Index(f"{name}_readers_idx", table.c.readers, postgresql_using="gin")
    Index(f"{name}_labels_idx", table.c.labels, postgresql_using="gin")
    return table


datasets = _series("datasets")
models = _series("models")
# Numbers of versions by the tags that point to them.
models.append_column(Column("tags", JSONB, nullable=False, server_default="{}"))

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("project", Text, primary_key=True),
    Column("dataset", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("object_key", ForeignKey(objects.c.key), nullable=False, unique=True),
    Column("filename", Text, nullable=False),
    Column("content_info", JSONB, nullable=False),
    Column("labels", JSONB, nullable=False),
    moment("create_time"),
    ForeignKeyConstraint(["project", "dataset"], [datasets.c.project, datasets.c.id]),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("project", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    sequence(),
    Column("architecture", Text, nullable=False),
    Column("manifest", JSONB, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("object_key", ForeignKey(objects.c.key), nullable=False, unique=True),
    # Name of the job that trained it; empty for an import.
    Column("job", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    # Kept in memory where models are served.
    Column("pinned", Boolean, nullable=False, server_default="false"),
    moment("create_time"),
    ForeignKeyConstraint(["project", "model"], [models.c.project, models.c.id]),
)
Index("model_versions_project_seq_idx", model_versions.c.project, model_versions.c.seq)
Index("model_versions_labels_idx", model_versions.c.labels, postgresql_using="gin")

results = Table(
    "results",
    metadata,
    Column("project", Text, primary_key=True),
    # The job's id.
    Column("id", UUID(as_uuid=False), primary_key=True),
    sequence(),
    Column("lease_epoch", BigInteger, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("document", JSONB, nullable=False),
    Column("document_sha256", Text, nullable=False),
    # Names of the model versions that the job left.
    Column("model_versions", JSONB, nullable=False),
    Column("owner", Text, nullable=False),
    readers(),
    moment("create_time"),
)
Index("results_readers_idx", results.c.readers, postgresql_using="gin")
Index("results_project_owner_seq_idx", results.c.project, results.c.owner, results.c.seq)

artifacts = Table(
    "artifacts",
    metadata,
    Column("project", Text, primary_key=True),
    Column("result", UUID(as_uuid=False), primary_key=True),
    # The file name.
    Column("id", Text, primary_key=True),
    Column("object_key", ForeignKey(objects.c.key), nullable=False, unique=True),
    ForeignKeyConstraint(["project", "result"], [results.c.project, results.c.id]),
)

# Outputs of running jobs, invisible until they are promoted.
staged_objects = Table(
    "staged_objects",
    metadata,
    Column("project", Text, primary_key=True),
    Column("job", UUID(as_uuid=False), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("kind", Text, primary_key=True),
    # Artifact file name, model id, checkpoint ordinal, or the one name of a log.
    Column("object_id", Text, primary_key=True),
    Column("object_key", ForeignKey(objects.c.key), nullable=False, unique=True),
    # Of a model.
    Column("manifest", JSONB(none_as_null=True)),
    moment("create_time"),
    CheckConstraint("kind IN ('artifact', 'model', 'checkpoint', 'log')", name="kind"),
    CheckConstraint("(kind = 'model') = (manifest IS NOT NULL)", name="manifest"),
    Index("staged_objects_create_time_idx", "create_time"),
)

staged_results = Table(
    "staged_results",
    metadata,
    Column("project", Text, primary_key=True),
    Column("job", UUID(as_uuid=False), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("document", JSONB, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    moment("create_time"),
    Index("staged_results_create_time_idx", "create_time"),
)

# Of jobs that ended without a result: the log of the newest attempt that left one.
job_logs = Table(
    "job_logs",
    metadata,
    Column("project", Text, primary_key=True),
    Column("job", UUID(as_uuid=False), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("object_key", ForeignKey(objects.c.key), nullable=False, unique=True),
    moment("create_time"),
    Index("job_logs_create_time_idx", "create_time"),
)

history = Table(
    "history",
    metadata,
    Column("user_id", Text, primary_key=True),
    # 24 hexadecimal digits.
    Column("id", Text, primary_key=True),
    sequence(),
    Column("display_name", Text, nullable=False),
    Column("params", JSONB, nullable=False),
    Column("result", JSONB, nullable=False),
    # `result` without its large arrays, for lists.
    Column("summary", JSONB, nullable=False),
    Column("job", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    moment("create_time"),
    moment("update_time"),
    CheckConstraint("id ~ '^[0-9a-f]{24}$'", name="id"),
)
Index("history_user_id_seq_idx", history.c.user_id, history.c.seq)

upload_roles = Table(
    "upload_roles",
    metadata,
    Column("user_id", Text, primary_key=True),
    # Role -> name of a dataset version, and of a model version.
    Column("dataset_versions", JSONB, nullable=False),
    Column("model_versions", JSONB, nullable=False),
    Column("settings", JSONB, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default="1"),
    moment("update_time"),
)

# Requests that were carried out, so that a repeat gives the first one's answer.
requests = Table(
    "requests",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("request_id", UUID(as_uuid=False), primary_key=True),
    Column("content_digest", Text, nullable=False),
    # Name of what it made.
    Column("resource", Text, nullable=False),
    moment("create_time"),
    Index("requests_create_time_idx", "create_time"),
)

# What remains to be announced on the bus; a row goes when it has been.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # Lets the broker recognise a repeat.
    Column("message_id", UUID(as_uuid=False), nullable=False, server_default=func.gen_random_uuid()),
    Column("subject", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    # Trace context and id of the request that it comes from, as headers.
    Column("origin", JSONB(none_as_null=True)),
    moment("create_time"),
)
