"""Who did what: reported to storage's audit log before the caller hears that it was done."""

from __future__ import annotations

import logging
import uuid

import grpc

from guidehall.contracts.identity.v1 import audit_pb2, identity_pb2
from guidehall.core.audit import sender
from guidehall.core.auth import Principal
from guidehall.core.errors import AppError, Unavailable
from guidehall.core.telemetry import current_trace_id, request_id

# Each event counts once, by its id.
IDEMPOTENT = (f"{audit_pb2.DESCRIPTOR.services_by_name['AuditService'].full_name}/AppendAuditEvents",)
_log = logging.getLogger(__name__)


class AuditLog:
    """Reports what callers changed here, in the name of a service."""

    def __init__(self, channel: grpc.aio.Channel, service: str, call_seconds: float) -> None:
        self._send = sender(channel, call_seconds)
        self._service = service

    async def record(self, principal: Principal, method: str, resource: str) -> None:
        """Writes down that `principal` did this; `method` as "/package.Service/Method".

        Raises:
            Unavailable: it could not be written down.
        """
        event = audit_pb2.AuditEvent(
            event_id=str(uuid.uuid4()),
            service=self._service,
            subject=principal.subject,
            kind=identity_pb2.PrincipalKind.Value(f"PRINCIPAL_KIND_{principal.kind.upper()}"),
            actor=principal.actor or "",
            method=method,
            resource=resource,
            outcome="OK",
            trace_id=current_trace_id() or "",
            request_id=request_id.get(),
            count=1,
        )
        event.time.GetCurrentTime()
        try:
            await self._send([event])
        except AppError as error:
            _log.error("a deed is not in the audit log", extra={"method": method, "reason": error.message})
            raise Unavailable(
                "it was done, but storage could not write it down; ask again", reason="AUDIT_UNAVAILABLE"
            ) from error
