"""The tables of the schema `trainer`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from services.trainer.lifecycle import Desired, EndReason, State

SCHEMA = "trainer"
metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    },
)

_Time = DateTime(timezone=True)
# None is no value at all, not JSON's null.
_OptionalJson = JSONB(none_as_null=True)


def _one_of(column: str, kind: type[State] | type[Desired] | type[EndReason]) -> CheckConstraint:
    names = ", ".join(f"'{member.value}'" for member in kind)
    return CheckConstraint(f"{column} IN ({names})", name=column)


jobs = Table(
    "jobs",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("project", Text, nullable=False),
    # Subject of the owner; empty for a guest's job.
    Column("owner", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("pipeline_version", Text, nullable=False),
    Column("params", JSONB, nullable=False),
    Column("params_digest", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    # Role -> name of a dataset version.
    Column("inputs", JSONB, nullable=False),
    Column("pool", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("memory_hint_bytes", BigInteger, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    # For each attempt; 0 is without end.
    Column("timeout_seconds", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("desired", Text, nullable=False),
    Column("end_reason", Text),
    Column("error", _OptionalJson),
    Column("lease_epoch", BigInteger, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    Column("worker_id", UUID(as_uuid=False), ForeignKey(f"{SCHEMA}.workers.id")),
    # While held: when the lease runs out unless the worker is heard of, and when the attempt has to be over.
    Column("lease_until", _Time),
    Column("timeout_at", _Time),
    # While queued: its place, earlier first. The submission's time, moved by the priority: see scheduler.py.
    Column("queue_rank", _Time, nullable=False),
    # While queued after a failure: not leased before.
    Column("not_before", _Time),
    Column("progress", _OptionalJson),
    Column("last_log_line", Text, nullable=False, server_default=""),
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    # What the winning attempt staged, by name; the commit of the job.
    Column("outputs", _OptionalJson),
    # Name of the result, once it can be read.
    Column("result", Text),
    Column("retried_from", UUID(as_uuid=False)),
    # The job whose kept checkpoint the first attempt goes on from.
    Column("checkpoint_from", UUID(as_uuid=False)),
    # Among the owner's groups, whose share and quota it counts against; empty for none.
    Column("group_name", Text, nullable=False, server_default=""),
    # That was asked for; the pool may be of a lower tier.
    Column("device_class", Text, nullable=False, server_default=""),
    # [{"webhook_url" or "email_address": ...}, ...]
    Column("notifications", JSONB, nullable=False, server_default=text("'[]'")),
    # Of those that were submitted together.
    Column("batch", UUID(as_uuid=False)),
    Column("batch_position", Integer),
    # What its client keeps with it.
    Column("annotations", JSONB, nullable=False, server_default=text("'{}'")),
    # With whom it is shared: "user:..." and "group:...".
    Column("readers", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    # The first of its events that is kept.
    Column("first_seq", BigInteger, nullable=False, server_default="1"),
    # W3C trace context of its submission, which its attempts go on with; empty for none.
    Column("traceparent", Text, nullable=False, server_default=""),
    Column("version", BigInteger, nullable=False, server_default="1"),
    Column("create_time", _Time, nullable=False, server_default=func.now()),
    Column("start_time", _Time),
    Column("end_time", _Time),
    Column("update_time", _Time, nullable=False, server_default=func.now()),
    _one_of("state", State),
    _one_of("desired", Desired),
    _one_of("end_reason", EndReason),
    CheckConstraint("(worker_id IS NULL) = (lease_until IS NULL)", name="lease"),
)
_queued = text("state = 'QUEUED'")
Index("jobs_queue_idx", jobs.c.pool, jobs.c.queue_rank, jobs.c.id, postgresql_where=_queued)
# The first queued job of each owner is found without a look at the others.
Index(
    "jobs_owner_queue_idx", jobs.c.pool, jobs.c.owner, jobs.c.queue_rank, jobs.c.id, postgresql_where=_queued
)
Index("jobs_batch_idx", jobs.c.batch, jobs.c.batch_position, postgresql_where=jobs.c.batch.is_not(None))
Index("jobs_end_time_idx", jobs.c.end_time, postgresql_where=jobs.c.end_reason.is_not(None))
# Ended jobs that still have more events than are kept for ever; see retention.py.
Index(
    "jobs_whole_past_idx",
    jobs.c.end_time,
    postgresql_where=text("end_reason IS NOT NULL AND first_seq < (last_seq - (result IS NOT NULL)::int)"),
)
Index("jobs_retried_from_idx", jobs.c.retried_from, postgresql_where=jobs.c.retried_from.is_not(None))
Index(
    "jobs_pipeline_end_time_idx",
    jobs.c.pipeline,
    jobs.c.end_time,
    postgresql_where=text("state = 'SUCCEEDED'"),
)
# Also where the database asks whether a job refers to a worker that goes: it names no state.
Index("jobs_worker_idx", jobs.c.worker_id, postgresql_where=jobs.c.worker_id.is_not(None))
Index("jobs_active_idx", jobs.c.pool, jobs.c.state, postgresql_where=jobs.c.end_reason.is_(None))
Index("jobs_project_create_time_idx", jobs.c.project, jobs.c.create_time, jobs.c.id)
Index("jobs_project_update_time_idx", jobs.c.project, jobs.c.update_time, jobs.c.id)
Index("jobs_owner_create_time_idx", jobs.c.project, jobs.c.owner, jobs.c.create_time, jobs.c.id)
Index("jobs_readers_idx", jobs.c.readers, postgresql_using="gin")
Index("jobs_labels_idx", jobs.c.labels, postgresql_using="gin")

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    # Its number among those that count, from 1; one that was handed back gives its number to the next.
    Column("number", Integer, nullable=False),
    Column("worker_id", UUID(as_uuid=False), ForeignKey(f"{SCHEMA}.workers.id"), nullable=False),
    Column("lease_time", _Time, nullable=False, server_default=func.now()),
    Column("start_time", _Time),
    Column("end_time", _Time),
    Column("end_reason", Text),
    Column("error", _OptionalJson),
    # Whether the worker itself reported the end, so that a repeat of the report is recognised.
    Column("finished", Boolean, nullable=False, server_default=text("false")),
    # Number, given by the worker, of the newest event stored.
    Column("last_event_number", BigInteger, nullable=False, server_default="0"),
    # The newest checkpoint that it committed.
    Column("checkpoint_ordinal", BigInteger),
    Column("checkpoint_step", BigInteger),
    _one_of("end_reason", EndReason),
    Index("attempts_worker_idx", "worker_id"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("time", _Time, nullable=False, server_default=func.now()),
    Column("kind", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", UUID(as_uuid=False), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True),
    Column("step", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("create_time", _Time, nullable=False, server_default=func.now()),
    ForeignKeyConstraint(["job_id", "epoch"], [attempts.c.job_id, attempts.c.epoch], ondelete="CASCADE"),
)

request_ids = Table(
    "request_ids",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("request_id", UUID(as_uuid=False), primary_key=True),
    Column("content_digest", Text, nullable=False),
    # Checked at the end of the transaction: the request is claimed before the job is stored.
    Column(
        "job_id",
        ForeignKey(jobs.c.id, ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    Column("create_time", _Time, nullable=False, server_default=func.now()),
    Index("request_ids_create_time_idx", "create_time"),
)

# What remains to be told to others; a row goes when it has been.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    # What the message is about, such as a job's id or a pool.
    Column("subject", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    # Lets the receiver recognise a repeat.
    Column("message_id", UUID(as_uuid=False), nullable=False, server_default=func.gen_random_uuid()),
    Column("next_time", _Time, nullable=False, server_default=func.now()),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    # Trace context and id of the request that it comes from, as headers.
    Column("origin", _OptionalJson),
    Column("create_time", _Time, nullable=False, server_default=func.now()),
    Index("outbox_kind_next_time_idx", "kind", "next_time", "id"),
)

worker_credentials = Table(
    "worker_credentials",
    metadata,
    # Identifier of the token ("jti").
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("pool", Text, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("create_time", _Time, nullable=False, server_default=func.now()),
    Column("expire_time", _Time, nullable=False),
    Column("revoke_time", _Time),
)

workers = Table(
    "workers",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("pool", Text, nullable=False),
    Column("credential_id", ForeignKey(worker_credentials.c.id), nullable=False),
    Column("hostname", Text, nullable=False),
    Column("capabilities", JSONB, nullable=False),
    # [[name, version], ...]
    Column("pipelines", JSONB, nullable=False),
    Column("software", JSONB, nullable=False),
    Column("register_time", _Time, nullable=False, server_default=func.now()),
    Column("last_seen_time", _Time, nullable=False, server_default=func.now()),
    # Out of service since: an operator wants it to take no more jobs, or to hand its job back too.
    Column("drain_time", _Time),
    Column("drain_releases_job", Boolean, nullable=False, server_default=text("false")),
    # It took itself out of service because its device misbehaves.
    Column("quarantine_time", _Time),
    Column("quarantine_reason", Text, nullable=False, server_default=""),
    Index("workers_pool_idx", "pool", "id"),
    Index("workers_last_seen_time_idx", "last_seen_time"),
)

# When workers were last launched for a pool; the row's lock keeps two replicas from launching at a time.
launches = Table(
    "launches",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("launch_time", _Time),
    # No other launch before: the launched worker has not had time to register.
    Column("locked_until", _Time),
    Column("last_error", Text, nullable=False, server_default=""),
)
