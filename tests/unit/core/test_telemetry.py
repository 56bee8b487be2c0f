"""Logs, trace context and the operators' port."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from guidehall.core.settings import LogSettings, OpsSettings
from guidehall.core.telemetry import (
    OpsServer,
    begin_request,
    configure_logging,
    current_trace_id,
    handling,
    inject,
    job_id,
    request_id,
    trace_headers,
)
from guidehall.core.telemetry.logs import redact

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def test_a_request_within_a_task_goes_on_with_what_it_came_from_and_ends() -> None:
    with handling({"traceparent": PARENT, "x-request-id": "r-1"}, "message"):
        kept = trace_headers()
        assert (current_trace_id(), request_id.get()) == (TRACE, "r-1")
    assert (current_trace_id(), request_id.get(), trace_headers()) == (None, "", {})

    with handling(kept, "later"):
        assert (current_trace_id(), request_id.get()) == (TRACE, "r-1")
        injected: dict[str, str] = {}
        inject(injected)
        assert injected == trace_headers()


async def test_a_record_names_its_request(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings(), "toy")
    begin_request({"traceparent": PARENT, "x-request-id": "r-1"})
    job_id.set("7f")

    logging.getLogger("toy.part").info(
        "hello %s", "world", extra={"port": 7101, "loss": float("nan"), "path": ("a",)}
    )

    (line,) = logged(capsys)
    assert line.pop("ts").endswith("+00:00")
    assert len(line.pop("span_id")) == 16
    assert line == {
        "level": "INFO", "service": "toy", "logger": "toy.part", "msg": "hello world", "trace_id": TRACE,
        "request_id": "r-1", "job_id": "7f", "port": 7101, "loss": "nan", "path": ["a"],
    }  # fmt: skip


def test_a_traceback_is_one_field(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(), "toy")

    try:
        raise ValueError("password=hunter2")
    except ValueError:
        logging.getLogger("toy").exception("failed")

    (line,) = logged(capsys)
    assert "Traceback" in line["exception"]
    assert "hunter2" not in line["exception"]


SECRETS = [
    ("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl", "eyJzdWIiOiJhIn0"),
    ("authorization: Bearer abcdef123456", "abcdef123456"),
    ("gh_0123456789abcdef0123", "0123456789abcdef0123"),
    ("nats://trainer:hunter2@broker:4222 refused", "hunter2"),
    ("password='hunter2'", "hunter2"),
    ('{"secret_key": "hunter2"}', "hunter2"),
    ("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ\n-----END PRIVATE KEY-----", "MC4CAQAwBQ"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_never_logged(
    text: str, secret: str, log_format: Any, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings(format=log_format), "toy")

    logging.getLogger("toy").warning("saw %s", text, extra={"seen": {"inside": [text]}})

    shown = capsys.readouterr().err
    assert "saw" in shown
    assert secret not in shown


def test_a_field_with_a_secrets_name_is_hidden(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings(), "toy")

    logging.getLogger("toy").info("x", extra={"access_token": "plain", "headers": {"Authorization": "plain"}})

    (line,) = logged(capsys)
    assert line["access_token"] == line["headers"]["Authorization"] == "**********"


@pytest.mark.parametrize(
    "text", ["the token has expired", "http://127.0.0.1:8000/x", "job 7f at epoch 3", "q = 0.01"]
)
def test_plain_words_stay(text: str) -> None:
    assert redact(text) == text


async def test_a_request_without_a_trace_starts_one_and_passes_it_on() -> None:
    identifier = begin_request({})
    headers: dict[str, str] = {}
    inject(headers)

    assert request_id.get() == identifier == headers["x-request-id"]
    assert headers["traceparent"].split("-")[1] == current_trace_id()


async def test_a_callers_trace_and_id_go_on() -> None:
    assert begin_request({"traceparent": PARENT, "x-request-id": "r-1"}) == "r-1"
    assert current_trace_id() == TRACE


@pytest.mark.parametrize("identifier", ["", "x" * 65, "a\nb", "é"])
async def test_a_request_id_that_could_do_harm_is_replaced(identifier: str) -> None:
    assert begin_request({"x-request-id": identifier}) not in ("", identifier)


def test_spans_are_exported_with_their_parent() -> None:
    code = f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from guidehall.core.telemetry import begin_request, end_request
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
begin_request({{"traceparent": "{PARENT}"}}, "/a.B/C")
end_request(failed=True)
(span,) = exporter.get_finished_spans()
code = span.status.status_code.name
print(span.name, f"{{span.context.trace_id:032x}}", f"{{span.parent.span_id:016x}}", code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["/a.B/C", TRACE, "b7ad6b7169203331", "ERROR"]


@pytest.fixture
def ready() -> threading.Event:
    return threading.Event()


@pytest.fixture
def ops(ready: threading.Event) -> Iterator[str]:
    server = OpsServer(OpsSettings(request_seconds=1.0), ready.is_set)
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def ask(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, method=method, data=body)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_follows_readiness(ops: str, ready: threading.Event) -> None:
    assert ask(f"{ops}/health") == (503, '{"ready": false}')

    ready.set()

    assert ask(f"{ops}/health?verbose") == (200, '{"ready": true}')


def test_a_readiness_check_that_fails_is_not_ready() -> None:
    def broken() -> bool:
        raise RuntimeError

    server = OpsServer(OpsSettings(), broken)
    server.start()
    try:
        assert ask(f"http://127.0.0.1:{server.port}/health")[0] == 503
    finally:
        server.stop()


def test_metrics_are_those_of_prometheus(ops: str) -> None:
    status, text = ask(f"{ops}/metrics")

    assert status == 200
    assert "# TYPE " in text
    assert ask(f"{ops}/nothing")[0] == 404


@pytest.mark.parametrize("body", [b"DEBUG", b'"debug"', b'{"level": "DEBUG"}'])
def test_the_log_level_changes_at_run_time(ops: str, body: bytes, root_logger: logging.Logger) -> None:
    root_logger.setLevel("INFO")

    assert ask(f"{ops}/log-level", "PUT", body) == (200, '{"level": "DEBUG"}')

    assert root_logger.level == logging.DEBUG
    assert ask(f"{ops}/log-level") == (200, '{"level": "DEBUG"}')


@pytest.mark.parametrize("body", [b"", b"LOUD", b"{", b"[1]", b'{"level": 7}', b"x" * 1000])
def test_a_level_that_there_is_not_changes_nothing(
    ops: str, body: bytes, root_logger: logging.Logger
) -> None:
    before = root_logger.level

    assert ask(f"{ops}/log-level", "PUT", body)[0] == 400
    assert ask(f"{ops}/metrics", "PUT", b"DEBUG")[0] == 400
    assert root_logger.level == before


def test_a_taken_port_is_named(ops: str) -> None:
    port = int(ops.rpartition(":")[2])

    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        OpsServer(OpsSettings(port=port), lambda: True)


def test_a_server_that_never_started_can_be_stopped() -> None:
    OpsServer(OpsSettings(), lambda: True).stop()
