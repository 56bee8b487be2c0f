"""Logs, traces and metrics: one JSON line a record, W3C trace context across every hop, Prometheus on the ops port."""

from __future__ import annotations

import json
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from guidehall.core.settings import LogSettings, OpsSettings, TelemetrySettings

request_id: ContextVar[str] = ContextVar("guidehall_request_id", default="")
job_id: ContextVar[str] = ContextVar("guidehall_job_id", default="")

REQUEST_ID_HEADER = "x-request-id"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
tracer = trace.get_tracer("guidehall")


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        span = trace.get_current_span().get_span_context()
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if span.is_valid:
            line |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        for name, variable in (("request_id", request_id), ("job_id", job_id)):
            if variable.get():
                line[name] = variable.get()
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(settings: LogSettings, service: str) -> None:
    """Sends every log record of the process to standard error, in the chosen format."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(_JsonFormatter(service))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for noisy in ("urllib3", "asyncio", "nats", "matplotlib", "alembic.runtime.plugins"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def configure_tracing(settings: TelemetrySettings, service: str) -> None:
    """Exports spans when an endpoint is set; needs the extra `telemetry`. Context is passed on either way."""
    if settings.otlp_endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"guidehall-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
    trace.set_tracer_provider(provider)


def current_trace_id() -> str | None:
    """The trace of the request at hand, as 32 hexadecimal digits."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None


def inject(headers: MutableMapping[str, str]) -> None:
    """Adds trace context and request id to what goes to another process."""
    propagate.inject(headers)
    if request_id.get():
        headers[REQUEST_ID_HEADER] = request_id.get()


def begin_request(headers: Mapping[str, str]) -> str:
    """Takes up a request's trace and id, or starts new ones, for the rest of the task that handles it.

    Returns:
        The request id.
    """
    identifier = headers.get(REQUEST_ID_HEADER, "")
    if not (0 < len(identifier) <= 64 and identifier.isascii() and identifier.isprintable()):
        identifier = uuid.uuid4().hex
    request_id.set(identifier)
    context = propagate.extract(headers)
    if not trace.get_current_span(context).get_span_context().is_valid:
        context = trace.set_span_in_context(_new_root(), context)
    otel_context.attach(context)
    return identifier


def _new_root() -> trace.Span:
    """A span with a fresh trace id, so that logs of one request share one even when nothing is exported."""
    span = tracer.start_span("request")
    if span.get_span_context().is_valid:
        return span
    context = trace.SpanContext(uuid.uuid4().int, uuid.uuid4().int >> 64, is_remote=False)
    return trace.NonRecordingSpan(context)


class OpsServer:
    """The operators' port: GET /metrics, GET /health, GET and PUT /log-level. Runs in a thread of its own."""

    def __init__(self, settings: OpsSettings, ready: Callable[[], bool]) -> None:
        self._server = ThreadingHTTPServer((settings.host, settings.port), _handler(ready))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 (the base class names it)
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, generate_latest(), CONTENT_TYPE_LATEST)
            elif self.path == "/health":
                good = ready()
                status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, json.dumps({"ready": good}).encode())
            elif self.path == "/log-level":
                self._answer(HTTPStatus.OK, json.dumps({"level": _level()}).encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"{}")

        def do_PUT(self) -> None:  # noqa: N802
            length = min(int(self.headers.get("content-length") or 0), 200)
            level = self.rfile.read(length).decode("utf-8", "replace").strip(' "\n').upper()
            if self.path != "/log-level" or level not in LEVELS:
                allowed = json.dumps({"error": "PUT /log-level takes one of " + ", ".join(LEVELS)})
                self._answer(HTTPStatus.BAD_REQUEST, allowed.encode())
                return
            logging.getLogger().setLevel(level)
            self._answer(HTTPStatus.OK, json.dumps({"level": _level()}).encode())

        def _answer(self, status: HTTPStatus, body: bytes, media_type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002
            """Probes come every few seconds: not logged."""

    return Handler


def _level() -> str:
    return logging.getLevelName(logging.getLogger().level)
