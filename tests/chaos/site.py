"""A platform to be hurt: short leases, fault points to be armed at any time, connections that can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from guidehall.client import Client
from guidehall.client.errors import AppError, DeadlineExceeded, Unavailable
from guidehall.client.types import Job
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core import faults
from guidehall.core.auth import ON_BEHALF_OF, KeyPair, Principal, Role, TokenIssuer, encode_delegation
from guidehall.local import record
from guidehall.local.descendants import descendants
from guidehall.local.files import read_json
from guidehall.local.identity import Identity
from guidehall.local.processes import RestartPolicy
from guidehall.local.stack import Options, Stack
from tests.chaos.points import Faults
from tests.chaos.proxies import Proxies
from tests.fixtures.platform import ROOT, Platform

LEASE_SECONDS = 4.0
WORKERS = tuple(f"worker-{number}" for number in (1, 2, 3))
SERVICES = ("gateway", "trainer", "storage", "inference")
SERVERS = ("postgres", "nats", "s3")
# PostgreSQL ends connections itself when asked to.
_PROXIED = ("trainer", "storage", "nats", "s3")
_SETTINGS = {
    "PYTHONPATH": str(ROOT),
    "GUIDEHALL_SCIENCE_MODULES": "tests.toy_science",
    "GUIDEHALL_TRAINER__LEASE__SECONDS": str(LEASE_SECONDS),
    "GUIDEHALL_TRAINER__LEASE__HEARTBEAT_SECONDS": "1",
    "GUIDEHALL_TRAINER__LEASE__POLL_INTERVAL_SECONDS": "2",
    "GUIDEHALL_TRAINER__LEASE__MAX_WAIT_SECONDS": "2",
    "GUIDEHALL_TRAINER__LEASE__RETRY_FIRST_SECONDS": "0.2",
    "GUIDEHALL_TRAINER__LEASE__RETRY_LONGEST_SECONDS": "1",
    # What kills an attempt here is never the job's own fault.
    "GUIDEHALL_TRAINER__JOBS__DEFAULT_MAX_ATTEMPTS": "1000",
    "GUIDEHALL_TRAINER__JOBS__HIGHEST_MAX_ATTEMPTS": "1000",
    "GUIDEHALL_TRAINER__RELAY__CALL_SECONDS": "3",
    "GUIDEHALL_TRAINER__RELAY__CLAIM_SECONDS": "4",
    "GUIDEHALL_TRAINER__RELAY__IDLE_SECONDS": "1",
    "GUIDEHALL_TRAINER__RELAY__RETRY_LONGEST_SECONDS": "1",
    "GUIDEHALL_TRAINER__SWEEP__INTERVAL_SECONDS": "0.5",
    "GUIDEHALL_TRAINER__SWEEP__RING_AGAIN_SECONDS": "2",
    "GUIDEHALL_TRAINER__STORAGE_SECONDS": "3",
    "GUIDEHALL_WORKER__DEVICE": "cpu",
    # A killed child is soon replaced.
    "GUIDEHALL_WORKER__CHILD__PRELOAD": '["tests.toy_science.train"]',
    "GUIDEHALL_WORKER__LEASE_WAIT_SECONDS": "2",
    "GUIDEHALL_WORKER__CALLS__TIMEOUT_SECONDS": "3",
    "GUIDEHALL_WORKER__CALLS__LONGEST_RETRY_SECONDS": "1",
    "GUIDEHALL_STORAGE__UPKEEP__SWEEP_SECONDS": "1",
    "GUIDEHALL_STORAGE__UPKEEP__RETRY_SECONDS": "0.5",
    "GUIDEHALL_STORAGE__UPKEEP__MAX_RETRY_SECONDS": "1",
    # What a killed upload left is dropped after this, and no upload of the tests takes as long.
    "GUIDEHALL_STORAGE__TRANSFER__UPLOAD_SECONDS": "7",
    "GUIDEHALL_STORAGE__UPKEEP__WRITING_MAX_AGE_SECONDS": "8",
    "GUIDEHALL_STORAGE__RELAY_RETRY_SECONDS": "0.5",
}


@dataclass
class Expected:
    """How a job has to end.

    Attributes:
        states: the final states that are right.
        numbers: key of the parameters, among `Site.undisturbed`, whose result it has to have.
        model: name of the model that it trains.
    """

    states: frozenset[str]
    numbers: str
    model: str
    request_id: str


@dataclass
class Site:
    """A running platform and what is done to it.

    Attributes:
        expected: by id, every job that was submitted.
        undisturbed: by key, result document and files' SHA-256 of an undisturbed run.
    """

    platform: Platform
    faults: Faults
    proxies: Proxies
    expected: dict[str, Expected] = field(default_factory=dict)
    undisturbed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.platform.data

    def client(self) -> Client:
        """A new client."""
        return self.platform.client()

    def pid(self, part: str) -> int | None:
        """The process that is `part` now; None while it is being started again."""
        return next((s.pid for s in record.read(self.data).services if s.name == part), None)

    def send(self, part: str, number: signal.Signals, *, tree: bool = False) -> int | None:
        """Sends a signal to a part, perhaps with all that it started; the process that it was."""
        pid = self.pid(part)
        if pid is None:
            return None
        for each in (pid, *(descendants(pid) if tree else ())):
            with suppress(ProcessLookupError):
                os.kill(each, number)
        return pid

    def restart(self, part: str, seconds: float = 60.0) -> None:
        """Kills a part and returns when the next process of it is ready."""
        before = self.send(part, signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while self.pid(part) in (None, before):
            assert time.monotonic() < deadline, record.read(self.data)
            time.sleep(0.05)
        self.wait_ready(seconds)

    def children(self, worker: str) -> list[int]:
        """Processes of a worker in which pipelines run or may run."""
        pid = self.pid(worker)
        return [] if pid is None else descendants(pid)

    def resume_all(self) -> None:
        """Whatever is frozen goes on."""
        for part in (*SERVERS, *SERVICES, *WORKERS):
            self.send(part, signal.SIGCONT, tree=True)

    def down(self) -> int:
        """How many parts are not up just now."""
        return sum(service.state != "ready" for service in record.read(self.data).services)

    def wait_ready(self, seconds: float = 90.0) -> None:
        """Waits for the supervisor to have every part up."""
        deadline = time.monotonic() + seconds
        while self.down():
            assert time.monotonic() < deadline, record.read(self.data)
            time.sleep(0.1)

    def submit(
        self,
        client: Client,
        params: Mapping[str, Any],
        *,
        numbers: str,
        seed: int = 1,
        states: tuple[str, ...] = ("SUCCEEDED",),
        inputs: Mapping[str, str] | None = None,
        guest: bool = False,
    ) -> Job:
        """Submits a job, as often as it takes, in one request; of a `guest`, nobody owns it."""
        request_id = str(uuid.uuid4())
        if guest:
            job = client.job(self._submit_as_guest(params, seed, request_id))
        else:
            job = insist(
                lambda: client.submit("toy.line", params, seed=seed, inputs=inputs, request_id=request_id)
            )
        model = str(params["model_name"])
        self.expected[job.id] = Expected(frozenset(states), numbers, model, request_id)
        return job

    def _submit_as_guest(self, params: Mapping[str, Any], seed: int, request_id: str) -> str:
        """Submits a job as the gateway does it for somebody who has not logged in; its name."""
        key = KeyPair.load(Identity(self.data / "identity").key_file("gateway"))
        token = TokenIssuer("gateway", key).mint("gateway", "service", ttl_seconds=600)
        guest = encode_delegation(Principal("guest", "guest", frozenset({Role.SCIENTIST})))
        metadata = (("authorization", f"Bearer {token}"), (ON_BEHALF_OF, guest))
        request = jobs_pb2.SubmitJobRequest(pipeline="toy.line", seed=seed, request_id=request_id)
        request.params.update(params)
        target = self.platform.endpoints["trainer"].rpartition("/")[2]
        with grpc.insecure_channel(target) as channel:
            answer = jobs_pb2_grpc.JobsServiceStub(channel).SubmitJob(request, metadata=metadata, timeout=30)
        return str(answer.name)

    def learn(self, client: Client, key: str, params: Mapping[str, Any], seed: int) -> None:
        """Remembers what a job with these parameters gives when nothing disturbs it."""
        job = self.submit(client, params, numbers=key, seed=seed)
        ended = client.wait(job.id, timeout=120)
        assert ended.state.value == "SUCCEEDED", ended
        assert ended.attempt_count == 1, "the undisturbed run was disturbed"
        result = client.result(job.id)
        self.undisturbed[key] = numbers_of(result.document) | {
            "artifacts": {a.filename: a.object.sha256 for a in result.artifacts if a.filename != "job.log"},
            "weights": client.model_version(result.model_versions[0]).weights.sha256,
        }


def numbers_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what differs between jobs of one kind."""
    return {"document": {key: value for key, value in document.items() if key != "model_name"}}


def insist(call, seconds: float = 90.0):  # type: ignore[no-untyped-def]
    """Makes a call again and again while the platform is away."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (Unavailable, DeadlineExceeded):
            if time.monotonic() > deadline:
                raise
        except AppError as error:
            # Two writers met, or the server's end cut an answer short.
            if error.code.name not in {"ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN"}:
                raise
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


@contextmanager
def running_site() -> Iterator[Site]:
    """A platform with three workers, which goes with its folder."""
    folder = Path(tempfile.mkdtemp(prefix="guidehall-chaos-"))
    data = folder / "data"
    # PostgreSQL may run as another account.
    folder.chmod(0o755)
    plan = Faults(folder / "faults")
    proxies = Proxies(_PROXIED, lambda name: int(read_json(data / "ports.json")[name]))
    variables = os.environ | _SETTINGS | _through(proxies.ports) | {faults.VARIABLE: str(plan.folder)}
    options = Options(data, workers=len(WORKERS), environment=variables)
    try:
        # In this process: started again at once however often a test kills something.
        with Stack(options, policy=RestartPolicy(longest_seconds=0.3)):
            site = Site(Platform(data), plan, proxies)
            try:
                yield site
            finally:
                site.resume_all()
    finally:
        proxies.close()
        shutil.rmtree(folder, ignore_errors=True)


def _through(ports: Mapping[str, int]) -> dict[str, str]:
    """Settings by which the parts find each other behind the proxies."""
    target = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    variables = {
        "GUIDEHALL_WORKER__TRAINER__TARGET": target["trainer"],
        "GUIDEHALL_GATEWAY__TRAINER__TARGET": target["trainer"],
        "GUIDEHALL_WORKER__STORAGE__TARGET": target["storage"],
        "GUIDEHALL_TRAINER__STORAGE__TARGET": target["storage"],
        "GUIDEHALL_STORAGE__S3__ENDPOINT": target["s3"],
    }
    for service in ("TRAINER", "STORAGE", "WORKER"):
        variables[f"GUIDEHALL_{service}__NATS__URL"] = f"nats://{target['nats']}"
    return variables
