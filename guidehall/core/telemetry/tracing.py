"""What belongs to one request, in every process that it passes through: its trace, its id, its job."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from guidehall.core import names
from guidehall.core.errors import InvalidArgument
from guidehall.core.settings import SettingsError, TelemetrySettings

REQUEST_ID_HEADER = "x-request-id"
_MAX_REQUEST_ID_CHARACTERS = 64

request_id: ContextVar[str] = ContextVar("guidehall_request_id", default="")
job_id: ContextVar[str] = ContextVar("guidehall_job_id", default="")

_request_span: ContextVar[trace.Span] = ContextVar("guidehall_request_span", default=trace.INVALID_SPAN)
_tracer = trace.get_tracer("guidehall")


def configure_tracing(settings: TelemetrySettings, service: str) -> None:
    """Exports spans when an endpoint is set; needs the extra `telemetry`. Context is passed on either way.

    Raises:
        SettingsError: an endpoint is set and the extra is not installed.
    """
    if settings.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "an otlp_endpoint needs the extra `telemetry`, as in pip install '.[telemetry]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"guidehall-{service}"}))
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=settings.export_seconds)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def begin_request(headers: Mapping[str, str], name: str = "request") -> str:
    """Takes up a request's trace and id, or starts new ones, for the rest of the task that handles it.

    Args:
        headers: names in lower case.
        name: of the span, such as the method.

    Returns:
        The request id.
    """
    identifier = headers.get(REQUEST_ID_HEADER, "")
    if not (
        0 < len(identifier) <= _MAX_REQUEST_ID_CHARACTERS
        and identifier.isascii()
        and identifier.isprintable()
    ):
        identifier = uuid.uuid4().hex
    request_id.set(identifier)
    context = propagate.extract(headers)
    span = _tracer.start_span(name, context, kind=trace.SpanKind.SERVER)
    if not span.get_span_context().is_valid:
        span = _unexported_root()
    _request_span.set(span)
    otel_context.attach(trace.set_span_in_context(span, context))
    return identifier


def end_request(failed: bool = False) -> None:
    """Ends the span of the request at hand; `failed` marks it as our fault."""
    span = _request_span.get()
    if failed:
        span.set_status(trace.StatusCode.ERROR)
    span.end()


@contextmanager
def handling(headers: Mapping[str, str] | None, name: str) -> Iterator[None]:
    """A request within a task that goes on after it, such as a message that was heard.

    Args:
        headers: as of `begin_request`; those of a request that left this to be done go on with its trace.
        name: of the span.
    """
    tokens = request_id.set(""), _request_span.set(trace.INVALID_SPAN)
    attached = otel_context.attach(otel_context.get_current())
    failed = True
    try:
        begin_request(headers or {}, name)
        yield
        failed = False
    finally:
        end_request(failed)
        otel_context.detach(attached)
        request_id.reset(tokens[0])
        _request_span.reset(tokens[1])


def note_job(name: str) -> None:
    """The request at hand is about the job of this name, which its log lines tell from now on."""
    with suppress(InvalidArgument):
        job_id.set(names.JOB.parse(name)["job"])


def current_trace_id() -> str | None:
    """The trace of the request at hand, as 32 hexadecimal digits."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None


def inject(headers: MutableMapping[str, str]) -> None:
    """Adds trace context and request id to what goes to another process."""
    propagate.inject(headers)
    if request_id.get():
        headers[REQUEST_ID_HEADER] = request_id.get()


def trace_headers() -> dict[str, str]:
    """Trace context and request id, to be kept beside what is told to others later; empty outside of any.

    Every transaction asks for them: made here in a few microseconds, without the baggage and vendors' state
    that `inject` passes on.
    """
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    headers = {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}
    if request_id.get():
        headers[REQUEST_ID_HEADER] = request_id.get()
    return headers


def _unexported_root() -> trace.Span:
    """A span with a fresh trace id, so that the logs of one request share one when nothing is exported."""
    return trace.NonRecordingSpan(
        trace.SpanContext(uuid.uuid4().int, uuid.uuid4().int >> 64, is_remote=False)
    )
