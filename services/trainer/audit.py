"""Who did what: reported to storage's audit log through the outbox, in the transaction of the deed itself."""

from __future__ import annotations

from datetime import UTC, datetime

from guidehall.core.auth import Principal
from guidehall.core.telemetry import current_trace_id, request_id
from services.trainer.database import Unit

JOBS_SERVICE = "/guidehall.jobs.v1.JobsService"
POOLS_SERVICE = "/guidehall.workers.v1.PoolsService"
WORKER_SERVICE = "/guidehall.workers.v1.WorkerService"


def audit(
    unit: Unit,
    principal: Principal,
    method: str,
    resource: str,
    *,
    service: str = JOBS_SERVICE,
    etag_before: str = "",
    etag_after: str = "",
) -> None:
    """Reports a change that a caller made by a method of `service`."""
    unit.send(
        "audit",
        resource,
        {
            "time": datetime.now(UTC).isoformat(),
            "subject": principal.subject,
            "kind": principal.kind,
            "actor": principal.actor or "",
            "method": f"{service}/{method}",
            "resource": resource,
            "outcome": "OK",
            "etag_before": etag_before,
            "etag_after": etag_after,
            "trace_id": current_trace_id() or "",
            "request_id": request_id.get(),
        },
    )
