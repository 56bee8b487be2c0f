"""The first tables: objects and what refers to them, identity, audit."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Dropped in the reverse order.
_TABLES = (
    "storage.datasets",
    "storage.history",
    "storage.models",
    "storage.objects",
    "storage.outbox",
    "storage.requests",
    "storage.results",
    "storage.staged_results",
    "storage.upload_roles",
    "storage.artifacts",
    "storage.dataset_versions",
    "storage.model_versions",
    "storage.staged_objects",
    "identity.users",
    "identity.api_keys",
    "audit.events",
)

_STATEMENTS = (
    """
    CREATE TABLE storage.datasets (
        project TEXT NOT NULL,
        id TEXT NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        owner TEXT NOT NULL,
        labels JSONB NOT NULL,
        latest_version BIGINT DEFAULT '0' NOT NULL,
        revision BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT datasets_pkey PRIMARY KEY (project, id),
        CONSTRAINT datasets_seq_key UNIQUE (seq)
    )
    """,
    """
    CREATE INDEX datasets_labels_idx ON storage.datasets USING gin (labels)
    """,
    """
    CREATE INDEX datasets_project_owner_seq_idx ON storage.datasets (project, owner, seq)
    """,
    """
    CREATE TABLE storage.history (
        user_id TEXT NOT NULL,
        id TEXT NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        display_name TEXT NOT NULL,
        params JSONB NOT NULL,
        result JSONB NOT NULL,
        summary JSONB NOT NULL,
        job TEXT NOT NULL,
        model_version TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT history_pkey PRIMARY KEY (user_id, id),
        CONSTRAINT history_id_check CHECK (id ~ '^[0-9a-f]{24}$'),
        CONSTRAINT history_seq_key UNIQUE (seq)
    )
    """,
    """
    CREATE INDEX history_user_id_seq_idx ON storage.history (user_id, seq)
    """,
    """
    CREATE TABLE storage.models (
        project TEXT NOT NULL,
        id TEXT NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        owner TEXT NOT NULL,
        labels JSONB NOT NULL,
        latest_version BIGINT DEFAULT '0' NOT NULL,
        revision BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT models_pkey PRIMARY KEY (project, id),
        CONSTRAINT models_seq_key UNIQUE (seq)
    )
    """,
    """
    CREATE INDEX models_labels_idx ON storage.models USING gin (labels)
    """,
    """
    CREATE INDEX models_project_owner_seq_idx ON storage.models (project, owner, seq)
    """,
    """
    CREATE TABLE storage.objects (
        key TEXT NOT NULL,
        state TEXT NOT NULL,
        size_bytes BIGINT,
        sha256 TEXT,
        media_type TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        next_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        tries INTEGER DEFAULT '0' NOT NULL,
        CONSTRAINT objects_pkey PRIMARY KEY (key),
        CONSTRAINT objects_state_check CHECK (state IN ('writing', 'kept', 'garbage')),
        CONSTRAINT objects_kept_check
            CHECK (state <> 'kept' OR (size_bytes IS NOT NULL AND sha256 IS NOT NULL))
    )
    """,
    """
    CREATE INDEX objects_unkept_idx ON storage.objects (state, next_time) WHERE state <> 'kept'
    """,
    """
    CREATE TABLE storage.outbox (
        id BIGINT GENERATED ALWAYS AS IDENTITY,
        message_id UUID DEFAULT gen_random_uuid() NOT NULL,
        subject TEXT NOT NULL,
        payload JSONB NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT outbox_pkey PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE storage.requests (
        caller TEXT NOT NULL,
        method TEXT NOT NULL,
        request_id UUID NOT NULL,
        content_digest TEXT NOT NULL,
        resource TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT requests_pkey PRIMARY KEY (caller, method, request_id)
    )
    """,
    """
    CREATE INDEX requests_create_time_idx ON storage.requests (create_time)
    """,
    """
    CREATE TABLE storage.results (
        project TEXT NOT NULL,
        id UUID NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        lease_epoch BIGINT NOT NULL,
        pipeline TEXT NOT NULL,
        document JSONB NOT NULL,
        document_sha256 TEXT NOT NULL,
        model_versions JSONB NOT NULL,
        owner TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT results_pkey PRIMARY KEY (project, id),
        CONSTRAINT results_seq_key UNIQUE (seq)
    )
    """,
    """
    CREATE INDEX results_project_owner_seq_idx ON storage.results (project, owner, seq)
    """,
    """
    CREATE TABLE storage.staged_results (
        project TEXT NOT NULL,
        job UUID NOT NULL,
        epoch BIGINT NOT NULL,
        pipeline TEXT NOT NULL,
        document JSONB NOT NULL,
        sha256 TEXT NOT NULL,
        size_bytes BIGINT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT staged_results_pkey PRIMARY KEY (project, job, epoch)
    )
    """,
    """
    CREATE INDEX staged_results_create_time_idx ON storage.staged_results (create_time)
    """,
    """
    CREATE TABLE storage.upload_roles (
        user_id TEXT NOT NULL,
        dataset_versions JSONB NOT NULL,
        model_versions JSONB NOT NULL,
        settings JSONB NOT NULL,
        revision BIGINT DEFAULT '1' NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT upload_roles_pkey PRIMARY KEY (user_id)
    )
    """,
    """
    CREATE TABLE storage.artifacts (
        project TEXT NOT NULL,
        result UUID NOT NULL,
        id TEXT NOT NULL,
        object_key TEXT NOT NULL,
        CONSTRAINT artifacts_pkey PRIMARY KEY (project, result, id),
        CONSTRAINT artifacts_project_result_fkey FOREIGN KEY(project, result)
            REFERENCES storage.results (project, id),
        CONSTRAINT artifacts_object_key_key UNIQUE (object_key),
        CONSTRAINT artifacts_object_key_fkey FOREIGN KEY(object_key)
            REFERENCES storage.objects (key)
    )
    """,
    """
    CREATE TABLE storage.dataset_versions (
        project TEXT NOT NULL,
        dataset TEXT NOT NULL,
        version BIGINT NOT NULL,
        object_key TEXT NOT NULL,
        filename TEXT NOT NULL,
        content_info JSONB NOT NULL,
        labels JSONB NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT dataset_versions_pkey PRIMARY KEY (project, dataset, version),
        CONSTRAINT dataset_versions_project_dataset_fkey FOREIGN KEY(project, dataset)
            REFERENCES storage.datasets (project, id),
        CONSTRAINT dataset_versions_object_key_key UNIQUE (object_key),
        CONSTRAINT dataset_versions_object_key_fkey FOREIGN KEY(object_key)
            REFERENCES storage.objects (key)
    )
    """,
    """
    CREATE TABLE storage.model_versions (
        project TEXT NOT NULL,
        model TEXT NOT NULL,
        version BIGINT NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        architecture TEXT NOT NULL,
        manifest JSONB NOT NULL,
        manifest_sha256 TEXT NOT NULL,
        object_key TEXT NOT NULL,
        job TEXT NOT NULL,
        labels JSONB NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT model_versions_pkey PRIMARY KEY (project, model, version),
        CONSTRAINT model_versions_project_model_fkey FOREIGN KEY(project, model)
            REFERENCES storage.models (project, id),
        CONSTRAINT model_versions_seq_key UNIQUE (seq),
        CONSTRAINT model_versions_object_key_key UNIQUE (object_key),
        CONSTRAINT model_versions_object_key_fkey FOREIGN KEY(object_key)
            REFERENCES storage.objects (key)
    )
    """,
    """
    CREATE INDEX model_versions_labels_idx ON storage.model_versions USING gin (labels)
    """,
    """
    CREATE INDEX model_versions_project_seq_idx ON storage.model_versions (project, seq)
    """,
    """
    CREATE TABLE storage.staged_objects (
        project TEXT NOT NULL,
        job UUID NOT NULL,
        epoch BIGINT NOT NULL,
        kind TEXT NOT NULL,
        object_id TEXT NOT NULL,
        object_key TEXT NOT NULL,
        manifest JSONB,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT staged_objects_pkey PRIMARY KEY (project, job, epoch, kind, object_id),
        CONSTRAINT staged_objects_kind_check CHECK (kind IN ('artifact', 'model', 'checkpoint')),
        CONSTRAINT staged_objects_manifest_check CHECK ((kind = 'model') = (manifest IS NOT NULL)),
        CONSTRAINT staged_objects_object_key_key UNIQUE (object_key),
        CONSTRAINT staged_objects_object_key_fkey FOREIGN KEY(object_key)
            REFERENCES storage.objects (key)
    )
    """,
    """
    CREATE INDEX staged_objects_create_time_idx ON storage.staged_objects (create_time)
    """,
    """
    CREATE SCHEMA identity
    """,
    """
    CREATE TABLE identity.users (
        id TEXT NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        display_name TEXT NOT NULL,
        email TEXT NOT NULL,
        roles TEXT[] NOT NULL,
        groups TEXT[] NOT NULL,
        disabled BOOLEAN DEFAULT 'false' NOT NULL,
        revision BIGINT DEFAULT '1' NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        update_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT users_pkey PRIMARY KEY (id),
        CONSTRAINT users_seq_key UNIQUE (seq)
    )
    """,
    """
    CREATE TABLE identity.api_keys (
        id UUID NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        user_id TEXT NOT NULL,
        display_name TEXT NOT NULL,
        roles TEXT[] NOT NULL,
        prefix TEXT NOT NULL,
        secret_sha256 BYTEA NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        expire_time TIMESTAMP WITH TIME ZONE,
        revoke_time TIMESTAMP WITH TIME ZONE,
        last_use_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT api_keys_pkey PRIMARY KEY (id),
        CONSTRAINT api_keys_secret_sha256_check CHECK (octet_length(secret_sha256) = 32),
        CONSTRAINT api_keys_seq_key UNIQUE (seq),
        CONSTRAINT api_keys_user_id_fkey FOREIGN KEY(user_id)
            REFERENCES identity.users (id),
        CONSTRAINT api_keys_secret_sha256_key UNIQUE (secret_sha256)
    )
    """,
    """
    CREATE INDEX api_keys_user_id_seq_idx ON identity.api_keys (user_id, seq)
    """,
    """
    CREATE SCHEMA audit
    """,
    """
    CREATE TABLE audit.events (
        sequence BIGINT NOT NULL,
        event_id UUID NOT NULL,
        time TIMESTAMP WITH TIME ZONE NOT NULL,
        service TEXT NOT NULL,
        subject TEXT NOT NULL,
        kind TEXT NOT NULL,
        actor TEXT NOT NULL,
        method TEXT NOT NULL,
        resource TEXT NOT NULL,
        outcome TEXT NOT NULL,
        etag_before TEXT NOT NULL,
        etag_after TEXT NOT NULL,
        trace_id TEXT NOT NULL,
        count BIGINT NOT NULL,
        seal BYTEA NOT NULL,
        CONSTRAINT events_pkey PRIMARY KEY (sequence),
        CONSTRAINT events_event_id_key UNIQUE (event_id)
    )
    """,
    """
    CREATE INDEX events_method_sequence_idx ON audit.events (method, sequence)
    """,
    """
    CREATE INDEX events_resource_sequence_idx ON audit.events (resource, sequence)
    """,
    """
    CREATE INDEX events_subject_sequence_idx ON audit.events (subject, sequence)
    """,
)


def upgrade() -> None:
    """Makes everything."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drops everything, data included."""
    for table in reversed(_TABLES):
        op.execute(f"DROP TABLE {table}")
    for schema in ("audit", "identity"):
        op.execute(f"DROP SCHEMA {schema}")
