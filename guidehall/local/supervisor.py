"""Starts programs in the order of their needs, as many at once as those allow, and stops them in reverse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from guidehall.local.errors import Interrupted, StackError
from guidehall.local.logfiles import RotatingLog
from guidehall.local.loglines import brief
from guidehall.local.processes import Account, Process, Program, RestartPolicy, Run, run_once

_LOG_LINES_SHOWN = 15

# Gets one line for people at each step, from any thread.
Report = Callable[[str], None]


def silent(line: str) -> None:
    """Reports nothing."""


class Supervisor:
    """A tree of supervised programs.

    Args:
        log_folder: where each program's log goes.
        policy: how crashed programs are restarted.
        report: gets one line for people at each step, from any thread.
        changed: called whenever the state of a program changed, from any thread.
        prepare_seconds: how long each program that prepares another may run, such as a migration.
    """

    def __init__(
        self,
        log_folder: Path,
        policy: RestartPolicy | None = None,
        report: Report = silent,
        changed: Callable[[], None] = lambda: None,
        prepare_seconds: float = 120.0,
    ) -> None:
        self.processes: dict[str, Process] = {}
        self.interrupted = threading.Event()
        self._log_folder = log_folder
        self._policy = policy or RestartPolicy()
        self._report = report
        self._changed = changed
        self._prepare_seconds = prepare_seconds
        self._logs: dict[str, RotatingLog] = {}
        self._stopping = False

    def log(self, name: str) -> RotatingLog:
        """The log of the program `name`."""
        if name not in self._logs:
            self._logs[name] = RotatingLog(self._log_folder / f"{name}.log")
        return self._logs[name]

    def start(self, programs: Iterable[Program]) -> None:
        """Starts programs, given in an order in which each comes after those that it needs.

        Raises:
            StackError: one of them does not start; nothing is left running.
            Interrupted: `interrupted` was set; nothing is left running.
        """
        planned = list(programs)
        for program in planned:
            self.processes[program.name] = Process(
                program, self.log(program.name), self._policy, self._process_changed
            )
        starts: dict[str, Future[None]] = {}
        try:
            with ThreadPoolExecutor(len(planned), "start") as pool:
                for program in planned:
                    needs = [starts[name] for name in program.after if name in starts]
                    starts[program.name] = pool.submit(self._start_one, program, needs)
                self._watch(starts.values())
            errors = [error for future in starts.values() if (error := future.exception())]
            # The reason, rather than what was interrupted because of it.
            for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
                raise error
        except BaseException:
            self.stop()
            raise

    def _watch(self, starts: Iterable[Future[None]]) -> None:
        """Waits for all starts, and interrupts them when one fails or somebody loses patience (Ctrl-C)."""
        try:
            done, _ = wait(starts, return_when=FIRST_EXCEPTION)
        except BaseException:
            self.interrupted.set()
            raise
        if any(future.exception() for future in done):
            self.interrupted.set()

    def stop(self) -> None:
        """Stops everything, each program after those that need it."""
        self.interrupted.set()
        self._stopping = True
        processes = self.processes
        stops: dict[str, Future[None]] = {}
        if processes:
            with ThreadPoolExecutor(len(processes), "stop") as pool:
                for name in reversed(processes):
                    needed_by = [
                        stop for other, stop in stops.items() if processes[other].program.relies_on(name)
                    ]
                    stops[name] = pool.submit(self._stop_one, processes[name], needed_by)
        for log in self._logs.values():
            log.close()
        for future in stops.values():
            future.result()

    def kill(self) -> None:
        """Kills everything at once, such as when `stop` takes too long for somebody."""
        self.interrupted.set()
        self._stopping = True
        for process in self.processes.values():
            process.kill()

    def _start_one(self, program: Program, needs: list[Future[None]]) -> None:
        wait(needs)
        if self.interrupted.is_set() or any(need.exception() for need in needs):
            raise Interrupted(f"{program.name} was not started")
        begun = time.monotonic()
        process = self.processes[program.name]
        try:
            if program.prepare is not None:
                program.prepare(self._runner(program))
            process.start()
            process.wait_ready(self.interrupted)
            if program.provision is not None:
                program.provision()
        except StackError as error:
            if self.interrupted.is_set():
                raise Interrupted(f"{program.name} was interrupted") from error
            raise StackError(f"{error}\n{self._end_of_log(program.name)}") from error
        self._report(f"{program.name:<11} ready  {time.monotonic() - begun:4.1f} s  {program.probe}")

    def _runner(self, program: Program) -> Run:
        log = self.log(program.name)

        def run(
            argv: tuple[str, ...], environment: Mapping[str, str], account: Account | None = None
        ) -> None:
            run_once(argv, environment, program.folder, account, log, self.interrupted, self._prepare_seconds)

        return run

    def _end_of_log(self, name: str) -> str:
        log = self.log(name)
        lines = "\n".join(f"  {brief(line)}" for line in log.recent_lines(_LOG_LINES_SHOWN))
        return f"the end of {log.path}:\n{lines}"

    def _stop_one(self, process: Process, needed_by: list[Future[None]]) -> None:
        wait(needed_by)
        was_running = process.pid is not None
        process.stop()
        if was_running:
            self._report(f"{process.program.name:<11} stopped")

    def _process_changed(self, process: Process) -> None:
        if process.state == "restarting" and not self._stopping and not self.interrupted.is_set():
            self._report(
                f"{process.program.name:<11} ended with status {process.exit_status}; "
                f"starting it again in {process.retry_seconds:.1f} s"
            )
        self._changed()
