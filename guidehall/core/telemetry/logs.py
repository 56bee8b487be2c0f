"""Log records as JSON lines that name the request they belong to and hold no secret."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from datetime import datetime, timezone
from typing import Any

from opentelemetry import trace

from guidehall.core.settings import LogSettings
from guidehall.core.telemetry.tracing import job_id, request_id

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_NOISY = ("urllib3", "asyncio", "nats", "matplotlib", "alembic.runtime.plugins")
_STARS = "**********"
_SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|authorization|api_?key|credential|cookie)$")
# Each has one group before the secret, which stays, and drops the rest.
_SECRETS = (
    # JSON Web Tokens, wherever they stand.
    re.compile(r"()\beyJ[\w-]+\.[\w-]+\.[\w-]*"),
    re.compile(r"()\bgh_[\w-]{16,}"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}"),
    # The password in a URL.
    re.compile(r"(://[^/\s:@\"']*:)[^/\s@\"']+(?=@)"),
    re.compile(r"(?i)((?:password|passwd|secret|secret_key|api_?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&}]+"),
    re.compile(r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|$)"),
)


def redact(text: str) -> str:
    """`text` with stars in place of what looks like a credential."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{_STARS}", text)
    return text


def configure_logging(settings: LogSettings, service: str) -> None:
    """Sends every log record of the process to standard error, in the chosen format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service) if settings.format == "json" else _ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _ConsoleFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "msg": redact(record.getMessage()),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        for name, variable in (("request_id", request_id), ("job_id", job_id)):
            if variable.get():
                line[name] = variable.get()
        for name, value in record.__dict__.items():
            if name not in _STANDARD:
                line[name] = _redacted(name, value)
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line)


def _redacted(name: object, value: object) -> Any:
    """An extra field as plain data without secrets: those by their name, and those by their look."""
    if isinstance(value, dict):
        return {str(key): _redacted(key, item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(name, item) for item in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _STARS if _SECRET_NAME.search(str(name)) else redact(str(value))
