"""Watchers that come back again and again, while what they watch through is killed, see every event once."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import httpx
import pytest

from guidehall.client import JobState
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from tests.chaos.checker import settled_findings
from tests.chaos.site import Site, insist

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

RECONNECTIONS = 50
VICTIMS = ("gateway", "trainer", "nats")
KILL_EVERY_SECONDS = 3.0
# A watcher that has seen so many on one connection hangs up, unless that broke before.
SEEN_A_CONNECTION = 3
LONGEST_SECONDS = 400.0


@dataclass
class Watcher:
    """Sees events through `connect(after_seq)`, which gives (seq, kind) until the connection ends.

    Attributes:
        seen: in the order in which they came.
        hung_up: connections that the watcher ended itself; `broken`: those that others ended.
    """

    connect: Callable[[int], Iterator[tuple[int, str]]]
    seen: list[tuple[int, str]] = field(default_factory=list)
    hung_up: int = 0
    broken: int = 0
    enough: threading.Event = field(default_factory=threading.Event)

    def watch(self, stop: threading.Event) -> None:
        """Watches until `stop` is set and the job is over."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < deadline:
            after = self.seen[-1][0] if self.seen else 0
            limit = None if stop.is_set() else SEEN_A_CONNECTION
            before = len(self.seen)
            try:
                self.seen += itertools.islice(self.connect(after), limit)
                if limit is None and self.seen[-1][1] == "end":
                    return
            except (grpc.RpcError, httpx.HTTPError):
                self.broken += 1
                time.sleep(0.1)
            else:
                self.hung_up += 1
                if len(self.seen) == before:
                    time.sleep(0.1)
            if self.hung_up + self.broken >= RECONNECTIONS:
                self.enough.set()
        raise AssertionError(f"the job did not end within {LONGEST_SECONDS:g} s")


def test_fifty_reconnections_across_restarts_lose_and_double_nothing(site: Site) -> None:
    site.wait_ready()
    with site.client() as client:
        params = {"model_name": "watched", "steps": 100_000, "step_seconds": 0.05, "checkpoint_every": 40}
        job = site.submit(client, params, numbers="", states=("CANCELLED",))
        watchers = [Watcher(_by_grpc(site, job.name)), Watcher(_by_sse(site, job.id))]
        stop = threading.Event()
        killed: list[str] = []
        with ThreadPoolExecutor(len(watchers)) as pool:
            watching = [pool.submit(watcher.watch, stop) for watcher in watchers]
            victims = itertools.cycle(VICTIMS)
            while not all(w.enough.is_set() or f.done() for w, f in zip(watchers, watching, strict=True)):
                victim = next(victims)
                if site.send(victim, signal.SIGKILL) is not None:
                    killed.append(victim)
                time.sleep(KILL_EVERY_SECONDS)
            insist(lambda: client.cancel(job.id))
            stop.set()
            for future in watching:
                future.result()
        site.wait_ready()
        assert client.wait(job.id, timeout=60).state is JobState.CANCELLED
        every = [event.seq for event in client.watch(job.id)]
    assert set(killed) == set(VICTIMS)
    assert every == list(range(1, len(every) + 1))
    for watcher in watchers:
        assert [seq for seq, _ in watcher.seen] == every
        assert watcher.hung_up + watcher.broken >= RECONNECTIONS
        assert watcher.broken > 0, "no restart was felt"
    assert settled_findings(site, 60) == []


def _by_grpc(site: Site, name: str) -> Callable[[int], Iterator[tuple[int, str]]]:
    def connect(after: int) -> Iterator[tuple[int, str]]:
        with grpc.insecure_channel(site.platform.endpoints["trainer"]) as channel:
            request = jobs_pb2.WatchJobRequest(name=name, after_seq=after)
            call = jobs_pb2_grpc.JobsServiceStub(channel).WatchJob(request, timeout=60)
            try:
                for event in call:
                    state = event.state_change.state if event.HasField("state_change") else 0
                    yield event.seq, "end" if state == jobs_pb2.JOB_STATE_CANCELLED else "event"
            finally:
                call.cancel()

    return connect


def _by_sse(site: Site, job: str) -> Callable[[int], Iterator[tuple[int, str]]]:
    def connect(after: int) -> Iterator[tuple[int, str]]:
        url = f"{site.platform.endpoints['gateway']}/api/v1/jobs/{job}/events"
        headers = {"Last-Event-ID": str(after)} if after else {}
        with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
            answer.raise_for_status()
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    key, _, value = line.partition(": ")
                    fields[key] = value
                    continue
                # An empty line ends an event; what is cut off before it does not count.
                if "id" in fields:
                    state = json.loads(fields["data"]).get("state_change", {}).get("state")
                    yield int(fields["id"]), "end" if state == "CANCELLED" else "event"
                fields = {}

    return connect
