"""What the supervisor writes down about its programs, for `status` and for the next start after a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from guidehall.local.descendants import identity
from guidehall.local.files import read_json, write_json
from guidehall.local.processes import Process, State

_NAME = "stack.json"
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ServiceRecord:
    """One program as it was when its state changed last."""

    name: str
    state: State
    probe: str
    pid: int | None = None
    # Of the process, so that a number that meanwhile belongs to somebody else is not taken for it.
    process_identity: str | None = None
    restarts: int = 0
    exit_status: int | None = None


@dataclass(frozen=True)
class StackRecord:
    """All programs, and the stage of the whole: starting, ready, stopping, stopped or failed."""

    stage: str
    supervisor: int = 0
    started_at: float = 0.0
    services: tuple[ServiceRecord, ...] = ()
    # Why it failed.
    error: str = ""


def read(folder: Path) -> StackRecord:
    """The record in the data folder; an empty one of stage "stopped" if there is none."""
    value = read_json(folder / _NAME)
    try:
        services = tuple(ServiceRecord(**service) for service in value.pop("services"))
        return StackRecord(services=services, **value)
    except (KeyError, TypeError):  # none, or one of another version
        return StackRecord("stopped")


class Recorder:
    """Keeps the record of a running stack up to date; may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._lock = threading.Lock()
        self._started_at = time.time()
        self._stage = "starting"
        self._error = ""

    def write(self, processes: Iterable[Process], stage: str | None = None, error: str = "") -> None:
        """Writes down the present state."""
        with self._lock:
            self._stage = stage or self._stage
            self._error = error or self._error
            services = tuple(_describe(process) for process in processes)
            record = StackRecord(self._stage, os.getpid(), self._started_at, services, self._error)
            write_json(self._path, asdict(record), durable=False)


def end_leftovers(folder: Path, patience_seconds: float = 10.0) -> bool:
    """Sees to it that nothing runs any more that a killed supervisor had started; whether anything did.

    They were all told to stop when it died; those that take longer than `patience_seconds` are killed.
    """
    found = False
    deadline = time.monotonic() + patience_seconds
    for service in read(folder).services:
        found = found or _still_runs(service)
        while _still_runs(service) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        while _still_runs(service):
            _kill(service)
            time.sleep(_POLL_SECONDS)
    return found


def _describe(process: Process) -> ServiceRecord:
    pid = process.pid
    return ServiceRecord(
        name=process.program.name,
        state=process.state,
        probe=process.program.probe,
        pid=pid,
        process_identity=identity(pid) if pid is not None else None,
        restarts=process.restarts,
        exit_status=process.exit_status,
    )


def _still_runs(service: ServiceRecord) -> bool:
    return service.pid is not None and service.process_identity == identity(service.pid) is not None


def _kill(service: ServiceRecord) -> None:
    if service.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
