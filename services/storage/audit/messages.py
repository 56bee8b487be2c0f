"""Events of the audit log as they travel."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.identity.v1 import audit_pb2, identity_pb2
from guidehall.core.auth import Kind
from guidehall.core.errors import InvalidArgument
from services.storage.audit.log import Entry, Recorded

KINDS: dict[Kind, identity_pb2.PrincipalKind.ValueType] = {
    "user": identity_pb2.PRINCIPAL_KIND_USER,
    "guest": identity_pb2.PRINCIPAL_KIND_GUEST,
    "service": identity_pb2.PRINCIPAL_KIND_SERVICE,
    "worker": identity_pb2.PRINCIPAL_KIND_WORKER,
    "job": identity_pb2.PRINCIPAL_KIND_JOB,
    "service_account": identity_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT,
}
_KIND_NAMES: dict[int, str] = {number: name for name, number in KINDS.items()}


def decoded(field: str, event: audit_pb2.AuditEvent) -> Entry:
    """An event that travelled.

    Raises:
        InvalidArgument: a field is not as it may be.
    """
    if event.kind not in _KIND_NAMES:
        raise InvalidArgument.field(f"{field}.kind", event.kind, ", ".join(_KIND_NAMES.values()))
    return Entry(
        event_id=_uuid(f"{field}.event_id", event.event_id),
        time=_moment(f"{field}.time", event.time),
        service=event.service,
        subject=event.subject,
        kind=_KIND_NAMES[event.kind],
        actor=event.actor,
        method=event.method,
        resource=event.resource,
        outcome=event.outcome,
        etag_before=event.etag_before,
        etag_after=event.etag_after,
        trace_id=event.trace_id,
        count=event.count,
        request_id=event.request_id,
        job=event.job,
    )


def encoded(recorded: Recorded) -> audit_pb2.AuditEvent:
    """An event as it travels."""
    entry = recorded.entry
    event = audit_pb2.AuditEvent(
        event_id=entry.event_id,
        service=entry.service,
        subject=entry.subject,
        kind=identity_pb2.PrincipalKind.Value(f"PRINCIPAL_KIND_{entry.kind.upper()}"),
        actor=entry.actor,
        method=entry.method,
        resource=entry.resource,
        outcome=entry.outcome,
        etag_before=entry.etag_before,
        etag_after=entry.etag_after,
        trace_id=entry.trace_id,
        count=entry.count,
        sequence=recorded.sequence,
        request_id=entry.request_id,
        job=entry.job,
        seal=recorded.seal,
    )
    event.time.FromDatetime(entry.time)
    return event


def _uuid(field: str, text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidArgument.field(field, text, "a UUID") from None


def _moment(field: str, message: Timestamp) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        shown = f"{message.seconds} s and {message.nanos} ns since 1970"
        raise InvalidArgument.field(field, shown, "a time in the years 1 to 9999") from None
