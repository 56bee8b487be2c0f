"""Client and command line against the real platform: what each call answers, whoever restarts meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from guidehall.client import AsyncClient, Client, JobState, LogLine, Priority, Progress
from guidehall.client.errors import InvalidArgument, NotFound
from guidehall.local.stack import ENDPOINTS
from tests.fixtures.platform import Platform

pytestmark = pytest.mark.slow

LINE = {"model_name": "client-line", "slope": 3.0, "intercept": 0.5, "noise": 0.0, "steps": 60}


@pytest.fixture(scope="module")
def done(platform: Platform) -> str:
    """Id of a job that succeeded."""
    with platform.client() as client:
        job = client.submit(
            "toy.line", LINE, seed=7, name="for the client", labels={"film": "a"}, priority="high"
        )
        assert client.wait(job.id, timeout=60).state is JobState.SUCCEEDED
    return job.id


def guidehall(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "guidehall.cli", *arguments],
        env={**os.environ, "GUIDEHALL_DATA": str(platform.data)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_job_tells_what_it_was_asked_and_what_became_of_it(platform: Platform, done: str) -> None:
    with platform.client() as client:
        job = client.job(done[:8])

    assert (job.id, job.display_name, job.seed, job.pipeline) == (done, "for the client", 7, "toy.line")
    assert job.params["slope"] == 3
    # Defaults are filled in by the server.
    assert job.params["points"] == 200
    assert job.labels == {"film": "a"}
    assert job.priority == Priority.HIGH
    assert (job.state, job.end_reason, job.status) == (JobState.SUCCEEDED, "COMPLETED", "succeeded")
    assert job.create_time is not None
    assert job.start_time is not None
    assert job.end_time is not None
    assert job.create_time <= job.start_time <= job.end_time
    assert job.progress is not None
    assert (job.progress.step, job.progress.total) == (60, 60)
    assert job.error is None


def test_jobs_are_filtered_and_limited(platform: Platform, done: str) -> None:
    with platform.client() as client:
        assert done in [job.id for job in client.jobs('labels.film = "a" AND state = "SUCCEEDED"')]
        assert list(client.jobs('pipeline = "other"')) == []
        assert len(list(client.jobs(limit=1))) == 1
        with pytest.raises(InvalidArgument, match="filter"):
            list(client.jobs('nonsense = "a"'))


def test_the_twin_for_asyncio_answers_the_same(platform: Platform, done: str, tmp_path: Path) -> None:
    async def ask() -> dict[str, Any]:
        async with AsyncClient(platform.data / ENDPOINTS) as client:
            first, second = await asyncio.gather(client.job(done), client.result(done))
            await client.download_artifact(done, "points.npy", tmp_path)
            async with aclosing(client.watch(done)) as events:
                seqs = [event.seq async for event in events]
            return {
                "job": first,
                "document": second.document,
                "seqs": seqs,
                "pools": [pool.name for pool in await client.pools()],
                "models": [model.id async for model in client.models()],
                "whoami": await client.whoami(),
            }

    answers = asyncio.run(ask())

    with platform.client() as client:
        assert answers["job"] == client.job(done)
        assert answers["document"] == client.result(done).document
        assert answers["seqs"] == [event.seq for event in client.watch(done)]
        assert answers["pools"] == [pool.name for pool in client.pools()]
        assert set(answers["models"]) <= {model.id for model in client.models()}
        assert answers["whoami"] == client.whoami()
    assert np.load(tmp_path / "points.npy", allow_pickle=False).shape == (200, 2)


def test_what_is_the_callers_is_told_alike_over_http(platform: Platform, done: str) -> None:
    with platform.client() as client:
        result, mine = client.result(done), client.usage()
    assert mine.artifact_bytes >= sum(artifact.object.size_bytes for artifact in result.artifacts) > 0
    assert mine.total_bytes >= mine.artifact_bytes
    assert (mine.allowed_bytes, mine.ended_jobs >= 1) == (0, True)
    assert httpx.get(f"{platform.endpoints['gateway']}/api/v1/usage", timeout=20).json() == asdict(mine)


def test_watch_misses_nothing_when_the_trainer_is_killed(platform: Platform) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", {**LINE, "model_name": "killed", "steps": 100, "step_seconds": 0.05})
        seqs = []
        for event in client.watch(job.id):
            seqs.append(event.seq)
            if isinstance(event.payload, Progress) and event.payload.step < 20 and len(seqs) == 6:
                platform.kill("trainer")

        assert seqs == list(range(1, client.job(job.id).last_seq + 1))
        assert client.job(job.id).state is JobState.SUCCEEDED


def test_dataset_comes_back_byte_by_byte(platform: Platform, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(3 << 20)
    with platform.client() as client:
        first = client.upload_dataset(content, "client-bytes", filename="noise.bin", labels={"kind": "noise"})
        second = client.upload_dataset(b"short", "client-bytes", filename="noise.bin")

        assert (first.version, second.version) == (1, 2)
        assert [version.version for version in client.dataset_versions("client-bytes")] == [2, 1]
        assert client.dataset_version("client-bytes").object.size_bytes == 5
        assert client.dataset_version("client-bytes@1").object == first.object
        written = client.download_dataset("client-bytes@1", tmp_path)
        assert "client-bytes" in [dataset.id for dataset in client.datasets()]

    assert written == tmp_path / "noise.bin"
    assert written.read_bytes() == content


def test_files_of_a_result_become_datasets(platform: Platform, done: str, tmp_path: Path) -> None:
    made = guidehall(platform, "datasets", "create", "kept-line", "--from-result", done, "--json")
    assert made.returncode == 0, made.stderr
    (version,) = json.loads(made.stdout)
    with platform.client() as client:
        left = client.download_artifact(done, "points.npy", tmp_path / "left.npy")
        assert client.dataset_version("kept-line-points").name == version["name"]
        kept = client.download_dataset("kept-line-points", tmp_path)
        again = client.dataset_from_result(done, "points.npy", "kept-line-points", labels={"film": "a"})
        assert again.version == 2
        with pytest.raises(NotFound, match=r"points\.npy"):
            client.dataset_from_result(done, "curves.npy", "kept-line-curves")
        assert "kept-line-curves" not in [dataset.id for dataset in client.datasets()]

    assert kept.name == "points.npy"
    assert kept.read_bytes() == left.read_bytes()


def test_model_is_listed_described_and_downloaded(platform: Platform, done: str, tmp_path: Path) -> None:
    with platform.client() as client:
        assert "client-line" in [model.id for model in client.models()]
        version = client.download_model("client-line", tmp_path / "model")
        assert version.job.endswith(done)
        assert version in list(client.model_versions("client-line"))
        assert version.name in [found.name for found in client.model_versions()]
        answer = client.predict("client-line", {"x": np.array([[0.0], [2.0]], np.float32)})

    np.testing.assert_allclose(answer.outputs["y"], [[0.5], [6.5]], atol=1e-3)
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["architecture"] == "toy.line/1"
    assert [spec.name for spec in version.inputs] == ["x"]


def test_a_tag_is_set_asked_for_and_taken_away_by_every_way(platform: Platform, done: str) -> None:
    with platform.client() as client:
        version = client.model_version("client-line")
        x = {"x": np.array([[2.0]], np.float32)}
        assert client.set_model_tag("client-line", "good", version.version).tags == {"good": version.version}
        tagged = client.model_version("client-line@good")
        assert (tagged.name, tagged.tags) == (version.name, ("good",))
        assert client.predict("client-line@good", x).model_version == version.name

        tagged_only = {"good": version.version}

        async def again() -> None:
            async with AsyncClient(platform.data / ENDPOINTS) as twin:
                await twin.set_model_tag("client-line", "better", version.version)
                assert (await twin.pin_model("client-line@better")).pinned
                assert not (await twin.unpin_model("client-line@better")).pinned
                assert (await twin.delete_model_tag("client-line", "better")).tags == tagged_only

        asyncio.run(again())

    shown = guidehall(platform, "models", "show", "client-line@good", "--json")
    assert json.loads(shown.stdout)["name"] == version.name
    moved = guidehall(platform, "models", "tag", "client-line", "best", str(version.version))
    assert moved.stdout == f"client-line@best is version {version.version}\n", moved.stderr
    listed = {model["name"]: model for model in json.loads(guidehall(platform, "models", "--json").stdout)}
    model = listed[version.name.partition("/versions/")[0]]
    assert model["tags"] == {"best": version.version, "good": version.version}
    for command, pinned in (("pin", True), ("unpin", False)):
        answer = guidehall(platform, "models", command, "client-line@best", "--json")
        assert json.loads(answer.stdout)["pinned"] is pinned, answer.stderr
    for tag in ("best", "good"):
        assert guidehall(platform, "models", "untag", "client-line", tag).returncode == 0
    assert guidehall(platform, "models", "show", "client-line@good").returncode != 0
    refused = guidehall(platform, "models", "tag", "client-line", "latest", "1")
    assert "tag" in refused.stderr
    assert refused.returncode != 0


def test_tags_pins_and_materials_over_http(platform: Platform, done: str) -> None:
    api = httpx.Client(base_url=f"{platform.endpoints['gateway']}/api/v1", timeout=20)
    with api, platform.client() as client:
        version = client.model_version("client-line")
        tag, one = "/models/client-line/tags/web", f"/models/client-line/versions/{version.version}"
        assert api.put(tag, json={"version": version.version}).json()["tags"] == {"web": version.version}
        found = api.get("/models/client-line/versions/web").json()
        assert (found["name"], found["tags"]) == (version.name, ["web"])
        tensor = {"datatype": "FP32", "shape": [1, 1], "content": "AAAAAA=="}
        body = {"model": "client-line", "tag": "web", "inputs": {"x": tensor}}
        answer = api.post("/predict", json=body)
        assert answer.json()["model_version"] == version.name, answer.text
        both = api.post("/predict", json={**body, "version": version.version})
        assert (both.status_code, "not both" in both.text) == (400, True)

        assert api.patch(one, json={"pinned": True}).json()["pinned"] is True
        refused = api.delete("/models/client-line")
        assert (refused.status_code, "PINNED" in refused.text) == (400, True)
        assert api.patch(one, json={"pinned": False}).json()["pinned"] is False
        assert api.put("/models/client-line/tags/latest", json={"version": 1}).status_code == 400
        assert api.put("/models/client-line/tags/web", json={"version": 99}).status_code == 404
        assert not api.delete(tag).json().get("tags")
        assert api.get("/models/client-line/versions/web").status_code == 404

        materials = {each["name"]: each for each in api.get("/materials").json()["materials"]}
    assert len(materials) >= 25
    assert (materials["silicon"]["formula"], materials["silicon"]["sld"]) == ("Si", 2.0729)
    listed = json.loads(guidehall(platform, "reflectometry", "materials", "--json").stdout)["materials"]
    assert listed == list(materials.values())


def test_workers_and_queues_are_told(platform: Platform) -> None:
    with platform.client() as client:
        workers = client.workers()
        (pool,) = client.pools()
        names = {worker.name for worker in workers}
        for same in (pool.name, pool.id):
            assert {worker.name for worker in client.workers(same)} == names
        assert client.workers("no-such-pool") == []

    assert pool.live_workers == len([worker for worker in workers if worker.state in ("IDLE", "BUSY")]) == 2
    assert "toy.line 1" in workers[0].pipelines


def test_what_does_not_exist_is_not_found(platform: Platform, tmp_path: Path) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    with platform.client() as client:
        for ask in (
            lambda: client.job(nobody),
            lambda: client.result(nobody),
            lambda: list(client.watch(nobody)),
            lambda: client.pipeline("toy.nothing"),
            lambda: client.model_version("nothing"),
            lambda: client.download_dataset("nothing", tmp_path),
            lambda: client.predict("nothing", {"x": np.zeros((1, 1), np.float32)}),
        ):
            with pytest.raises(NotFound):
                ask()


def test_repeated_request_id_makes_one_job(platform: Platform) -> None:
    request_id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
    with platform.client() as client:
        jobs = [client.submit("toy.line", LINE, request_id=request_id) for _ in range(2)]
        client.wait(jobs[0].id, timeout=60)

    assert jobs[0].id == jobs[1].id


def test_a_whole_job_on_the_command_line(platform: Platform, tmp_path: Path) -> None:
    submitted = guidehall(
        platform,
        "submit",
        "toy.line",
        "--slope",
        "3",
        "--steps",
        "40",
        "--name",
        "typed",
        "--watch",
        "--json",
    )
    assert submitted.returncode == 0, submitted.stderr
    job, *events = (json.loads(line) for line in submitted.stdout.splitlines())
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "published"

    listed = guidehall(platform, "jobs", "--filter", 'display_name = "typed"')
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [job["id"][:8]]
    result = guidehall(platform, "result", job["id"][:8], "--artifacts", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "points.npy").is_file()
    for command in (
        ["usage"],
        ["queue"],
        ["workers"],
        ["models"],
        ["datasets"],
        ["whoami"],
        ["pipelines"],
        ["status"],
    ):
        assert guidehall(platform, *command).returncode == 0, command


def test_the_log_of_a_cancelled_job_is_read_by_every_way(platform: Platform, tmp_path: Path) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", LINE | {"steps": 10_000, "step_seconds": 0.02}).id
        paused = False
        for event in client.watch(job):
            if isinstance(event.payload, Progress) and not paused:
                client.pause(job)
                paused = True
            elif paused and client.job(job).state is JobState.PAUSED:
                client.resume(job)
            elif isinstance(event.payload, LogLine):
                client.cancel(job)
        with pytest.raises(NotFound):
            client.download_log("0" * 8 + job[8:], tmp_path)
        # A moment after the end.
        give_up = time.monotonic() + 30
        while not (path := _log(client, job, tmp_path)):
            assert time.monotonic() < give_up
        content = path.read_text()
        assert path.name == f"{job}.log"
        assert content.startswith("goes on at step ")
    shown = guidehall(platform, "job-log", job[:8])
    assert (shown.returncode, shown.stdout) == (0, content)
    assert (
        json.loads(guidehall(platform, "job-log", job[:8], "--json").stdout)["lines"] == content.splitlines()
    )
    written = guidehall(platform, "job-log", job[:8], "--output", str(tmp_path / "mine.log"))
    assert (written.returncode, (tmp_path / "mine.log").read_text()) == (0, content)
    answer = httpx.get(f"{platform.endpoints['gateway']}/api/v1/jobs/{job}/log?offset=5", timeout=10)
    assert (answer.status_code, answer.text) == (200, content[5:])
    assert answer.headers["content-type"].startswith("text/plain")


def _log(client: Client, job: str, folder: Path) -> Path | None:
    try:
        return client.download_log(job, folder)
    except NotFound:
        return None


def test_refusals_on_the_command_line_name_flags(platform: Platform) -> None:
    # Both are within their own range; only the server knows that they do not go together.
    refused = guidehall(platform, "submit", "toy.line", "--last_x", "-1", "--dry-run")

    assert refused.returncode == 2
    assert refused.stderr.startswith("guidehall: --last_x: got -1")
