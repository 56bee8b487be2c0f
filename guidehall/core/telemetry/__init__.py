"""Logs as JSON lines, W3C trace context across every hop, and the operators' port with its metrics."""

from __future__ import annotations

from guidehall.core.telemetry.logs import LEVELS, configure_logging
from guidehall.core.telemetry.ops import OpsServer
from guidehall.core.telemetry.tracing import (
    REQUEST_ID_HEADER,
    begin_request,
    configure_tracing,
    current_trace_id,
    end_request,
    handling,
    inject,
    job_id,
    note_job,
    request_id,
    trace_headers,
)

__all__ = [
    "LEVELS",
    "REQUEST_ID_HEADER",
    "OpsServer",
    "begin_request",
    "configure_logging",
    "configure_tracing",
    "current_trace_id",
    "end_request",
    "handling",
    "inject",
    "job_id",
    "note_job",
    "request_id",
    "trace_headers",
]
