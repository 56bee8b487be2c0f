"""Control of jobs through every layer: over HTTP with its events, and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from guidehall.cli._app import run
from guidehall.cli._exit import ExitCode
from guidehall.client import Client, JobState, Progress, StateChange
from tests.fixtures.platform import Platform

pytestmark = pytest.mark.slow

# Longer than any test waits: only a word from outside ends it.
LONG = {"noise": 0.0, "steps": 20_000, "step_seconds": 0.05}


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """What a stream of server-sent events says."""
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


def test_a_job_is_paused_and_resumed_over_http_and_its_events_tell(platform: Platform) -> None:
    base = platform.endpoints["gateway"] + "/api/v1"
    params = {"model_name": "paused", "noise": 0.0, "steps": 60, "step_seconds": 0.1}
    with httpx.Client(base_url=base, timeout=60) as http, httpx.Client(base_url=base, timeout=60) as reader:
        answer = http.post("/jobs", json={"pipeline": "toy.line", "params": params, "timeout": "30m"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["timeout_seconds"] == 1800
        job = "/jobs/" + answer.json()["name"].rpartition("/")[2]
        states, seqs, asked = [], [], []
        with reader.stream("GET", f"{job}/events") as stream:
            for event in _events(stream.iter_lines()):
                seqs.append(event["seq"])
                change = event.get("state_change", {})
                if change and states[-1:] != [change["state"]]:
                    states.append(change["state"])
                if "progress" in event and not asked:
                    asked.append(http.post(f"{job}:pause").json()["desired_state"])
                    # Asking again does no harm.
                    asked.append(http.post(f"{job}:pause").json()["desired_state"])
                if change.get("state") == "PAUSED" and change["desired_state"] == "PAUSE":
                    paused = http.get(job).json()
                    assert (paused["state"], paused["worker"]) == ("PAUSED", "")
                    assert paused["checkpoint"]["step"] >= 1
                    assert http.delete(job).status_code == 400
                    asked.append(http.post(f"{job}:resume").json()["desired_state"])
        assert asked == ["PAUSE", "PAUSE", "RUN"]
        assert seqs == list(range(1, len(seqs) + 1))
        first, last = states.index("PAUSED"), states.index("SUCCEEDED")
        assert states[:first] == ["QUEUED", "LEASED", "RUNNING"]
        assert [state for state in states[first + 1 : last] if state != "QUEUED"] == ["LEASED", "RUNNING"]
        attempts = http.get(f"{job}/attempts").json()["attempts"]
        assert [attempt["end_reason"] for attempt in attempts] == ["COMPLETED", "PAUSED"]

        renamed = http.patch(job, json={"display_name": "a line, paused once"})
        assert renamed.json()["display_name"] == "a line, paused once"
        stale = http.patch(job, json={"display_name": "x", "etag": answer.json()["etag"]})
        assert stale.json()["reason"] == "ETAG_MISMATCH"
        again = http.post(f"{job}:retry", json={"param_changes": {"steps": 5}, "validate_only": True})
        assert (again.status_code, again.json()["params"]["steps"]) == (200, 5)
        assert http.delete(job).status_code == 200
        assert http.get(job).status_code == 404


def test_a_batch_over_http_is_counted_and_purged(platform: Platform) -> None:
    base = platform.endpoints["gateway"] + "/api/v1"
    template = {"pipeline": "toy.line", "params": {**LONG, "model_name": "batch"}}
    sweep = {"template": template, "axes": [{"path": "slope", "values": [1, 2]}]}
    with httpx.Client(base_url=base, timeout=60) as http:
        refused = http.post("/jobs:batch", json={"sweep": {**sweep, "axes": [{"path": "x", "values": [1]}]}})
        assert refused.status_code == 400
        assert refused.json()["violations"][0]["field"].startswith("sweep.axes")
        made = http.post("/jobs:batch", json={"sweep": sweep})
        assert made.status_code == 201, made.text
        assert [job["params"]["slope"] for job in made.json()["jobs"]] == [1, 2]
        for job in made.json()["jobs"]:
            name = job["name"].rpartition("/")[2]
            assert http.post(f"/jobs/{name}:cancel").status_code == 200
            with platform.client() as client:
                client.wait(name, timeout=60)
        body = {"filter": f'batch = "{made.json()["batch"]}"'}
        assert http.post("/jobs:purge", json=body).json()["deleted"] == 2
        assert http.post("/jobs:purge", json={**body, "force": True}).json()["deleted"] == 2
        assert http.get("/jobs", params=body).json()["jobs"] == []


def _until(client: Client, job: str, kind: type, state: JobState | None = None) -> None:
    """Returns once the job has told something of a kind, or that it is in a state."""
    after_seq = client.job(job).last_seq
    if state is not None and client.job(job).state is state:
        return
    for event in client.watch(job, max(after_seq - 1, 0)):
        if isinstance(event.payload, kind) and getattr(event.payload, "state", state) == state:
            return
    raise AssertionError(f"{job} is over: {client.job(job)}")


@pytest.mark.timeout(400)
def test_a_sweep_is_controlled_from_the_command_line(
    platform: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within this process: dozens of new ones would take minutes on a small machine."""
    monkeypatch.setenv("GUIDEHALL_DATA", str(platform.data))

    def guidehall(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return run(arguments), *capsys.readouterr()

    def ok(*arguments: str) -> str:
        code, out, err = guidehall(*arguments)
        assert code == ExitCode.DONE, (arguments, err)
        return out

    options = [f"--{name}={value}" for name, value in LONG.items()]
    swept = ok("submit", "toy.line", *options, "--sweep", "slope=1,2,3", "--timeout", "30m", "--json")
    batch = json.loads(swept)
    assert [job["params"]["slope"] for job in batch["jobs"]] == [1, 2, 3]
    first, second, third = (job["id"] for job in batch["jobs"])
    here = f'batch = "{batch["name"]}"'

    with platform.client() as client:
        # One is paused, resumed, and stopped where it is then.
        _until(client, first, Progress)
        assert "guidehall resume" in ok("pause", first[:8])
        _until(client, first, StateChange, JobState.PAUSED)
        assert "paused" in ok("jobs", "--filter", here)
        ok("resume", first[:8])
        # What it ran on is another's by now. When that one is stopped, the first goes before the third.
        _until(client, second, Progress)
        ok("stop", second)
        assert client.wait(second, timeout=60).status == "stopped"
        _until(client, first, Progress)
        queue = ok("queue")
        assert first[:8] in queue
        assert "running" in queue
        assert guidehall("delete", first)[0] == ExitCode.FAILED
        ok("stop", first)
        assert client.wait(first, timeout=60).end_reason == "STOPPED_EARLY"
        attempts = ok("attempts", first)
        assert "paused" in attempts
        assert "stopped early" in attempts

        # The other that was stopped is done once more, shorter.
        retried = json.loads(ok("retry", second, "--set", "steps=5", "--set", "step_seconds=0", "--json"))
        assert retried["retried_from"].endswith(second)
        ended = client.wait(retried["id"], timeout=60)
        assert (ended.state, ended.params["steps"], ended.params["slope"]) == (JobState.SUCCEEDED, 5, 2)
        ok("cancel", third)
        assert client.wait(third, timeout=60).state is JobState.CANCELLED

    assert guidehall("resume", third)[0] == ExitCode.FAILED
    ok("rename", second, "renamed")
    assert "renamed" in ok("job", second)
    assert first[:8] not in ok("dead")
    assert "deleted" in ok("delete", first[:8])
    assert guidehall("job", first)[0] == ExitCode.NOT_FOUND
    assert guidehall("attempts", first)[0] == ExitCode.NOT_FOUND
    counted = json.loads(ok("purge", "--filter", here, "--json"))
    assert (counted["forced"], counted["deleted"]) == (False, 2)
    assert ok("purge", "--filter", here, "--older-than", "1h", "--yes") == "0 jobs deleted\n"
    assert ok("purge", "--filter", here, "--yes") == "2 jobs deleted\n"
    assert ok("jobs", "--filter", here) == "no jobs\n"
    code, _, said = guidehall("submit", "toy.line", "--sweep", "steps=0")
    assert code == ExitCode.USAGE
    assert "--sweep steps" in said
