"""What a job costs besides its own work: from its submission to its start, and how many go through.

Jobs that do nothing, two workers each, everything in turn in one run. RQ and Celery have a Redis that keeps
everything in memory; the platform's PostgreSQL writes every step to disk.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.jobs import peers, platform
from benchmarks.jobs.processes import memory_bytes
from benchmarks.jobs.queues import Queue, Starts, counted_cpu, drain_seconds, start_seconds
from benchmarks.rows import Row, at_least, at_most

OURS, FRESH, RQ, SIMPLE, CELERY = "ours", "ours, a process a job", "RQ", "RQ SimpleWorker", "Celery"
_PROGRESS_EVENTS = 10
_MEMORY_JOBS = 1000
# Before it is measured whether memory grows: caches and pools are full by then.
_WARM_JOBS = 200


@dataclass
class Measured:
    """What was measured of one queue, a value for each round or each job."""

    start_seconds: list[float] = field(default_factory=list)
    jobs_per_second: list[float] = field(default_factory=list)
    # Of everything that has part in a job.
    cpu_seconds: list[float] = field(default_factory=list)
    # By process, of the last round.
    parts: Mapping[str, float] = field(default_factory=dict)

    def drain(self, queue: Queue, jobs: int) -> None:
        """Measures one drain."""
        with counted_cpu(queue) as cpu:
            seconds = drain_seconds(queue, jobs)
        self.jobs_per_second.append(jobs / seconds)
        self.cpu_seconds.append(sum(cpu.values()) / jobs)
        self.parts = {name: spent / jobs for name, spent in cpu.items()}

    @property
    def start(self) -> float:
        return statistics.median(self.start_seconds)

    @property
    def rate(self) -> float:
        return statistics.median(self.jobs_per_second)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_seconds)


def run(
    quick: bool,
    *,
    rounds: int | None = None,
    starts: int = 20,
    jobs: int | None = None,
    memory_jobs: int | None = None,
) -> list[Row]:
    """Measures the platform and, where they are installed, its peers."""
    rounds = rounds or (2 if quick else 5)
    jobs = jobs or (40 if quick else 200)
    memory_jobs = memory_jobs or (_MEMORY_JOBS // 5 if quick else _MEMORY_JOBS)
    missing = peers.missing()
    if missing:
        print(f"RQ and Celery are left out: {missing} is not installed", file=sys.stderr)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guidehall-bench-")))
        heard = Starts(folder)
        stack.callback(heard.close)
        with platform.running(folder / "data") as ours, ExitStack() as programs:
            queues: dict[str, Queue] = {OURS: ours}
            if not missing:
                queues |= peers.running(folder, {RQ: "Worker", SIMPLE: "SimpleWorker"}, CELERY, programs)
            measured = _in_turn(queues, heard, rounds, starts, jobs)
            progress = _progress(ours, rounds, jobs)
            memory = _memory(ours, memory_jobs)
        with platform.running(folder / "data", reuse=False) as fresh:
            # Every job waits for the start of an interpreter.
            measured |= _in_turn({FRESH: fresh}, heard, 1, max(2, starts // 4), max(4, jobs // 10))
    return [
        *_starts(measured),
        *_drains(measured),
        *_cpu(measured[OURS]),
        *progress,
        *memory,
    ]


def _in_turn(
    queues: Mapping[str, Queue], heard: Starts, rounds: int, starts: int, jobs: int
) -> dict[str, Measured]:
    """Measures queues in turn, so that a busy machine hits all alike."""
    measured = {name: Measured() for name in queues}
    for queue in queues.values():
        for _ in range(3):
            start_seconds(queue, heard)
    for _ in range(rounds):
        for _ in range(starts):
            for name, queue in queues.items():
                measured[name].start_seconds.append(start_seconds(queue, heard))
        for name, queue in queues.items():
            measured[name].drain(queue, jobs)
    return measured


def _starts(measured: Mapping[str, Measured]) -> list[Row]:
    ours = measured[OURS].start
    rows = [at_most("submit to start, idle queue (p50)", 1000 * ours, "ms", 15)]
    if RQ in measured:
        note = f"RQ {1000 * measured[RQ].start:.3g} ms, in the same minutes"
        rows.append(
            at_most("submit to start, to RQ's default worker", ours / measured[RQ].start, "times", 1.2, note)
        )
    rows += [
        Row(f"submit to start (p50): {name}", 1000 * item.start, "ms")
        for name, item in measured.items()
        if name != OURS
    ]
    return rows


def _drains(measured: Mapping[str, Measured]) -> list[Row]:
    ours = measured[OURS]
    rows = [Row("drain, 2 workers, to the last result", ours.rate, "jobs/s")]
    if RQ in measured:
        note = f"RQ {measured[RQ].rate:.3g} jobs/s, in the same minutes"
        rows.append(
            at_least("drain, to RQ's default worker", ours.rate / measured[RQ].rate, "times", 2, note)
        )
    rows += [Row(f"drain: {name}", item.rate, "jobs/s") for name, item in measured.items() if name != OURS]
    rows += [Row(f"CPU of a job: {name}", 1000 * item.cpu, "CPU-ms") for name, item in measured.items()]
    return rows


def _cpu(ours: Measured) -> list[Row]:
    return [
        Row(f"CPU of a job in {name}", 1000 * seconds, "CPU-ms", note="one round")
        for name, seconds in ours.parts.items()
        if name not in ("gateway", "inference")
    ]


def _progress(ours: platform.Platform, rounds: int, jobs: int) -> list[Row]:
    """What `_PROGRESS_EVENTS` progress events add to a job."""
    silent, telling = Measured(), Measured()
    for _ in range(rounds):
        for measured, events in ((silent, 0), (telling, _PROGRESS_EVENTS)):
            ours.progress = events
            measured.drain(ours, jobs)
    ours.progress = 0
    seconds = 1 / telling.rate - 1 / silent.rate
    name = f"{_PROGRESS_EVENTS} progress events"
    return [
        at_most(f"{name}, longer a job while draining", 1000 * seconds, "ms", 5),
        Row(f"{name}, CPU of a job more", 1000 * (telling.cpu - silent.cpu), "CPU-ms"),
    ]


def _memory(ours: platform.Platform, jobs: int) -> list[Row]:
    drain_seconds(ours, min(_WARM_JOBS, jobs))
    names = [name for name in ours.processes if name not in ("postgres", "nats", "s3")]
    before = {name: memory_bytes(ours.processes[name]) for name in names}
    drain_seconds(ours, jobs)
    return [
        Row(
            f"memory of {name}, grown over {jobs} jobs",
            (memory_bytes(ours.processes[name]) - before[name]) / 1e6,
            "MB",
            note=f"of {before[name] / 1e6:.3g} MB",
        )
        for name in names
    ]
