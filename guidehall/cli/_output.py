"""How answers are shown: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from guidehall.client import Estimate

Cell = str | int | float | None
# Wide enough for every table that goes into a file or another program: no line is broken there.
_UNLIMITED_WIDTH = 1000


def clean(text: str) -> str:
    """`text` without signs that could steer a terminal; names and log lines come from others."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "\ufffd" for sign in text)


def wrapped(text: str) -> str:
    """`text` in lines that the terminal has room for; as it is where it goes into a file or a program."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def console() -> Console:
    """Where tables go."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    return Console(width=width, highlight=False, emoji=False, markup=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], empty: str = "none") -> None:
    """Prints rows under headings, numbers to the right; prints `empty` when there are none."""
    from rich.table import Table
    from rich.text import Text

    lines = [list(row) for row in rows]
    if not lines:
        click.echo(empty)
        return
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        numeric = all(isinstance(line[index], (int, float, type(None))) for line in lines)
        shown.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for line in lines:
        shown.add_row(*(Text(_cell(cell)) for cell in line))
    with console() as target:
        target.print(shown)


def pairs(items: Mapping[str, Cell]) -> None:
    """Prints names and values below each other; what is empty is left out."""
    kept = {name: _cell(value) for name, value in items.items() if value not in ("", None)}
    width = max(map(len, kept), default=0)
    for name, value in kept.items():
        click.echo(f"{name:<{width}}  {value}")


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    return clean(value) if isinstance(value, str) else number(value)


def number(value: int | float) -> str:
    """A number as people read it: six digits count."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def timestamp(time: datetime | None) -> str:
    """A time as people read it, in their time zone; empty where there is none."""
    return "" if time is None else time.astimezone().isoformat(" ", "seconds")


def emit(value: Any) -> None:
    """Prints one JSON document."""
    click.echo(json.dumps(document(value), ensure_ascii=False, indent=2))


def emit_line(value: Any) -> None:
    """Prints one JSON document in a line of its own, at once."""
    click.echo(json.dumps(document(value), ensure_ascii=False))


def document(value: Any) -> Any:
    """`value` in terms of JSON; NaN and infinities become null."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: document(getattr(value, field.name)) for field in fields(value)}
        # An id is worked out from the name, and useful to programs.
        return {"id": value.id, **named} if hasattr(value, "id") else named
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (datetime, Path)):
        return value.isoformat() if isinstance(value, datetime) else str(value)
    if isinstance(value, Mapping):
        return {str(key): document(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return document(value.tolist())
    if isinstance(value, (list, tuple)):
        return [document(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def age(time: datetime | None, now: datetime | None = None) -> str:
    """How long ago, such as "5 min"."""
    if time is None:
        return ""
    return duration(((now or datetime.now(timezone.utc)) - time).total_seconds())


def duration(seconds: float) -> str:
    """A time span in its largest unit, such as "5 min"."""
    seconds = max(seconds, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def moment(time: datetime, now: datetime | None = None) -> str:
    """Local time of day, with the date where it is not today, such as "14:05" or "Dec 3 09:30"."""
    local = time.astimezone()
    today = (now or datetime.now(timezone.utc)).astimezone().date() == local.date()
    return f"{local:%H:%M}" if today else f"{local:%b} {local.day} {local:%H:%M}"


def roughly(value: Estimate | None) -> str:
    """An estimate in a table, such as "~14:05"; empty where nothing is known."""
    return "" if value is None or value.time is None else f"~{moment(value.time)}"


def estimate(value: Estimate | None) -> str:
    """An estimate with how sure it is, such as "about 14:05, most likely 13:50 to 14:40"."""
    if value is None or value.time is None:
        return ""
    said = f"about {moment(value.time)}"
    if value.earliest_time is None or value.latest_time is None:
        return said
    return f"{said}, most likely {moment(value.earliest_time)} to {moment(value.latest_time)}"


def size(count: int) -> str:
    """A number of bytes, such as "1.4 MiB"."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def short(name: str) -> str:
    """The first eight signs of the id in a name: enough to know a job or a worker by."""
    return clean(name.rpartition("/")[2][:8])
