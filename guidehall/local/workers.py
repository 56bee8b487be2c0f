"""Workers on this machine for a platform that runs here or elsewhere: started, kept running, stopped."""

from __future__ import annotations

import os
import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guidehall.client._config import Credentials, Tls
from guidehall.client._endpoints import Endpoint, Endpoints
from guidehall.client._steps import Call, Rpc
from guidehall.client._sync_driver import SyncDriver
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core.errors import AppError, InvalidArgument
from guidehall.local.errors import Interrupted
from guidehall.local.files import Secrets
from guidehall.local.foreground import run_until_told
from guidehall.local.ports import Ports
from guidehall.local.processes import Program
from guidehall.local.services import WORKER_DRAIN_SECONDS, find_root, worker_program
from guidehall.local.supervisor import Report, Supervisor

_POOL = r"[a-z0-9][a-z0-9-]{0,62}"
_CREDENTIAL_SECONDS = 30 * 86_400
_CALL_SECONDS = 30.0
_CREATE = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "CreateWorkerCredential")
_REVOKE = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "RevokeWorkerCredential")


@dataclass(frozen=True)
class Options:
    """What the person at the terminal chose.

    Attributes:
        pool: whose jobs they run.
        count: how many they are.
        endpoints: addresses of the services, or where they are written down; None looks for them.
        token: of who makes a credential for them; None looks for it.
        credential_file: a credential of the pool; None makes one that ends with the workers.
        environment: variables; GUIDEHALL_WORKER__... override what is set here.
    """

    pool: str
    count: int = 1
    endpoints: Mapping[str, str] | str | None = None
    token: str | None = None
    credential_file: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        if not re.fullmatch(_POOL, self.pool):
            raise InvalidArgument.field("pool", self.pool, f"a name like {_POOL}")
        if self.count < 1:
            raise InvalidArgument.field("count", self.count, "1 or more")


class Workers:
    """Some workers, and their folder for as long as they run."""

    def __init__(self, options: Options, report: Report = print) -> None:
        self._options = options
        self._report = report
        self._stack = ExitStack()
        self._supervisor: Supervisor | None = None
        self._asked = threading.Event()

    def start(self) -> None:
        """Starts them and returns when they run; they look for the platform until it is there.

        Raises:
            Unavailable, Unauthenticated, PermissionDenied: no credential can be made for them.
            StackError: one does not start; none is left running.
            Interrupted: `interrupt` was called meanwhile; none is left running.
        """
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise

    def _start(self) -> None:
        options = self._options
        endpoints = Endpoints.find(options.endpoints)
        targets = {name: endpoints[name] for name in ("trainer", "storage")}
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="guidehall-workers-")))
        credential = options.credential_file or self._make_credential(endpoints, folder)
        if not credential.is_file():
            raise InvalidArgument.field("credential_file", str(credential), "the path of a file")
        ports = self._stack.enter_context(Ports(None))
        self._supervisor = Supervisor(folder / "logs", report=self._report)
        if self._asked.is_set():
            raise Interrupted("the workers were not started")
        self._supervisor.start(
            [
                self._program(number, targets, credential, folder, ports)
                for number in range(1, options.count + 1)
            ]
        )

    def _program(
        self, number: int, targets: Mapping[str, Endpoint], credential: Path, folder: Path, ports: Ports
    ) -> Program:
        settings = {
            "POOL": self._options.pool,
            "CREDENTIAL_FILE": str(credential.resolve()),
            "TEMP_DIR": str(folder),
        }
        for name, endpoint in targets.items():
            settings[f"{name.upper()}__TARGET"] = endpoint.address
            if endpoint.secure:
                settings[f"{name.upper()}__TLS__CA_FILE"] = self._authorities()
        return worker_program(
            f"worker-{number}",
            settings,
            ops_port=ports.choose(f"worker-{number}-ops", 7230 + number),
            root=find_root(),
            sharers=self._options.count,
            inherited=self._options.environment,
        )

    def _authorities(self) -> str:
        """Who may have signed the certificates of services elsewhere."""
        system = ssl.get_default_verify_paths().cafile or ""
        return self._options.environment.get("GUIDEHALL_CA_FILE") or system

    def _make_credential(self, endpoints: Endpoints, folder: Path) -> Path:
        """A credential for these workers alone, revoked when they have stopped."""
        driver = SyncDriver(
            endpoints, Credentials.find(self._options.token), Tls.from_environment(self._options.environment)
        )
        self._stack.callback(driver.close)
        request = workers_pb2.CreateWorkerCredentialRequest(
            parent=f"pools/{self._options.pool}",
            note=f"guidehall worker on {socket.gethostname()}",
            ttl_seconds=_CREDENTIAL_SECONDS,
        )
        made = driver.run(_ask(_CREATE, request))
        self._stack.callback(self._revoke, driver, made.credential.name)
        return Secrets(folder / "secrets").keep("worker.credential", made.token)

    def _revoke(self, driver: SyncDriver, name: str) -> None:
        try:
            driver.run(_ask(_REVOKE, workers_pb2.RevokeWorkerCredentialRequest(name=name)))
        except AppError as error:
            self._report(f"{name} could not be revoked: {error.message}")

    def stop(self) -> None:
        """Stops them in reverse: each hands its job back at its next step, within the time for draining."""
        if self._supervisor is not None:
            self._supervisor.stop()
        self._stack.close()

    def wait(self) -> None:
        """Returns when `interrupt` is called."""
        self._asked.wait()

    def interrupt(self) -> None:
        """Ends `wait`, and `start` with Interrupted; may be called from any thread."""
        self._asked.set()
        if self._supervisor is not None:
            self._supervisor.interrupted.set()

    def kill(self) -> None:
        """Kills them: their jobs go on elsewhere when their leases have run out."""
        if self._supervisor is not None:
            self._supervisor.kill()


def run(options: Options, report: Report = print, ready: Callable[[], None] = lambda: None) -> None:
    """Runs workers until this process is told to end; to be called by the main thread.

    Args:
        options: which, and for whom.
        report: gets lines for people.
        ready: called once they run.

    Raises:
        As `Workers.start`; KeyboardInterrupt where it was told to end before they ran.
    """

    def started() -> None:
        report(f"{options.count} at work for pool {options.pool}; Ctrl-C stops them")
        ready()

    stopping = f"stopping within {WORKER_DRAIN_SECONDS:g} s"
    run_until_told(Workers(options, report), started, stopping, report)


def _ask(rpc: Rpc, request: Any) -> Generator[Call, Any, Any]:
    """One call."""
    answer = yield Call(rpc, request, _CALL_SECONDS)
    return answer
