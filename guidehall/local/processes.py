"""One supervised program: started, probed until ready, restarted after a crash, stopped within a bound."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import IO, Literal, Protocol

from guidehall.local.errors import StackError
from guidehall.local.logfiles import RotatingLog
from guidehall.local.probes import is_ready

State = Literal["waiting", "starting", "ready", "restarting", "stopped"]

_LAUNCHER = Path(__file__).with_name("launch.py")
_PROBE_SECONDS = 0.05
_SLOW_PROBE_SECONDS = 0.5
_PROBE_SLOWLY_AFTER_SECONDS = 15.0


@dataclass(frozen=True)
class Account:
    """The numeric account a program runs as."""

    user: int
    group: int


class Run(Protocol):
    """Runs a program to its end, its output going to a log; raises StackError unless it succeeds."""

    def __call__(
        self, argv: tuple[str, ...], environment: Mapping[str, str], account: Account | None = None
    ) -> None: ...


@dataclass(frozen=True)
class Program:
    """What to run and how.

    Attributes:
        name: what people call it, and its log.
        argv: absolute path of the program and its arguments; never secrets, which other accounts could read.
        environment: the whole environment of the program.
        probe: URL that tells when it is ready (see `probes`).
        after: names of programs that must be ready before this one starts; they stop after it.
        uses: names of further programs that stop after it, though it may start before them.
        prepare: called before the first start, with a way to run other programs.
        provision: run when it is ready, before those that come after it start.
        stop_signal: asks it to stop; also what it gets when the supervisor dies.
        stop_seconds: how long it may take to stop before it is killed.
        start_seconds: how long it may take to become ready for the first time.
        account: the account to change to; None keeps ours.
        folder: where it runs, and what prepares it.
    """

    name: str
    argv: tuple[str, ...]
    probe: str
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    prepare: Callable[[Run], None] | None = None
    provision: Callable[[], None] | None = None
    stop_signal: Signals = Signals.SIGTERM
    stop_seconds: float = 15.0
    start_seconds: float = 120.0
    account: Account | None = None
    # Not the current folder: an account that we change to may not be allowed in there.
    folder: Path = Path("/")

    def relies_on(self, name: str) -> bool:
        """Whether this program must stop before the one of that name."""
        return name in self.after or name in self.uses


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off between restarts, in seconds; forgotten after `healthy_seconds` of being ready."""

    first_seconds: float = 0.1
    factor: float = 2.0
    longest_seconds: float = 30.0
    healthy_seconds: float = 30.0
    # A program that never was ready is given up after so many exits: it is misconfigured, not unlucky.
    attempts_to_start: int = 3

    def delay(self, failures: int) -> float:
        """Seconds to wait after `failures` exits in a row, from 1."""
        # The exponent is bounded, or years of failures would overflow a float.
        return float(min(self.longest_seconds, self.first_seconds * self.factor ** min(failures - 1, 64)))


def launch(
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    folder: Path,
    account: Account | None,
    death_signal: Signals,
) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own that gets `death_signal` when the *calling thread* ends."""
    user, group = (account.user, account.group) if account else (-1, -1)
    prefix = (os.getpid(), death_signal.value, user, group)
    return subprocess.Popen(
        # Isolated and without site packages, Python is up in a hundredth of a second.
        [sys.executable, "-I", "-S", str(_LAUNCHER), *map(str, prefix), *argv],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
    )


def pump(process: subprocess.Popen[bytes], log: RotatingLog) -> threading.Thread:
    """Copies the output of `process` to `log` until it ends, in a thread."""

    thread = threading.Thread(target=_copy, args=(process.stdout, log), name="log", daemon=True)
    thread.start()
    return thread


def _copy(stream: IO[bytes], log: RotatingLog) -> None:
    with stream:
        while data := os.read(stream.fileno(), 65_536):
            log.write(data)


def reap(process: subprocess.Popen[bytes]) -> int:
    """Waits for `process`, kills what is left of its group, and returns its exit status."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # Not collected yet, so its number, and the group's, cannot belong to anybody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def run_once(
    argv: tuple[str, ...],
    environment: Mapping[str, str],
    folder: Path,
    account: Account | None,
    log: RotatingLog,
    interrupted: threading.Event,
    seconds: float,
) -> None:
    """Runs a program to its end, its output going to `log`.

    Raises:
        StackError: it failed, took longer than `seconds`, or `interrupted` was set.
    """
    process = launch(argv, environment, folder, account, Signals.SIGTERM)
    copying = pump(process, log)
    deadline = time.monotonic() + seconds
    while (
        not _has_ended(process.pid) and time.monotonic() < deadline and not interrupted.wait(_PROBE_SECONDS)
    ):
        pass
    if not _has_ended(process.pid):
        process.kill()
    code = reap(process)
    copying.join(timeout=1.0)
    if code != 0:
        raise StackError(f"{' '.join(argv[:5])} ended with status {code}")


class Process:
    """A program under supervision, in one thread of its own.

    The thread lives as long as the supervision, because programs die with the *thread* that started them.
    """

    def __init__(
        self, program: Program, log: RotatingLog, policy: RestartPolicy, report: Callable[[Process], None]
    ) -> None:
        self.program = program
        self.log = log
        self.state: State = "waiting"
        self.pid: int | None = None
        self.restarts = 0
        self.exit_status: int | None = None
        self.retry_seconds = 0.0
        self._policy = policy
        self._report = report
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._released = threading.Event()
        self._released.set()
        self._failures = 0
        self._thread = threading.Thread(target=self._supervise, name=program.name, daemon=True)

    def start(self) -> None:
        """Starts the program; `wait_ready` tells when it can be used."""
        self._thread.start()

    def wait_ready(self, interrupted: threading.Event | None = None) -> None:
        """Waits until the program is ready.

        Raises:
            StackError: it ended too often, or `program.start_seconds` have passed, or `interrupted` was set.
        """
        deadline = time.monotonic() + self.program.start_seconds
        with self._changed:
            while self.state != "ready":
                if interrupted is not None and interrupted.is_set():
                    raise StackError(f"{self.program.name} was interrupted while starting")
                if self._failures >= self._policy.attempts_to_start or self.state == "stopped":
                    raise StackError(f"{self.program.name} does not start: exit status {self.exit_status}")
                if time.monotonic() > deadline:
                    raise StackError(
                        f"{self.program.name} was not ready within {self.program.start_seconds:g} seconds"
                    )
                self._changed.wait(timeout=0.1)

    def send(self, signal_number: Signals) -> None:
        """Sends a signal to the program itself, if it runs."""
        with self._changed:
            if self.pid is not None:
                os.kill(self.pid, signal_number)

    def hold(self) -> None:
        """From now on an exit is not followed by a restart, until `release`."""
        self._released.clear()

    def release(self) -> None:
        """Starts a held program again (`wait_ready` tells when)."""
        self._failures = 0
        self._released.set()

    def wait_gone(self, timeout: float) -> bool:
        """Waits until the program does not run; False if it still does after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.pid is None, timeout)

    def stop(self) -> None:
        """Asks the program to stop, kills it when it takes too long, and ends the supervision."""
        self._stopping.set()
        self._released.set()
        if self._thread.is_alive():
            self.send(self.program.stop_signal)
            self._thread.join(self.program.stop_seconds)
        while self._thread.is_alive():
            self.send(Signals.SIGKILL)
            self._thread.join(1.0)

    def kill(self) -> None:
        """Kills the program at once and ends the supervision."""
        self._stopping.set()
        self._released.set()
        self.send(Signals.SIGKILL)

    def _supervise(self) -> None:
        try:
            self._keep_running()
        finally:
            self._become("stopped")

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            try:
                ready_at = self._run()
            except OSError as error:  # no process to be had just now
                self.log.write(f"cannot be started: {error}\n".encode())
                ready_at = None
            if self._stopping.is_set():
                break
            healthy = ready_at is not None and time.monotonic() - ready_at > self._policy.healthy_seconds
            self._failures = 1 if healthy else self._failures + 1
            self.restarts += 1
            self.retry_seconds = self._policy.delay(self._failures)
            self._become("restarting")
            if self._released.is_set():
                self._stopping.wait(self.retry_seconds)
            self._released.wait()

    def _run(self) -> float | None:
        """Runs the program once to its end; returns when it became ready, if it did."""
        with self._changed:
            if self._stopping.is_set():
                return None
            program = self.program
            process = launch(
                program.argv, program.environment, program.folder, program.account, program.stop_signal
            )
            self.pid = process.pid
        copying = pump(process, self.log)
        self._become("starting")
        ready_at = self._probe(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._changed:
            self.pid = None
            self.state = "restarting"
            self.exit_status = reap(process)
            self._changed.notify_all()
        copying.join(timeout=1.0)
        return ready_at

    def _probe(self, pid: int) -> float | None:
        begun = time.monotonic()
        while not _has_ended(pid):
            if is_ready(self.program.probe):
                self._become("ready")
                return time.monotonic()
            slow = time.monotonic() - begun > _PROBE_SLOWLY_AFTER_SECONDS
            time.sleep(_SLOW_PROBE_SECONDS if slow else _PROBE_SECONDS)
        return None

    def _become(self, state: State) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
        self._report(self)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
