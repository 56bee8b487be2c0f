"""The whole platform on one machine: what `guidehall up` starts and stops."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guidehall.client._endpoints import data_folder
from guidehall.local import record, services
from guidehall.local.access import Backing
from guidehall.local.backing import NATS_MONITOR_PORT, NATS_PORT, POSTGRES_PORT, S3_PORT
from guidehall.local.errors import Interrupted, StackError
from guidehall.local.external import (
    NATS_VARIABLE,
    POSTGRES_VARIABLE,
    S3_VARIABLE,
    ExternalNats,
    ExternalPostgres,
    ExternalS3,
)
from guidehall.local.files import Secrets, write_json
from guidehall.local.foreground import run_until_told
from guidehall.local.identity import Identity
from guidehall.local.lock import FolderLock
from guidehall.local.logfiles import RotatingLog
from guidehall.local.nats import NatsServer
from guidehall.local.ports import Ports
from guidehall.local.postgres import PostgresServer
from guidehall.local.processes import RestartPolicy
from guidehall.local.s3 import S3Server
from guidehall.local.supervisor import Report, Supervisor, silent

ENDPOINTS = "endpoints.json"
SUPERVISOR_LOG = "supervisor"
AUTH_MODES = ("single", "proxy", "token")
_DATABASES = tuple(services.DATABASES.values())


@dataclass(frozen=True)
class Options:
    """What the person at the terminal chose.

    Attributes:
        data: the folder of everything the stack keeps.
        workers: number of training workers.
        auth_mode: who is who: "single", "proxy" or "token".
        environment: variables; those of external servers and of single services count.
    """

    data: Path = field(default_factory=data_folder)
    workers: int = 1
    auth_mode: str = "single"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise StackError(f"workers: got {self.workers}; a number from 0 on")
        if self.auth_mode not in AUTH_MODES:
            raise StackError(f"auth mode: got {self.auth_mode!r}; one of {', '.join(AUTH_MODES)}")


class Stack:
    """The platform below one data folder; a context manager that starts and stops it.

    Only one process at a time has a stack of a folder.
    """

    def __init__(
        self, options: Options, report: Report = silent, policy: RestartPolicy | None = None
    ) -> None:
        self.options = options
        self.endpoints: dict[str, object] = {}
        self._print = report
        self._data = options.data.expanduser().resolve()
        self._done = threading.Event()
        self._supervisor = Supervisor(self._data / "logs", policy, self._report, self._record)
        self._log: RotatingLog | None = None
        self._lock: FolderLock | None = None
        self._recorder: record.Recorder | None = None
        self._ports: Ports | None = None

    def start(self) -> None:
        """Starts everything and returns when it is ready.

        Raises:
            AlreadyRunning: another process runs the stack of this folder.
            StackError: something does not start; nothing is left running.
            Interrupted: `interrupt` was called meanwhile; nothing is left running.
        """
        if platform.system() != "Linux":
            raise StackError("the stack of one machine needs Linux; elsewhere run it in a container")
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FolderLock(self._data)
        except OSError as error:
            raise StackError(f"{self._data} cannot be the data folder: {error.strerror}") from error
        try:
            self._start()
        except (Interrupted, KeyboardInterrupt):
            self._end("stopped")
            raise
        except BaseException as error:
            self._end("failed", str(error))
            raise

    def stop(self) -> None:
        """Stops everything, in reverse order, within the bounds that the programs have."""
        self._record("stopping")
        self._supervisor.stop()
        self._end("stopped")

    def wait(self) -> None:
        """Returns when `interrupt` is called."""
        self._done.wait()

    def interrupt(self) -> None:
        """Ends `wait`, and `start` with Interrupted; may be called from any thread."""
        self._supervisor.interrupted.set()
        self._done.set()

    def kill(self) -> None:
        """Kills everything, for those who do not want to wait for `stop`."""
        self._supervisor.kill()

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self) -> None:
        record.end_leftovers(self._data)
        (self._data / ENDPOINTS).unlink(missing_ok=True)
        self._log = self._supervisor.log(SUPERVISOR_LOG)
        self._recorder = record.Recorder(self._data)
        self._record("starting")
        secrets = Secrets(self._data / "secrets")
        identity = Identity(self._data / "identity")
        identity.ensure()
        ports = self._ports = Ports(self._data / "ports.json")
        backing = _backing(self._data, ports, secrets, self.options.environment, self._report)
        site = services.Site(
            data=self._data,
            root=services.find_root(),
            ports=ports,
            identity=identity,
            backing=backing,
            workers=self.options.workers,
            auth_mode=self.options.auth_mode,
            inherited=self.options.environment,
        )
        # Jobs that a killed worker was running left these; nothing runs now.
        shutil.rmtree(site.temporary, ignore_errors=True)
        site.temporary.mkdir(mode=0o700)
        self._supervisor.start([*backing.programs, *services.programs(site)])
        self.endpoints = services.endpoints(site)
        if credentials := services.write_credentials(site):
            self.endpoints["credentials"] = credentials
        write_json(self._data / ENDPOINTS, self.endpoints, mode=0o644)
        self._record("ready")

    def _end(self, stage: str, error: str = "") -> None:
        (self._data / ENDPOINTS).unlink(missing_ok=True)
        self._record(stage, error)
        if self._ports is not None:
            self._ports.close()
            self._ports = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _report(self, line: str) -> None:
        if self._log is not None:
            self._log.write(f"{line}\n".encode())
        self._print(line)

    def _record(self, stage: str | None = None, error: str = "") -> None:
        if self._recorder is not None:
            self._recorder.write(list(self._supervisor.processes.values()), stage, error)


def up(options: Options, report: Report = print, ready: Callable[[], None] = lambda: None) -> None:
    """Runs the stack until this process is told to end; to be called by the main thread.

    Args:
        options: what to run.
        report: gets lines for people.
        ready: called once everything is ready.

    Raises:
        AlreadyRunning: another process runs the stack of this folder.
        StackError: something does not start; nothing is left running.
        KeyboardInterrupt: it was told to end before it was ready; nothing is left running.
    """
    stack = Stack(options, report)

    def started() -> None:
        report(summary(stack.endpoints))
        report("  Ctrl-C stops everything; what it keeps stays\n")
        ready()

    run_until_told(stack, started, "stopping", report)


def summary(endpoints: Mapping[str, object]) -> str:
    """Lines for people that say where everything is."""
    names = ("gateway", "trainer", "storage", "inference")
    lines = [f"  {name:<10} {endpoints[name]}" for name in names]
    credentials = endpoints.get("credentials")
    if isinstance(credentials, Mapping):
        lines += [
            "",
            f"  an administrator's token, which guidehall reads by itself: {credentials['token_file']}",
        ]
        if secret := credentials.get("proxy_secret_file"):
            lines.append(f"  what the proxy sends in X-Guidehall-Proxy-Secret: {secret}")
    return "\n".join(["", *lines, ""])


def _backing(
    folder: Path, ports: Ports, secrets: Secrets, variables: Mapping[str, str], report: Report
) -> Backing:
    """Servers of our own, but for those that `variables` say run elsewhere: these are only checked.

    Raises:
        StackError: a server elsewhere cannot be reached, or refuses.
    """
    programs = []
    postgres: PostgresServer | ExternalPostgres
    if url := variables.get(POSTGRES_VARIABLE):
        postgres = ExternalPostgres(url, secrets)
        postgres.provide(_DATABASES)
    else:
        server = PostgresServer(folder, ports.choose("postgres", POSTGRES_PORT), secrets)
        programs.append(dataclasses.replace(server.program(), provision=lambda: server.provide(_DATABASES)))
        postgres = server
        if server.is_new and not server.home.is_relative_to(folder):
            report(f"postgres keeps its data in {server.home}: it may not run as root, nor enter {folder}")
    nats: NatsServer | ExternalNats
    if url := variables.get(NATS_VARIABLE):
        nats = ExternalNats(url, secrets)
        nats.check()
    else:
        monitor_port = ports.choose("nats-monitor", NATS_MONITOR_PORT)
        nats = NatsServer(folder, ports.choose("nats", NATS_PORT), monitor_port, secrets)
        programs.append(nats.program())
    s3: S3Server | ExternalS3
    if url := variables.get(S3_VARIABLE):
        s3 = ExternalS3(url, secrets)
        s3.check()
    else:
        s3 = S3Server(folder, ports.choose("s3", S3_PORT), secrets)
        programs.append(s3.program())
    return Backing(
        tuple(programs), postgres.access, nats.access, s3.access(), postgres.run_sql, postgres.generation
    )
