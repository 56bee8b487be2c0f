"""Seeded storms: small jobs on three workers while every process is killed, frozen, restarted and cut off.

`GUIDEHALL_CHAOS_SEEDS=1,2,3` for other seeds than 1, `GUIDEHALL_CHAOS_JOBS` for other than 200 jobs.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest

from guidehall.client import Client
from guidehall.client.errors import FailedPrecondition, Unimplemented
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core.errors import from_rpc_error
from tests.chaos.checker import connect, settled_findings
from tests.chaos.report import Fault, Report, Storm
from tests.chaos.site import LEASE_SECONDS, SERVERS, WORKERS, Site, insist

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

SEEDS = [int(text) for text in os.environ.get("GUIDEHALL_CHAOS_SEEDS", "1").split(",")]
JOBS = int(os.environ.get("GUIDEHALL_CHAOS_JOBS", "200"))
# Submitted after each fault, so that every fault meets some.
JOBS_A_FAULT = 3
KINDS = 6
# Faults end after this, whatever has not ended; then everything has to.
STORM_SECONDS = 420.0
SETTLE_SECONDS = 240.0
# No further fault while more parts than this are down, for at most so long.
MOST_DOWN = 2
RECOVERY_SECONDS = 20.0
_RESTARTED = (*WORKERS, "trainer", "storage", *SERVERS, "gateway")
# How often each is done, after each was done once.
DEEDS: dict[tuple[str, str], float] = {
    **dict.fromkeys([("kill", worker) for worker in WORKERS], 4),
    **dict.fromkeys([("kill the child of", worker) for worker in WORKERS], 2),
    **dict.fromkeys([("freeze", worker) for worker in WORKERS], 2),
    **dict.fromkeys([("kill", "trainer"), ("kill", "storage")], 4),
    **dict.fromkeys([("kill", server) for server in SERVERS], 1),
    **dict.fromkeys([("freeze", part) for part in ("trainer", "storage", *SERVERS)], 1),
    **dict.fromkeys([("restart", part) for part in _RESTARTED], 1),
    **dict.fromkeys([("cut off", part) for part in ("trainer", "storage", *SERVERS)], 2),
    ("kill", "gateway"): 1,
    # It takes long to start, and no job needs it.
    ("kill", "inference"): 0,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_in_a_storm(site: Site, report: Report, seed: int) -> None:
    site.wait_ready()
    storm = _Storming(site, random.Random(seed), f"storm-{seed}")
    began = time.monotonic()
    with site.client() as client:
        storm.learn(client)
        storm.rage(client)
    site.resume_all()
    site.wait_ready()
    found = settled_findings(site, SETTLE_SECONDS)
    with site.client() as client:
        ended = [job for job in client.jobs() if job.id in storm.jobs]
    outcome = dict(Counter(job.state.value for job in ended))
    attempts = sum(job.attempt_count for job in ended)
    seconds = time.monotonic() - began
    report.storms.append(Storm(seed, len(storm.jobs), outcome, attempts, seconds, storm.faults, found))
    assert found == []
    assert sum(outcome.values()) == JOBS
    # A storm, and not a breeze.
    assert storm.first == []
    assert attempts > len(storm.jobs)


@dataclass
class _Storming:
    """One storm; every choice comes from one generator."""

    site: Site
    rng: random.Random
    name: str
    jobs: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    # What is to be asked of jobs: when, by the monotonic clock, and what.
    errands: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    kinds: list[dict[str, Any]] = field(default_factory=list)
    # Not done yet.
    first: list[tuple[str, str]] = field(default_factory=lambda: list(DEEDS))
    can_pause: bool = True

    @property
    def _wrong(self) -> str:
        return f"{self.name}-wrong"

    def learn(self, client: Client) -> None:
        """Runs one job of each kind undisturbed, and leaves what jobs fail of."""
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3), allow_pickle=False)
        client.upload_dataset(buffer.getvalue(), self._wrong, filename="points.npy")
        rng = self.rng
        for kind in range(KINDS):
            params = {
                "steps": rng.randrange(4, 30),
                "step_seconds": round(rng.uniform(0.0, 0.08), 3),
                "checkpoint_every": rng.randrange(2, 7),
                "slope": round(rng.uniform(-5, 5), 3),
            }
            self.kinds.append({"params": params, "seed": rng.randrange(1, 1000)})
            quick = params | {"model_name": f"{self.name}-undisturbed-{kind}", "step_seconds": 0.0}
            self.site.learn(client, f"{self.name}-{kind}", quick, self.kinds[kind]["seed"])

    def rage(self, client: Client) -> None:
        """Submits jobs and does harm, until all jobs have ended or it has lasted long enough."""
        deadline = time.monotonic() + STORM_SECONDS
        self.rng.shuffle(self.first)
        while time.monotonic() < deadline:
            for _ in range(min(JOBS_A_FAULT, JOBS - len(self.jobs))):
                self._submit(client)
            self._run_errands()
            self._do_next()
            time.sleep(self.rng.uniform(0.3, 1.8))
            # However slow the machine is: a platform that is never up does no work that could go wrong.
            self._until_most_are_up()
            if len(self.jobs) == JOBS and not self.errands and not self.first and self._all_ended():
                break
        while len(self.jobs) < JOBS:
            self._submit(client)
        self._run_errands(everything=True)

    # Jobs -------------------------------------------------------------------------------------------------

    def _submit(self, client: Client) -> None:
        number = len(self.jobs)
        kind = self.rng.randrange(KINDS)
        params = self.kinds[kind]["params"] | {"model_name": f"{self.name}-{number}"}
        fate = self.rng.choices(["run", "err", "cancel", "pause"], [70, 8, 12, 10])[0]
        states = ("FAILED",) if fate == "err" else ("SUCCEEDED",)
        inputs = {}
        if fate == "err":
            # It reads points of another shape than it can use.
            params["from_dataset"] = True
            inputs["points"] = self._wrong
        numbers, seed = f"{self.name}-{kind}", self.kinds[kind]["seed"]
        job = self.site.submit(client, params, numbers=numbers, seed=seed, states=states, inputs=inputs)
        self.jobs.append(job.id)
        later = time.monotonic() + self.rng.uniform(0.0, 5.0)
        if fate == "cancel":
            self.errands.append((later, lambda: self._cancel(client, job.id)))
        if fate == "pause":
            self.errands.append((later, lambda: self._ask("PauseJob", job.name)))
            resume = later + self.rng.uniform(0.0, 4.0)
            self.errands.append((resume, lambda: self._ask("ResumeJob", job.name)))

    def _run_errands(self, *, everything: bool = False) -> None:
        self.errands.sort(key=lambda errand: errand[0])
        while self.errands and (everything or self.errands[0][0] <= time.monotonic()):
            self.errands.pop(0)[1]()

    def _cancel(self, client: Client, job: str) -> None:
        answer = insist(lambda: client.cancel(job))
        if answer.desired_state == "CANCEL":
            # The promise that nothing is kept.
            self.site.expected[job].states = frozenset({"CANCELLED"})

    def _ask(self, method: str, name: str) -> None:
        """Pauses or resumes; one that has ended is not paused any more."""

        def ask() -> None:
            with grpc.insecure_channel(self.site.platform.endpoints["trainer"]) as channel:
                request = getattr(jobs_pb2, f"{method}Request")(name=name)
                try:
                    getattr(jobs_pb2_grpc.JobsServiceStub(channel), method)(request, timeout=10)
                except grpc.RpcError as error:
                    raise from_rpc_error(error) from error

        if not self.can_pause:
            return
        try:
            insist(ask)
        except Unimplemented:
            self.can_pause = False
        except FailedPrecondition as error:
            assert error.reason == "JOB_STATE"  # noqa: PT017

    def _all_ended(self) -> bool:
        held = self._count("end_reason IS NULL")
        return held == 0

    def _count(self, condition: str) -> int:
        """How many jobs; -1 when the database does not answer just now."""
        return self._ask_database(f"SELECT count(*) FROM trainer.jobs WHERE {condition}")  # noqa: S608

    def _ask_database(self, sql: str) -> int:
        """A number, from PostgreSQL as its superuser; -1 when it does not answer just now."""

        async def ask() -> int:
            connection = await connect(self.site, "trainer")
            try:
                return int(await connection.fetchval(sql, timeout=2))
            finally:
                await connection.close(timeout=1)

        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return asyncio.run(asyncio.wait_for(ask(), 3))
        return -1

    # Harm -------------------------------------------------------------------------------------------------

    def _do_next(self) -> None:
        """Each deed once, and then any."""
        if not self.first:
            self._do(*self.rng.choices(list(DEEDS), list(DEEDS.values()))[0])
            return
        deed = next((deed for deed in self.first if self._do(*deed)), None)
        if deed is not None:
            self.first.remove(deed)

    def _do(self, action: str, part: str) -> bool:
        """Whether there was something to do it to."""
        site = self.site
        running = self._count("state IN ('LEASED', 'RUNNING')")
        pid = site.pid(part)
        if pid is None:
            return False
        phase = site.faults.phase(pid) or site.faults.phase()
        began = time.time()
        match action:
            case "kill":
                pid = site.send(part, signal.SIGKILL)
            case "restart":
                # PostgreSQL waits for its clients to leave if asked politely.
                number = signal.SIGINT if part == "postgres" else signal.SIGTERM
                pid = site.send(part, number)
            case "kill the child of":
                for child in site.children(part):
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            case "freeze":
                # A worker's child goes on, and the worker past its lease.
                self._freeze(part, self.rng.uniform(1.0, 1.6 * LEASE_SECONDS))
            case "cut off":
                pid = self._cut_off(part)
        if pid is None:
            return False
        self.faults.append(Fault(began, part, action, phase, running))
        return True

    def _cut_off(self, part: str) -> int | None:
        """Breaks every connection to a part; None when there was none."""
        if part != "postgres":
            return self.site.proxies.cut(part) or None
        broken = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE 'guidehall_%'"
        )
        return max(0, self._ask_database(broken)) or None

    def _until_most_are_up(self) -> None:
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self.site.down() > MOST_DOWN and time.monotonic() < deadline:
            time.sleep(0.1)

    def _freeze(self, part: str, seconds: float) -> None:
        site = self.site
        tree = part in SERVERS
        site.send(part, signal.SIGSTOP, tree=tree)
        timer = threading.Timer(seconds, lambda: site.send(part, signal.SIGCONT, tree=tree))
        timer.daemon = True
        timer.start()
