"""PostgreSQL, NATS and S3 together: the servers that the services stand on, usable alone in tests."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Literal

from guidehall.local.descendants import descendants
from guidehall.local.files import Secrets
from guidehall.local.nats import NatsServer
from guidehall.local.ports import Ports
from guidehall.local.postgres import Database, PostgresServer
from guidehall.local.processes import RestartPolicy
from guidehall.local.s3 import S3Server
from guidehall.local.supervisor import Report, Supervisor, silent

Name = Literal["postgres", "nats", "s3"]

POSTGRES_PORT = 7432
NATS_PORT = 7422
NATS_MONITOR_PORT = 7423
S3_PORT = 7490


class BackingServers:
    """Real backing servers below one folder; a context manager that starts and stops them.

    Attributes:
        folder: where everything is kept.
        postgres: `host`, `port`, `user` and `password` of the superuser.
        nats: `url`, `user` (may do everything), `password(user)`.
        s3: `endpoint` (host:port), `access_key`, `secret_key`.

    Args:
        folder: where to keep everything; it must exist.
        usual_ports: whether to begin at the usual ports rather than at any free ones.
        durable: False gives up safety against power loss for speed.
        report: gets one line for people at each step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        usual_ports: bool = False,
        durable: bool = False,
        report: Report = silent,
    ) -> None:
        ports = self._ports = Ports(folder / "ports.json", usual_ports)
        secrets = Secrets(folder / "secrets")
        policy = RestartPolicy(longest_seconds=1.0)
        self._supervisor = Supervisor(folder / "logs", policy, report)
        self._secrets = secrets
        self.folder = folder
        self.postgres = PostgresServer(folder, ports.choose("postgres", POSTGRES_PORT), secrets, durable)
        self.nats = NatsServer(
            folder, ports.choose("nats", NATS_PORT), ports.choose("nats-monitor", NATS_MONITOR_PORT), secrets
        )
        self.s3 = S3Server(folder, ports.choose("s3", S3_PORT), secrets)

    def start(self) -> None:
        """Starts all three and returns when they are ready.

        Raises:
            StackError: one of them does not start; nothing is left running.
        """
        try:
            self._supervisor.start([self.postgres.program(), self.nats.program(), self.s3.program()])
        except BaseException:
            self._ports.close()
            raise

    def stop(self) -> None:
        """Stops all three."""
        self._supervisor.stop()
        self._ports.close()

    def __enter__(self) -> BackingServers:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def create_database(self, name: str) -> Database:
        """Makes a database that belongs to a role of the same name."""
        return self.postgres.create_database(name, self._secrets.text(f"postgres-{name}"))

    def create_bucket(self, name: str) -> str:
        """Makes a bucket, if it is not there, and returns its name."""
        return self.s3.create_bucket(name)

    def probe(self, name: Name) -> str:
        """The URL by which `probes.is_ready` tells whether a server is ready."""
        return self._supervisor.processes[name].program.probe

    def kill(self, name: Name, signal: Signals = Signals.SIGKILL) -> None:
        """Ends a server by a signal and returns when it is gone; it stays away until `restart`."""
        process = self._supervisor.processes[name]
        process.hold()
        process.send(signal)
        if not process.wait_gone(timeout=30.0):
            raise TimeoutError(f"{name} outlived {signal.name}")

    def restart(self, name: Name) -> None:
        """Starts a server again, after ending it if it runs, and returns when it is ready."""
        process = self._supervisor.processes[name]
        if process.pid is not None:
            self.kill(name, process.program.stop_signal)
        process.release()
        process.wait_ready()

    def pause(self, name: Name) -> None:
        """Freezes a server: it keeps its connections and answers nothing until `resume`."""
        self._send_to_tree(name, Signals.SIGSTOP)

    def resume(self, name: Name) -> None:
        """Lets a paused server go on."""
        self._send_to_tree(name, Signals.SIGCONT)

    def _send_to_tree(self, name: Name, signal: Signals) -> None:
        process = self._supervisor.processes[name]
        if process.pid is not None:
            for pid in (process.pid, *descendants(process.pid)):
                # PostgreSQL's own processes come and go.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal)
