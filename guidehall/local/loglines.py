"""Lines of the services' logs as people read them; what is no JSON, such as PostgreSQL's, stays as it is."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

# Shown in places of their own, or of no use: a log is one service's, and uvicorn says its message twice.
_PLACED = ("ts", "level", "service", "logger", "msg", "exception", "color_message")


def readable(line: str) -> str:
    """A line with time of day, level, logger, message and further fields; a traceback follows, indented."""
    entry = _entry(line)
    if entry is None:
        return line
    words = [_clock(entry.get("ts")), f"{entry.get('level', ''):<7}", f"{entry.get('logger', '')}:"]
    words.append(str(entry["msg"]))
    words += [f"{name}={_value(value)}" for name, value in entry.items() if name not in _PLACED]
    trace = str(entry.get("exception", "")).splitlines()
    return "\n".join([" ".join(words), *(f"    {part}" for part in trace)])


def brief(line: str) -> str:
    """A line with level, message and how the exception ended, if there was one."""
    entry = _entry(line)
    if entry is None:
        return line
    words = [f"{entry.get('level', ''):<7}", str(entry["msg"])]
    if trace := str(entry.get("exception", "")).splitlines():
        words.append(f"({trace[-1]})")
    return " ".join(words)


def _entry(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "msg" in entry else None


def _clock(text: Any) -> str:
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (TypeError, ValueError):
        return "--:--:--.---"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() and " " not in value else json.dumps(value)
