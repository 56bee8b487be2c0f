"""What the queues have in common that are measured against each other."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks.jobs.processes import cpu_seconds, paused

WORKERS = 2
_START_SECONDS = 60.0


class Queue(Protocol):
    """A queue with `WORKERS` workers that run no-op jobs."""

    def submit(self, address: str) -> object:
        """Hands in a job that tells `address` of its start."""

    def wait(self, job: object) -> None:
        """Returns when nothing of a job is left to do."""

    def drained(self) -> None:
        """Returns when nothing of any job is left to do."""

    @property
    def workers(self) -> Sequence[int]:
        """Process ids of the workers."""

    @property
    def processes(self) -> Mapping[str, int]:
        """Process ids of everything that has part in a job, by name."""


class Starts:
    """Hears when jobs begin."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "starts")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(_START_SECONDS)

    def next(self) -> float:
        """When a job began, by the clock of `time.monotonic`."""
        return float(self._socket.recv(64))

    def close(self) -> None:
        self._socket.close()


def start_seconds(queue: Queue, starts: Starts) -> float:
    """From the call that submits a job to an idle queue to the first line of the job."""
    begin = time.monotonic()
    job = queue.submit(starts.address)
    seconds = starts.next() - begin
    queue.wait(job)
    # Workers come to rest: the next job is no neighbour of this one.
    time.sleep(0.05)
    return seconds


def drain_seconds(queue: Queue, jobs: int) -> float:
    """From the moment that the workers may begin on so many waiting jobs to the last one's end."""
    with paused(queue.workers):
        for _ in range(jobs):
            queue.submit("")
    begin = time.monotonic()
    queue.drained()
    return time.monotonic() - begin


@contextmanager
def counted_cpu(queue: Queue) -> Iterator[dict[str, float]]:
    """Fills in CPU seconds by name of process: those of the block."""
    before = {name: cpu_seconds(pid) for name, pid in queue.processes.items()}
    spent: dict[str, float] = {}
    yield spent
    spent.update({name: cpu_seconds(pid) - before[name] for name, pid in queue.processes.items()})
