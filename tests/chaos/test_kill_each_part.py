"""Every part is killed once while a job runs; the job succeeds once and one result is promoted."""

from __future__ import annotations

import time

import pytest

from guidehall.client import JobState, Progress, StateChange
from guidehall.local.control import status
from tests.fixtures.platform import Platform

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]

STEPS, STEP_SECONDS, KILLED_AT_STEP = 50, 0.12, 12
SEED = 3
PARTS = ("trainer", "nats", "postgres", "s3", "storage", "inference", "gateway", "worker")


def _params(model: str, step_seconds: float) -> dict[str, object]:
    return {"model_name": model, "steps": STEPS, "step_seconds": step_seconds, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def undisturbed(platform: Platform) -> tuple[float, float]:
    """Slope and loss of the same job when nothing happens to it."""
    with platform.client() as client:
        job = client.submit("toy.line", _params("undisturbed", 0.0), seed=SEED)
        client.wait(job.id, timeout=120)
        document = client.result(job.id).document
    return document["slope"], document["loss"]


@pytest.mark.parametrize("part", PARTS)
def test_killed_while_a_job_runs(platform: Platform, undisturbed: tuple[float, float], part: str) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", _params(f"survivor-{part}", STEP_SECONDS), seed=SEED)
        victim, killed_at_seq = "", 0
        for event in client.watch(job.id):
            if isinstance(event.payload, Progress) and event.payload.step >= KILLED_AT_STEP:
                victim = part if part != "worker" else _worker_process(platform, client.job(job.id).worker)
                platform.kill(victim)
                killed_at_seq = event.seq
                break
        _until_restarted(platform, victim)

        ended = client.wait(job.id, timeout=120)
        events = list(client.watch(job.id))
        result = client.result(job.id)
        versions = list(client.model_versions(f"survivor-{part}"))

    assert ended.state is JobState.SUCCEEDED
    # The log itself shows that the kill hit a running job: work was reported before it and after it.
    after = [event for event in events if event.seq > killed_at_seq]
    assert any(isinstance(event.payload, Progress) for event in after)
    finals = [e for e in events if isinstance(e.payload, StateChange) and e.payload.state.final]
    assert [event.payload.state for event in finals] == [JobState.SUCCEEDED]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert result.model_versions == tuple(version.name for version in versions)
    assert len(versions) == 1
    assert result.document["steps"] == STEPS
    assert (result.document["slope"], result.document["loss"]) == undisturbed
    if part == "worker":
        assert ended.attempt_count >= 2


def _worker_process(platform: Platform, worker: str) -> str:
    """Which of the stack's worker programs is registered under a name."""
    for service in status(platform.data).services:
        if service.name.startswith("worker-") and worker.rpartition("/")[2] in platform.log(service.name):
            return service.name
    raise AssertionError(f"no program logged that it is {worker}")


def _until_restarted(platform: Platform, part: str, seconds: float = 60.0) -> None:
    """Waits for the supervisor to have everything up again: another process, which sends us no event."""
    deadline = time.monotonic() + seconds
    while True:
        now = status(platform.data)
        if now.healthy and any(service.name == part and service.restarts for service in now.services):
            return
        assert time.monotonic() < deadline, now
