"""Looks at and ends a running stack from outside, by its data folder; starts one in the background."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidehall.local import lock, record
from guidehall.local.errors import AlreadyRunning, StackError, UnknownService
from guidehall.local.files import read_json
from guidehall.local.logfiles import follow, last_lines
from guidehall.local.postgres import home_elsewhere
from guidehall.local.probes import is_ready, metric_label, unreached
from guidehall.local.stack import ENDPOINTS, SUPERVISOR_LOG, Options, summary
from guidehall.local.supervisor import Report

_POLL_SECONDS = 0.1
# What a stack makes in its data folder, which may hold more.
_KEPT = (
    "endpoints.json", "identity", "inference", "logs", "nats", "ports.json", "postgres", "s3",
    "schema-*.json", "secrets", "stack.json", "tmp",
)  # fmt: skip


@dataclass(frozen=True)
class ServiceStatus:
    """One part of the stack, now.

    Attributes:
        state: what the supervisor knows: waiting, starting, ready, restarting or stopped.
        answers: whether it said that it is ready when asked just now.
        address: URL that it was asked by.
        reflectometry_engine: what calculates reflectivities in it, such as "c (avx2)" or "torch"; empty where
            nothing does.
        unreached: services that it does not reach yet, of the gateway: after one was started again its
            connection takes a moment longer than the service.
    """

    name: str
    state: str
    answers: bool
    address: str
    pid: int | None
    restarts: int
    exit_status: int | None
    reflectometry_engine: str = ""
    unreached: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackStatus:
    """The stack, now.

    Attributes:
        stage: starting, ready, stopping, stopped or failed.
        supervisor: process that runs it; None if nothing does.
        uptime_seconds: since it was started; 0 if it does not run.
        endpoints: where clients find the services; empty until everything was ready once.
        error: why it failed, if it did.
    """

    data: Path
    stage: str
    supervisor: int | None
    uptime_seconds: float
    services: tuple[ServiceStatus, ...]
    endpoints: dict[str, Any]
    error: str

    @property
    def healthy(self) -> bool:
        """Whether it runs, every part answers, and the gateway reaches the services."""
        reached = all(service.answers and not service.unreached for service in self.services)
        return self.stage == "ready" and reached


def status(data: Path) -> StackStatus:
    """Looks at the stack of a data folder and asks each part whether it is ready."""
    supervisor = lock.holder(data)
    known = record.read(data)
    if supervisor is None:
        stage = known.stage if known.stage == "failed" else "stopped"
        return StackStatus(data, stage, None, 0.0, (), {}, known.error)
    endpoints = read_json(data / ENDPOINTS)
    ops: dict[str, str] = endpoints.get("ops", {})
    names = [service.name for service in known.services]
    with ThreadPoolExecutor(max(1, 2 * len(names))) as pool:
        engines = pool.map(lambda name: _reflectometry_engine(name, ops), names)
        answers = list(pool.map(lambda service: is_ready(service.probe), known.services))
    missing = unreached(endpoints["gateway"]) if "gateway" in endpoints else ()
    services = tuple(
        ServiceStatus(
            service.name,
            service.state,
            ready,
            service.probe,
            service.pid,
            service.restarts,
            service.exit_status,
            engine,
            missing if service.name == "gateway" else (),
        )
        for service, ready, engine in zip(known.services, answers, engines, strict=True)
    )
    uptime = time.time() - known.started_at
    return StackStatus(data, known.stage, supervisor, uptime, services, endpoints, known.error)


def _reflectometry_engine(name: str, ops: dict[str, str]) -> str:
    calculates = name == "inference" or name.startswith("worker-")
    if not calculates or name not in ops:
        return ""
    return metric_label(ops[name], "guidehall_reflectometry_engine_info", "engine")


def down(data: Path, seconds: float = 90.0) -> bool:
    """Stops the stack of a data folder and returns when nothing of it runs; False if nothing did.

    Args:
        data: the data folder.
        seconds: how long it may take before the supervisor is killed, and everything with it.
    """
    supervisor = lock.holder(data)
    if supervisor is None:
        return record.end_leftovers(data)
    _signal(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while lock.holder(data) == supervisor:
        if time.monotonic() > deadline:
            _signal(supervisor, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    record.end_leftovers(data)
    return True


def _signal(supervisor: int, number: signal.Signals) -> None:
    # It may have ended a moment ago.
    with suppress(ProcessLookupError):
        os.kill(supervisor, number)


def folders(data: Path) -> list[Path]:
    """The folders that hold what the stack of a data folder keeps; none where there never was a stack."""
    if not (data / lock.NAME).is_file():
        return []
    elsewhere = home_elsewhere(data)
    return [data] if elsewhere is None else [data, elsewhere]


def delete(data: Path) -> None:
    """Deletes what the stack of a data folder keeps, and no file of others.

    Raises:
        AlreadyRunning: it runs.
    """
    found = folders(data)
    if not found:
        return
    with lock.FolderLock(data):
        for folder in found[1:]:
            shutil.rmtree(folder)
        for pattern in _KEPT:
            for path in data.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (data / lock.NAME).unlink()
    # What else is in it is not ours.
    with suppress(OSError):
        data.rmdir()


def tail_logs(data: Path, service: str, lines: int = 50, following: bool = False) -> Iterator[str]:
    """The last lines of a service's log, then, if `following`, what is added until the caller stops reading.

    Raises:
        UnknownService: there is no such log; the message names those that there are.
    """
    path = data / "logs" / f"{service}.log"
    if not path.is_file() or path.parent != data / "logs":
        known = ", ".join(sorted(log.stem for log in (data / "logs").glob("*.log"))) or "none yet"
        raise UnknownService(f"no log of {service!r} in {data}; there are: {known}")
    return _lines(path, lines, following)


def up_detached(options: Options, report: Report = print) -> None:
    """Starts the stack in a process of its own and returns when it is ready.

    Raises:
        AlreadyRunning: another process runs the stack of this folder.
        StackError: something does not start; nothing is left running.
    """
    data = options.data.expanduser().resolve()
    if (running := lock.holder(data)) is not None:
        raise AlreadyRunning(f"the stack in {data} is already running as process {running}")
    path = data / "logs" / f"{SUPERVISOR_LOG}.log"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(exist_ok=True)
    arguments = ["--data", str(data), "--workers", str(options.workers), "--auth-mode", options.auth_mode]
    with path.open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "guidehall.local", *arguments],
            env=dict(options.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )

    def stage() -> str:
        known = record.read(data)
        return known.stage if known.supervisor == supervisor.pid else "starting"

    def still_starting() -> bool:
        time.sleep(_POLL_SECONDS)
        return stage() == "starting" and supervisor.poll() is None

    try:
        for text in follow(path, still_starting):
            if stage() == "failed":
                break  # what follows is the error, which is raised
            report(text.rstrip("\n"))
    except BaseException:  # Ctrl-C before it is ready means the start, not just the waiting
        supervisor.terminate()
        supervisor.wait()
        raise
    known = record.read(data)
    if supervisor.poll() is not None or known.stage != "ready":
        supervisor.wait()
        raise StackError(known.error or f"the supervisor ended at once; see {path}")
    # It is meant to live on: not an abandoned child.
    supervisor.returncode = 0
    report(summary(read_json(data / ENDPOINTS)))
    report(f"  {how_to_stop(data)} stops it; what it keeps stays\n")


def how_to_stop(data: Path) -> str:
    """The command that stops the stack of a data folder."""
    from guidehall.client._endpoints import data_folder

    named = "" if data == data_folder().resolve() else f" --data {shlex.quote(str(data))}"
    return f"guidehall down{named}"


def _lines(path: Path, lines: int, following: bool) -> Iterator[str]:
    # Opened for following first, or what is written meanwhile would be missed.
    yield from (f"{line}\n" for line in last_lines(path, lines))
    if following:
        yield from follow(path, _wait)


def _wait() -> bool:
    time.sleep(_POLL_SECONDS)
    return True
