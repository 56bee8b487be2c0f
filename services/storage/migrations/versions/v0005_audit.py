"""The audit log in sealed batches, with pseudonyms of people, guarded by triggers; erasures of people."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from datetime import UTC
from typing import Any

from alembic import op
from sqlalchemy import Connection, text

revision = "0005"
down_revision = "0004"

_BATCH = 1000
_OF_USER = re.compile(r"users/([^/]+)(.*)", re.DOTALL)

_STATEMENTS = (
    """
    ALTER TABLE audit.events
        ADD COLUMN request_id TEXT DEFAULT '' NOT NULL,
        ADD COLUMN job TEXT DEFAULT '' NOT NULL,
        ADD COLUMN digest BYTEA DEFAULT ''::bytea NOT NULL,
        DROP COLUMN seal
    """,
    """
    CREATE INDEX events_job_sequence_idx ON audit.events (job, sequence)
    """,
    """
    CREATE INDEX events_time_sequence_idx ON audit.events (time, sequence)
    """,
    """
    CREATE TABLE audit.people (
        pseudonym TEXT NOT NULL,
        user_id TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT people_pkey PRIMARY KEY (pseudonym),
        CONSTRAINT people_user_id_key UNIQUE (user_id)
    )
    """,
    """
    CREATE TABLE audit.seals (
        number BIGINT NOT NULL,
        first_sequence BIGINT NOT NULL,
        last_sequence BIGINT NOT NULL,
        time TIMESTAMP WITH TIME ZONE NOT NULL,
        previous BYTEA NOT NULL,
        content BYTEA NOT NULL,
        seal BYTEA NOT NULL,
        CONSTRAINT seals_pkey PRIMARY KEY (number),
        CONSTRAINT seals_first_sequence_key UNIQUE (first_sequence),
        CONSTRAINT seals_last_sequence_key UNIQUE (last_sequence),
        CONSTRAINT seals_previous_key UNIQUE (previous),
        CONSTRAINT seals_seal_key UNIQUE (seal),
        CONSTRAINT seals_sequence_check CHECK (first_sequence <= last_sequence)
    )
    """,
    """
    CREATE TABLE identity.erasures (
        id UUID NOT NULL,
        seq BIGINT GENERATED ALWAYS AS IDENTITY,
        user_id TEXT,
        pseudonym TEXT NOT NULL,
        hand_over_to TEXT NOT NULL,
        create_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        due_time TIMESTAMP WITH TIME ZONE NOT NULL,
        done_time TIMESTAMP WITH TIME ZONE,
        CONSTRAINT erasures_pkey PRIMARY KEY (id),
        CONSTRAINT erasures_seq_key UNIQUE (seq),
        CONSTRAINT erasures_user_id_key UNIQUE (user_id)
    )
    """,
    """
    CREATE TABLE identity.erasure_steps (
        erasure_id UUID NOT NULL,
        step TEXT NOT NULL,
        done_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT erasure_steps_pkey PRIMARY KEY (erasure_id, step),
        CONSTRAINT erasure_steps_erasure_id_fkey FOREIGN KEY(erasure_id)
            REFERENCES identity.erasures (id)
    )
    """,
    """
    CREATE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' AND current_setting('guidehall.audit_retention', true) = 'on' THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION 'audit.% is only appended to', TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END
    $$
    """,
    *(
        f"""
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit.{table}
        FOR EACH ROW EXECUTE FUNCTION audit.refuse_change()
        """
        for table in ("events", "seals")
    ),
    *(
        f"""
        CREATE TRIGGER append_only_as_a_whole BEFORE TRUNCATE ON audit.{table}
        FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change()
        """
        for table in ("events", "seals")
    ),
    """
    CREATE FUNCTION audit.remove_batches(newest BIGINT) RETURNS BIGINT LANGUAGE plpgsql AS $$
    DECLARE
        removed BIGINT;
    BEGIN
        PERFORM set_config('guidehall.audit_retention', 'on', true);
        DELETE FROM audit.events
            WHERE sequence <= (SELECT last_sequence FROM audit.seals WHERE number = newest);
        GET DIAGNOSTICS removed = ROW_COUNT;
        DELETE FROM audit.seals WHERE number < newest;
        PERFORM set_config('guidehall.audit_retention', 'off', true);
        RETURN removed;
    END
    $$
    """,
)


def upgrade() -> None:
    """Gives people pseudonyms in what was written down so far; it is sealed when storage serves."""
    for statement in _STATEMENTS[:5]:
        op.execute(statement)
    _convert(op.get_bind())
    for column in ("request_id", "job", "digest"):
        op.execute(f"ALTER TABLE audit.events ALTER COLUMN {column} DROP DEFAULT")
    for statement in _STATEMENTS[5:]:
        op.execute(statement)


def downgrade() -> None:
    """Goes back to names; the seals of the earlier schema are lost, and so is what erasures were made."""
    for table in ("events", "seals"):
        op.execute(f"DROP TRIGGER append_only ON audit.{table}")
        op.execute(f"DROP TRIGGER append_only_as_a_whole ON audit.{table}")
    op.execute("DROP FUNCTION audit.remove_batches")
    op.execute("DROP FUNCTION audit.refuse_change")
    op.execute(
        "UPDATE audit.events SET subject = user_id"
        " FROM audit.people WHERE subject = pseudonym AND kind = 'user'"
    )
    op.execute(
        "UPDATE audit.events SET resource = 'users/' || user_id || substr(resource, 7 + length(pseudonym))"
        " FROM audit.people WHERE resource = 'users/' || pseudonym"
        " OR starts_with(resource, 'users/' || pseudonym || '/')"
    )
    for table in ("identity.erasure_steps", "identity.erasures", "audit.seals", "audit.people"):
        op.execute(f"DROP TABLE {table}")
    op.execute(
        "ALTER TABLE audit.events ADD COLUMN seal BYTEA DEFAULT ''::bytea NOT NULL,"
        " DROP COLUMN request_id, DROP COLUMN job, DROP COLUMN digest"
    )
    op.execute("ALTER TABLE audit.events ALTER COLUMN seal DROP DEFAULT")
    op.execute("DROP INDEX audit.events_time_sequence_idx")


def _convert(connection: Connection) -> None:
    """Pseudonyms and digests of the rows that there are."""
    pseudonyms: dict[str, str] = {}

    def pseudonym(user: str) -> str:
        if user not in pseudonyms:
            pseudonyms[user] = f"~{secrets.token_hex(8)}"
            connection.execute(
                text("INSERT INTO audit.people (pseudonym, user_id) VALUES (:pseudonym, :user)"),
                {"pseudonym": pseudonyms[user], "user": user},
            )
        return pseudonyms[user]

    changed = text(
        "UPDATE audit.events SET subject = :subject, resource = :resource, digest = :digest"
        " WHERE sequence = :sequence"
    )
    page = text("SELECT * FROM audit.events WHERE sequence > :after ORDER BY sequence LIMIT :batch")
    after = 0
    while rows := connection.execute(page, {"after": after, "batch": _BATCH}).mappings().all():
        values: list[dict[str, Any]] = []
        for row in rows:
            event = {name: value for name, value in row.items() if name != "digest"}
            event["event_id"] = str(event["event_id"])
            event["time"] = event["time"].astimezone(UTC).isoformat(timespec="microseconds")
            if event["kind"] == "user":
                event["subject"] = pseudonym(event["subject"])
            if (match := _OF_USER.fullmatch(event["resource"])) and match[1] != "-":
                event["resource"] = f"users/{pseudonym(match[1])}{match[2]}"
            line = json.dumps(event, sort_keys=True, separators=(",", ":")).encode()
            values.append(event | {"digest": hashlib.sha256(line).digest()})
        connection.execute(changed, values)
        after = rows[-1]["sequence"]
