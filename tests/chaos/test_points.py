"""A process is killed at every labelled point between two effects; one job, one result, nothing left over."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

import pytest

from guidehall.client import Client, JobEvent, JobState, LogLine
from guidehall.local.s3 import BUCKET
from tests.chaos.checker import settled_findings
from tests.chaos.points import points
from tests.chaos.report import Report
from tests.chaos.site import WORKERS, Site, insist

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(420)]

SEED = 3
PARAMS = {"steps": 20, "step_seconds": 0.1, "checkpoint_every": 4}
# Nobody is erased here: tests/integration/test_personal_data.py kills there.
LABELS = sorted(point.label for point in points() if ".erasure." not in point.label)
# Of these the second visit: an earlier checkpoint exists then, or the session has begun.
_SECOND = ("checkpoint", "heartbeat", "events", "stage.", "intake")
# A job alone does not lead there; see `_provoke`.
PROVOKED = (
    "trainer.expire.stored",
    "trainer.expire.committed",
    "storage.reconcile.found",
    "worker.log.staged",
)
# The worker does not hear of its report if the trainer is killed over it for longer than the lease lasts.
ALONE = (*PROVOKED, "worker.report.heard")
# Where the end of a job differs for one that its owner cancels.
OF_CANCELLED = (
    "trainer.finish.stored",
    "trainer.finish.committed",
    "trainer.discard.before_call",
    "trainer.discard.answered",
    "storage.discard.stored",
    "storage.discard.committed",
)
# Nor does a worker that is killed report the end of a cancelled job: it ends with the lease.
OF_CANCELLED_ALONE = ("worker.child.ended", "worker.report.flushed", "worker.report.heard")
# Where a guest's job is claimed whose result is published.
OF_CLAIMED = (
    "trainer.claim.stored",
    "trainer.claim.committed",
    "trainer.claim.before_call",
    "trainer.claim.answered",
    "storage.claim.stored",
    "storage.claim.committed",
)
_HIT_SECONDS = 90.0
_SETTLE_SECONDS = 60.0


def waves(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """A few labels for one job: one of each process, and two of the trainer, which has most."""
    lanes: dict[str, list[str]] = {}
    for label in labels:
        lanes.setdefault(label.partition(".")[0], []).append(label)
    trainer = lanes.pop("trainer")
    half = (len(trainer) + 1) // 2
    return [
        tuple(filter(None, wave)) for wave in zip_longest(trainer[:half], trainer[half:], *lanes.values())
    ]


_APART = (*ALONE, *OF_CLAIMED)
WAVES = [*((label,) for label in ALONE), *waves(label for label in LABELS if label not in _APART)]


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> str:
    """Key of the numbers that every job here has to find."""
    with site.client() as client:
        site.learn(client, "points", PARAMS | {"model_name": "undisturbed"}, SEED)
    return "points"


@pytest.fixture(autouse=True)
def disarmed(site: Site) -> Iterator[None]:
    """No test begins before the last one's victims are back."""
    site.wait_ready()
    yield
    site.faults.disarm()


@pytest.mark.parametrize("labels", WAVES, ids="+".join)
def test_killed_at_points(site: Site, undisturbed: str, report: Report, labels: tuple[str, ...]) -> None:
    began = time.time()
    for label in labels:
        report.points.setdefault(label, 0)
        site.faults.arm(label, visit=2 if any(part in label for part in _SECOND) else 1)
    with site.client() as client:
        params = PARAMS | {"model_name": labels[0].replace(".", "-").replace("_", "-")}
        job = site.submit(client, params, numbers=undisturbed, seed=SEED)
        _provoke(site, client, job.id, labels[0])
        for label in labels:
            _wait_for_hit(site, label, began)
            report.points[label] += 1
        if labels[0] == "worker.log.staged":
            insist(lambda: client.resume(job.id))
        ended = insist(lambda: client.wait(job.id, timeout=120))
    assert ended.state is JobState.SUCCEEDED
    assert settled_findings(site, _SETTLE_SECONDS) == []


@pytest.mark.parametrize(
    "labels", [*waves(OF_CANCELLED), *((label,) for label in OF_CANCELLED_ALONE)], ids="+".join
)
def test_killed_at_points_while_a_job_is_cancelled(site: Site, labels: tuple[str, ...]) -> None:
    with site.client() as client:
        params = PARAMS | {"model_name": "cancelled", "steps": 1000}
        job = site.submit(client, params, numbers="", states=("CANCELLED",))
        _until_step(client, job.id, 6)
        began = time.time()
        first, *others = labels
        site.faults.arm(first)
        insist(lambda: client.cancel(job.id))
        _wait_for_hit(site, first, began)
        # Not before: a checkpoint that is replaced is discarded, too, and a trainer that comes back too late
        # for the lease ends the job by itself.
        for label in others:
            site.faults.arm(label)
        for label in others:
            _wait_for_hit(site, label, began)
        ended = insist(lambda: client.wait(job.id, timeout=120))
    assert ended.state is JobState.CANCELLED
    assert settled_findings(site, _SETTLE_SECONDS) == []


@pytest.mark.parametrize("labels", waves(OF_CLAIMED), ids="+".join)
def test_killed_at_points_while_a_guests_job_is_claimed(
    site: Site, undisturbed: str, report: Report, labels: tuple[str, ...]
) -> None:
    with site.client() as client:
        params = PARAMS | {"model_name": labels[0].replace(".", "-")}
        job = site.submit(client, params, numbers=undisturbed, seed=SEED, guest=True)
        assert insist(lambda: client.wait(job.id, timeout=120)).state is JobState.SUCCEEDED
        assert job.owner == ""
        began = time.time()
        for label in labels:
            report.points.setdefault(label, 0)
            site.faults.arm(label)
        owner = insist(lambda: client.claim(job.id)).owner
        for label in labels:
            _wait_for_hit(site, label, began)
            report.points[label] += 1
        assert owner
        assert settled_findings(site, _SETTLE_SECONDS) == []
        result = insist(lambda: client.result(job.id))
        models = [insist(lambda name=name: client.model_version(name)) for name in result.model_versions]
    assert [result.owner, *(model.owner for model in models)] == [owner, owner]


def test_every_label_of_the_code_is_in_a_wave() -> None:
    assert sorted([*(label for wave in WAVES for label in wave), *OF_CLAIMED]) == LABELS


def _provoke(site: Site, client: Client, job: str, label: str) -> None:
    """Sees to it that the point is reached, where a job alone does not."""
    if label.startswith("trainer.expire."):
        _until_step(client, job, 6)
        for worker in WORKERS:
            site.send(worker, signal.SIGKILL)
    if label == "worker.log.staged":
        # The toy says something where it goes on; of an attempt that does not succeed that is kept.
        _until_step(client, job, 4)
        insist(lambda: client.pause(job))
        _until_event(client, job, lambda event: getattr(event.payload, "state", None) is JobState.PAUSED)
        insist(lambda: client.resume(job))
        _until_event(client, job, lambda event: isinstance(event.payload, LogLine))
        insist(lambda: client.pause(job))
    if label == "storage.reconcile.found":
        # The bucket holds something that nobody knows, and it is old.
        key = "objects/00/" + "0" * 32
        path = site.data / "s3" / "buckets" / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"stray")
        long_ago = time.time() - 10 * 86_400
        os.utime(path, (long_ago, long_ago))
        # The server knows its folders by heart, and storage looks as it starts.
        for part in ("s3", "storage"):
            site.restart(part)


def _until_step(client: Client, job: str, step: int) -> None:
    _until_event(client, job, lambda event: getattr(event.payload, "step", 0) >= step)


def _until_event(client: Client, job: str, holds: Callable[[JobEvent], bool]) -> None:
    for event in client.watch(job):
        if holds(event):
            return


def _wait_for_hit(site: Site, label: str, since: float) -> None:
    deadline = time.monotonic() + _HIT_SECONDS
    pause = threading.Event()
    while True:
        hit = site.faults.acted(label)
        if hit is not None and hit.time >= since:
            return
        assert time.monotonic() < deadline, f"nobody came to {label}"
        pause.wait(0.1)
