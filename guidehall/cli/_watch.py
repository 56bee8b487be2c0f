"""A job's events as they happen: a live bar on a terminal, lines anywhere else, JSON lines for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol

import click

from guidehall.cli._exit import ExitCode
from guidehall.cli._output import clean, console, emit_line, estimate, number, short
from guidehall.cli._spark import Course, rows_of, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from guidehall.client import Client, Job, JobEvent, Progress, StateChange

# How many lines are enough for each phase of the work whose length is known, and how often one is else.
_PROGRESS_LINES = 10
_PROGRESS_LINE_SECONDS = 10.0
# No event tells how long the queue is, or when the job is likely to end.
_OUTLOOK_SECONDS = 5.0


class _View(Protocol):
    def show(self, event: JobEvent) -> None: ...


def follow(client: Client, job: str, after_seq: int, as_json: bool) -> ExitCode:
    """Shows the events of a job until it is over; the exit code says how it ended."""
    from guidehall.client import JobState

    name = client.job(job).name
    try:
        with _view(client, name, as_json) as view:
            _show(client.watch(name, after_seq), after_seq, view)
    except KeyboardInterrupt:
        # The job has not noticed.
        raise KeyboardInterrupt(
            f"the job goes on; look again with: guidehall watch {short(name)}, "
            f"end it with: guidehall cancel {short(name)}"
        ) from None
    return ExitCode.DONE if client.job(name).state is JobState.SUCCEEDED else ExitCode.FAILED


def _show(events: Iterable[JobEvent], after_seq: int, view: _View) -> None:
    """Shows the events after `after_seq`; says so where some are no longer kept."""
    expected = after_seq + 1
    for event in events:
        if event.seq > expected:
            click.echo(f"events {expected} to {event.seq - 1} are no longer kept", err=True)
        expected = event.seq + 1
        view.show(event)


@contextmanager
def _view(client: Client, name: str, as_json: bool) -> Iterator[_View]:
    if as_json:
        yield _JsonLines()
    elif sys.stdout.isatty():
        with _Live() as live, _outlook(client, name, live):
            yield live
    else:
        yield _Lines()


@contextmanager
def _outlook(client: Client, name: str, live: _Live) -> Iterator[None]:
    """Shows now and then how long it is likely to take."""
    over = Event()

    def ask() -> None:
        from guidehall.client.errors import AppError

        while not over.is_set():
            # Where a service is away, the events will tell.
            with suppress(AppError):
                live.look_ahead(client.job(name))
            over.wait(_OUTLOOK_SECONDS)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # Its call must not outlive the client; a slow one is left to die with the process.
        thread.join(2.0)


class _JsonLines:
    def show(self, event: JobEvent) -> None:
        emit_line(event)


class _Lines:
    """One line an event, but not each step of the work: a log file is read by people too."""

    def __init__(self) -> None:
        self._shown: tuple[str, int] | None = None

    def show(self, event: JobEvent) -> None:
        from guidehall.client import Progress

        if isinstance(event.payload, Progress):
            work = event.payload
            part = (
                _PROGRESS_LINES * work.step // work.total
                if work.total
                else int(time.monotonic() / _PROGRESS_LINE_SECONDS)
            )
            if self._shown == (work.phase, part):
                return
            self._shown = (work.phase, part)
        text = describe(event)
        if text:
            click.echo(f"{clock(event.time)} {text}")


class _Live:
    """At the bottom bar, course of the losses, newest preview and log line, and when it is likely to end;
    changes of state scroll away above them."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
        )
        self._bar = Bar(*columns)
        self._task = self._bar.add_task("waiting", total=None, metrics="")
        self._courses: dict[str, Course] = {}
        self._preview: list[str] = []
        self._log = ""
        self._ahead = ""
        self._console = console()
        self._live = Live(console=self._console, refresh_per_second=8, get_renderable=self._picture)

    def __enter__(self) -> _Live:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ahead = ""
        self._live.stop()

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        encoding = self._console.encoding
        width = max((len(name) for name in self._courses), default=0)
        courses = [
            f"{name:<{width}}  {sparkline(course.values, encoding)}"
            for name, course in self._courses.items()
            if len(course.values) > 1
        ]
        lines = [*courses, *self._preview]
        faint = [line for line in (self._log, self._ahead) if line]
        return Group(
            self._bar,
            *(Text(line, no_wrap=True, overflow="crop") for line in lines),
            *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in faint),
        )

    def look_ahead(self, job: Job) -> None:
        """Shows when a job is likely to start and to end."""
        words = [f"{job.queue_position} in front"] if job.queue_position >= 0 else []
        if start := estimate(job.start_estimate):
            words.append(f"starts {start}")
        if end := estimate(job.end_estimate):
            words.append(f"ends {end}")
        self._ahead = "; ".join(words)

    def show(self, event: JobEvent) -> None:
        from guidehall.client import LogLine, Preview, Progress

        if isinstance(event.payload, Progress):
            work = event.payload
            self._bar.update(
                self._task,
                description=clean(work.phase) or "running",
                completed=work.step,
                total=work.total or None,
                metrics=metrics(work),
            )
            for name, value in work.metrics.items():
                self._courses.setdefault(clean(name), Course()).add(value)
        elif isinstance(event.payload, LogLine):
            self._log = clean(event.payload.line)
        elif isinstance(event.payload, Preview):
            rows = rows_of(event.payload.document, self._console.encoding)
            self._preview = [f"{clean(event.payload.kind)}, as of {clock(event.time)}", *rows]
        elif text := describe(event):
            self._console.print(f"{clock(event.time)} {text}")


def describe(event: JobEvent) -> str:
    """An event in one line; empty when it says nothing to people."""
    from guidehall.client import (
        CheckpointCommitted,
        LogLine,
        Preview,
        Progress,
        ResultPublished,
        StateChange,
    )

    payload = event.payload
    if isinstance(payload, StateChange):
        return _change(payload)
    if isinstance(payload, Progress):
        of_total = f"/{payload.total}" if payload.total else ""
        return f"{clean(payload.phase)} {payload.step}{of_total} {metrics(payload)}".strip()
    if isinstance(payload, LogLine):
        return f"| {clean(payload.line)}"
    if isinstance(payload, Preview):
        return f"preview {clean(payload.kind)}: {', '.join(map(clean, payload.document))}"
    if isinstance(payload, CheckpointCommitted):
        return f"checkpoint {payload.ordinal} at step {payload.step}"
    if isinstance(payload, ResultPublished):
        models = ", ".join(clean(name) for name in payload.model_versions)
        return f"result {short(payload.result)}" + (f", model {models}" if models else "")
    return ""


def _change(change: StateChange) -> str:
    words = [change.state.value.lower()]
    if not change.state.final and change.desired_state not in ("", "RUN"):
        words.append(f"(asked to {change.desired_state.lower()})")
    if change.state.final and change.end_reason not in ("", "COMPLETED"):
        words.append(f"({change.end_reason.lower().replace('_', ' ')})")
    if change.worker:
        words.append(f"on worker {short(change.worker)}")
    if change.error is not None:
        words.append(f"- {clean(change.error.message)}")
        words += [f"[{clean(item.field)}: {clean(item.description)}]" for item in change.error.violations]
    return " ".join(words)


def metrics(progress: Progress) -> str:
    """The numbers of a step, such as "train_loss=0.0123"."""
    return " ".join(f"{clean(name)}={number(value)}" for name, value in sorted(progress.metrics.items()))


def clock(time: datetime | None) -> str:
    """Local time of day."""
    return "--:--:--" if time is None else time.astimezone().strftime("%H:%M:%S")
