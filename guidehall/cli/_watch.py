"""A job's events as they happen: a live bar on a terminal, lines anywhere else, JSON lines for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import click

from guidehall.cli._exit import ExitCode
from guidehall.cli._output import clean, console, emit_line, number, short

if TYPE_CHECKING:
    from guidehall.client import Client, JobEvent, Progress, StateChange

# How many lines are enough for each phase of the work whose length is known, and how often one is else.
_PROGRESS_LINES = 10
_PROGRESS_LINE_SECONDS = 10.0


class _View(Protocol):
    def show(self, event: JobEvent) -> None: ...


def follow(client: Client, job: str, after_seq: int, as_json: bool) -> ExitCode:
    """Shows the events of a job until it is over; the exit code says how it ended."""
    from guidehall.client import JobState

    name = client.job(job).name
    try:
        with _view(as_json) as view:
            _show(client.watch(name, after_seq), view)
    except KeyboardInterrupt:
        # The job has not noticed.
        raise KeyboardInterrupt(f"the job goes on; end it with: guidehall cancel {short(name)}") from None
    return ExitCode.DONE if client.job(name).state is JobState.SUCCEEDED else ExitCode.FAILED


def _show(events: Iterable[JobEvent], view: _View) -> None:
    for event in events:
        view.show(event)


@contextmanager
def _view(as_json: bool) -> Iterator[_View]:
    if as_json:
        yield _JsonLines()
    elif sys.stdout.isatty():
        with _Live() as live:
            yield live
    else:
        yield _Lines()


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
    """Bar, losses and newest log line at the bottom; changes of state scroll away above them."""

    def __init__(self) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
        )
        self._bar = Bar(*columns)
        self._task = self._bar.add_task("waiting", total=None, metrics="")
        self._log = Text("", style="dim", no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._bar, self._log), console=console(), refresh_per_second=8)

    def __enter__(self) -> _Live:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, event: JobEvent) -> None:
        from guidehall.client import LogLine, Progress

        if isinstance(event.payload, Progress):
            work = event.payload
            self._bar.update(
                self._task,
                description=clean(work.phase) or "running",
                completed=work.step,
                total=work.total or None,
                metrics=metrics(work),
            )
        elif isinstance(event.payload, LogLine):
            self._log.plain = clean(event.payload.line)
        elif text := describe(event):
            self._live.console.print(f"{clock(event.time)} {text}")


def describe(event: JobEvent) -> str:
    """An event in one line; empty when it says nothing to people."""
    from guidehall.client import CheckpointCommitted, LogLine, Progress, ResultPublished, StateChange

    payload = event.payload
    if isinstance(payload, StateChange):
        return _change(payload)
    if isinstance(payload, Progress):
        of_total = f"/{payload.total}" if payload.total else ""
        return f"{clean(payload.phase)} {payload.step}{of_total} {metrics(payload)}".strip()
    if isinstance(payload, LogLine):
        return f"| {clean(payload.line)}"
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
