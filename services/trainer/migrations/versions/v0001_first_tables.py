"""The first tables."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE trainer.outbox (
    id BIGSERIAL NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    payload JSONB NOT NULL,
    message_id UUID DEFAULT gen_random_uuid() NOT NULL,
    next_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    tries INTEGER DEFAULT 0 NOT NULL,
    last_error TEXT,
    create_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT outbox_pkey PRIMARY KEY (id)
);
CREATE INDEX outbox_next_time_idx ON trainer.outbox (next_time, id);
CREATE TABLE trainer.worker_credentials (
    id UUID NOT NULL,
    pool TEXT NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    create_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    expire_time TIMESTAMPTZ NOT NULL,
    revoke_time TIMESTAMPTZ,
    CONSTRAINT worker_credentials_pkey PRIMARY KEY (id)
);
CREATE TABLE trainer.workers (
    id UUID NOT NULL,
    pool TEXT NOT NULL,
    credential_id UUID NOT NULL,
    hostname TEXT NOT NULL,
    capabilities JSONB NOT NULL,
    pipelines JSONB NOT NULL,
    software JSONB NOT NULL,
    register_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    last_seen_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT workers_pkey PRIMARY KEY (id),
    CONSTRAINT workers_credential_id_fkey FOREIGN KEY (credential_id)
        REFERENCES trainer.worker_credentials (id)
);
CREATE INDEX workers_last_seen_time_idx ON trainer.workers (last_seen_time);
CREATE INDEX workers_pool_idx ON trainer.workers (pool, id);
CREATE TABLE trainer.jobs (
    id UUID NOT NULL,
    project TEXT NOT NULL,
    owner TEXT NOT NULL,
    display_name TEXT NOT NULL,
    labels JSONB NOT NULL,
    pipeline TEXT NOT NULL,
    pipeline_version TEXT NOT NULL,
    params JSONB NOT NULL,
    params_digest TEXT NOT NULL,
    seed BIGINT NOT NULL,
    inputs JSONB NOT NULL,
    pool TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    memory_hint_bytes BIGINT NOT NULL,
    max_attempts INTEGER NOT NULL,
    timeout_seconds BIGINT NOT NULL,
    state TEXT NOT NULL,
    desired TEXT NOT NULL,
    end_reason TEXT,
    error JSONB,
    lease_epoch BIGINT NOT NULL,
    attempt_count INTEGER NOT NULL,
    worker_id UUID,
    lease_until TIMESTAMPTZ,
    timeout_at TIMESTAMPTZ,
    queue_rank TIMESTAMPTZ NOT NULL,
    not_before TIMESTAMPTZ,
    progress JSONB,
    last_log_line TEXT DEFAULT '' NOT NULL,
    last_seq BIGINT DEFAULT 0 NOT NULL,
    outputs JSONB,
    result TEXT,
    retried_from UUID,
    version BIGINT DEFAULT 1 NOT NULL,
    create_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    start_time TIMESTAMPTZ,
    end_time TIMESTAMPTZ,
    update_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_state_check CHECK (state IN (
        'QUEUED', 'LEASED', 'RUNNING', 'PAUSED', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    CONSTRAINT jobs_desired_check CHECK (desired IN ('RUN', 'PAUSE', 'STOP', 'CANCEL')),
    CONSTRAINT jobs_end_reason_check CHECK (end_reason IN (
        'COMPLETED', 'STOPPED_EARLY', 'CANCELLED_BY_USER', 'USER_ERROR', 'TRANSIENT_ERROR',
        'OUT_OF_MEMORY', 'TIMEOUT', 'ATTEMPTS_EXHAUSTED', 'LEASE_LOST', 'RELEASED', 'PAUSED',
        'HUNG')),
    CONSTRAINT jobs_lease_check CHECK ((worker_id IS NULL) = (lease_until IS NULL)),
    CONSTRAINT jobs_worker_id_fkey FOREIGN KEY(worker_id) REFERENCES trainer.workers (id)
);
CREATE INDEX jobs_active_idx ON trainer.jobs (pool, state) WHERE end_reason IS NULL;
CREATE INDEX jobs_labels_idx ON trainer.jobs USING gin (labels);
CREATE INDEX jobs_lease_until_idx ON trainer.jobs (lease_until) WHERE state IN ('LEASED', 'RUNNING');
CREATE INDEX jobs_owner_create_time_idx ON trainer.jobs (project, owner, create_time, id);
CREATE INDEX jobs_project_create_time_idx ON trainer.jobs (project, create_time, id);
CREATE INDEX jobs_project_update_time_idx ON trainer.jobs (project, update_time, id);
CREATE INDEX jobs_queue_idx ON trainer.jobs (pool, queue_rank, id) WHERE state = 'QUEUED';
CREATE INDEX jobs_worker_idx ON trainer.jobs (worker_id) WHERE state IN ('LEASED', 'RUNNING');
CREATE TABLE trainer.attempts (
    job_id UUID NOT NULL,
    epoch BIGINT NOT NULL,
    number INTEGER NOT NULL,
    worker_id UUID NOT NULL,
    lease_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    start_time TIMESTAMPTZ,
    end_time TIMESTAMPTZ,
    end_reason TEXT,
    error JSONB,
    finished BOOLEAN DEFAULT false NOT NULL,
    last_event_number BIGINT DEFAULT 0 NOT NULL,
    checkpoint_ordinal BIGINT,
    checkpoint_step BIGINT,
    CONSTRAINT attempts_pkey PRIMARY KEY (job_id, epoch),
    CONSTRAINT attempts_end_reason_check CHECK (end_reason IN (
        'COMPLETED', 'STOPPED_EARLY', 'CANCELLED_BY_USER', 'USER_ERROR', 'TRANSIENT_ERROR',
        'OUT_OF_MEMORY', 'TIMEOUT', 'ATTEMPTS_EXHAUSTED', 'LEASE_LOST', 'RELEASED', 'PAUSED',
        'HUNG')),
    CONSTRAINT attempts_job_id_fkey FOREIGN KEY(job_id) REFERENCES trainer.jobs (id) ON DELETE CASCADE,
    CONSTRAINT attempts_worker_id_fkey FOREIGN KEY(worker_id) REFERENCES trainer.workers (id)
);
CREATE TABLE trainer.job_events (
    job_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    time TIMESTAMPTZ DEFAULT now() NOT NULL,
    kind TEXT NOT NULL,
    payload JSONB NOT NULL,
    CONSTRAINT job_events_pkey PRIMARY KEY (job_id, seq),
    CONSTRAINT job_events_job_id_fkey FOREIGN KEY(job_id) REFERENCES trainer.jobs (id) ON DELETE CASCADE
);
CREATE TABLE trainer.request_ids (
    subject TEXT NOT NULL,
    request_id UUID NOT NULL,
    content_digest TEXT NOT NULL,
    job_id UUID NOT NULL,
    create_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT request_ids_pkey PRIMARY KEY (subject, request_id),
    CONSTRAINT request_ids_job_id_fkey FOREIGN KEY (job_id)
        REFERENCES trainer.jobs (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX request_ids_create_time_idx ON trainer.request_ids (create_time);
CREATE TABLE trainer.checkpoints (
    job_id UUID NOT NULL,
    epoch BIGINT NOT NULL,
    ordinal BIGINT NOT NULL,
    step BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    media_type TEXT NOT NULL,
    create_time TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (job_id, epoch, ordinal),
    CONSTRAINT checkpoints_job_id_epoch_fkey FOREIGN KEY (job_id, epoch)
        REFERENCES trainer.attempts (job_id, epoch) ON DELETE CASCADE
);
"""
_NAMES = "checkpoints, request_ids, job_events, attempts, jobs, workers, worker_credentials, outbox"


def upgrade() -> None:
    for statement in _TABLES.strip().split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for name in _NAMES.split(", "):
        op.drop_table(name, schema="trainer")
