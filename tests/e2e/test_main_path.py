"""The main job, as its users see it: train, publish, serve, predict, over every way in."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import refnx
import yaml

from guidehall.client import (
    JobState,
    Progress,
    ResultPublished,
    Stage,
    StateChange,
    errors,
    read_curve,
)
from guidehall.local.control import status
from tests.fixtures.platform import Platform

pytestmark = pytest.mark.slow

_EXAMPLES = Path(__file__).parents[2] / "examples"

SLOPE, INTERCEPT = 3.0, 0.5
LINE = {"model_name": "e2e-line", "slope": SLOPE, "intercept": INTERCEPT, "noise": 0.0, "steps": 60}


@pytest.fixture(scope="module")
def line(platform: Platform) -> str:
    """Name of the version of a line model that a job trained and published."""
    with platform.client() as client:
        job = client.submit("toy.line", LINE, seed=7, name="a line")
        assert client.wait(job.id, timeout=60).state is JobState.SUCCEEDED
        (version,) = client.result(job.id).model_versions
    return version


def test_a_job_tells_its_whole_story_in_order_and_once(platform: Platform) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", {**LINE, "model_name": "story"})
        events = list(client.watch(job.id))
        again = list(client.watch(job.id))

    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.seq for event in again] == [event.seq for event in events]
    states = [event.payload.state for event in events if isinstance(event.payload, StateChange)]
    assert states == [JobState.QUEUED, JobState.LEASED, JobState.RUNNING, JobState.SUCCEEDED]
    assert any(isinstance(event.payload, Progress) for event in events)
    assert isinstance(events[-1].payload, ResultPublished)


def test_the_trained_model_is_served_and_right(platform: Platform, line: str) -> None:
    x = np.linspace(-1, 2, 5, dtype=np.float32)[:, None]
    with platform.client() as client:
        version = client.model_version(line)
        assert version.manifest["provenance"]["seed"] == 7
        prediction = client.predict(line, {"x": x})

    assert prediction.model_version == line
    np.testing.assert_allclose(prediction.outputs["y"], SLOPE * x + INTERCEPT, atol=1e-4)


def test_artifacts_and_the_full_log_come_with_the_result(platform: Platform, tmp_path: Path) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", {**LINE, "model_name": "artifacts"})
        client.wait(job.id, timeout=60)
        files = {artifact.filename for artifact in client.result(job.id).artifacts}
        assert {"points.npy", "job.log"} <= files
        client.download_artifact(job.id, "points.npy", tmp_path)
    points = np.load(tmp_path / "points.npy", allow_pickle=False)
    np.testing.assert_allclose(points[:, 1], SLOPE * points[:, 0] + INTERCEPT)


def test_a_job_reads_the_dataset_version_that_it_pinned(platform: Platform, tmp_path: Path) -> None:
    x = np.linspace(0, 1, 50)
    file = tmp_path / "points.npy"
    np.save(file, np.stack([x, -4 * x + 2], axis=1))
    with platform.client() as client:
        version = client.upload_dataset(file, "line-points")
        params = {**LINE, "model_name": "from-data", "from_dataset": True, "steps": 200}
        job = client.submit("toy.line", params, inputs={"points": version.name})
        # A later version changes nothing for a job that is already submitted.
        np.save(file, np.zeros((50, 2)))
        client.upload_dataset(file, "line-points")
        assert client.wait(job.id, timeout=60).state is JobState.SUCCEEDED
        assert client.result(job.id).document["slope"] == pytest.approx(-4, abs=1e-3)


def test_a_measured_curve_becomes_a_film_as_a_job(platform: Platform, tmp_path: Path) -> None:
    measured = Path(refnx.__file__).parent / "analysis/tests/e361r.txt"
    params = yaml.safe_load((_EXAMPLES / "infer.yml").read_text())
    with platform.client() as client:
        version = client.upload_dataset(measured, "film-under-water")
        params |= {"samples": 50, "starts": 6}
        job = client.submit("reflectometry.infer", params, inputs={"curves": version.name}, seed=1)
        ended = client.wait(job.id, timeout=120)
        assert ended.state is JobState.SUCCEEDED, ended
        result = client.result(job.id)
        (curve,) = result.document["curves"]
        thickness = next(p for p in curve["parameters"] if p["name"] == "film.thickness")
        assert thickness["value"] == pytest.approx(211, abs=1)
        low, high = thickness["interval_95"]
        assert low < high
        names = {artifact.filename for artifact in result.artifacts}
        assert {"curve-1-fit.png", "curve-1.ort", "curve-1-refl1d.py"} <= names
        client.download_artifact(job.id, "curve-1.ort", tmp_path)
    assert (tmp_path / "curve-1.ort").read_text().startswith("# # ORSO")


def test_cancel_reaches_the_running_step(platform: Platform) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", {**LINE, "steps": 1000, "step_seconds": 0.1})
        for event in client.watch(job.id):
            if isinstance(event.payload, Progress):
                break
        client.cancel(job.id)
        ended = client.wait(job.id, timeout=30)
        assert ended.state is JobState.CANCELLED
        assert ended.end_reason == "CANCELLED_BY_USER"
        with pytest.raises(errors.NotFound):
            client.result(job.id)


def test_a_wrong_parameter_is_refused_at_submission_by_name(platform: Platform) -> None:
    with platform.client() as client, pytest.raises(errors.InvalidArgument) as caught:
        client.submit("toy.line", {"steps": 0, "last_x": -1})
    assert {violation.field for violation in caught.value.violations} >= {"params.steps"}


def test_a_wrong_dataset_fails_the_job_at_once_by_name(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "points.npy"
    np.save(file, np.zeros((3, 3, 3)))
    with platform.client() as client:
        version = client.upload_dataset(file, "not-points")
        job = client.submit("toy.line", {**LINE, "from_dataset": True}, inputs={"points": version.name})
        ended = client.wait(job.id, timeout=60)
    assert ended.state is JobState.FAILED
    assert ended.end_reason == "USER_ERROR"
    assert ended.attempt_count == 1
    assert ended.error is not None
    assert [violation.field for violation in ended.error.violations] == ["inputs.points"]


def test_http_sees_the_same_job_its_events_and_its_result(platform: Platform) -> None:
    base = platform.endpoints["gateway"] + "/api/v1"
    with httpx.Client(base_url=base, timeout=60) as http:
        answer = http.post("/jobs", json={"pipeline": "toy.line", "params": {**LINE, "model_name": "http"}})
        assert answer.status_code == 201, answer.text
        job = answer.json()["name"].rpartition("/")[2]
        seqs, kinds = _events(http, job, {})
        assert kinds[-1] == "published"
        assert seqs == list(range(1, len(seqs) + 1))
        resumed, _ = _events(http, job, {"Last-Event-ID": str(seqs[2])})
        assert resumed == seqs[3:]
        result = http.get(f"/jobs/{job}/result").json()
        assert result["document"]["slope"] == pytest.approx(SLOPE, abs=1e-3)
        content = http.get(f"/results/{job}/artifacts/points.npy")
        assert content.content.startswith(b"\x93NUMPY")


def test_a_result_comes_whole_as_an_archive(platform: Platform) -> None:
    with platform.client() as client:
        line = client.submit("toy.line", {**LINE, "model_name": "bundled"}).id
        client.wait(line, timeout=60)
    with httpx.Client(base_url=platform.endpoints["gateway"] + "/api/v1", timeout=30) as http:
        answer = http.get(f"/results/{line}/bundle").raise_for_status()
        result = http.get(f"/results/{line}").json()
        assert http.get(f"/results/{uuid.uuid4()}/bundle").status_code == 404
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{line}.zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("result.json")) == result
        assert json.loads(archive.read("job.json"))["name"] == result["job"]
        for artifact in result["artifacts"]:
            content = archive.read(f"artifacts/{artifact['filename']}")
            assert hashlib.sha256(content).hexdigest() == artifact["object"]["sha256"]
        assert len(archive.namelist()) == 2 + len(result["artifacts"])


def test_one_trace_leads_from_the_request_to_the_model_that_it_brings(platform: Platform) -> None:
    trace = uuid.uuid4().hex
    base = platform.endpoints["gateway"] + "/api/v1"
    with httpx.Client(base_url=base, timeout=60) as http:
        body = {"pipeline": "toy.line", "params": {**LINE, "model_name": "traced"}}
        first = http.post("/jobs", json=body).json()["name"].rpartition("/")[2]
        _events(http, first, {})
        # In use, so that a new version takes its place without being asked for.
        with platform.client() as client:
            client.predict("traced", {"x": np.array([[1.0]], np.float32)})
        made = http.post("/jobs", json=body, headers={"traceparent": f"00-{trace}-{'1' * 16}-01"})
        job = made.json()["name"].rpartition("/")[2]
        _events(http, job, {})

    def traced(part: str, message: str) -> list[dict[str, Any]]:
        lines = [json.loads(text) for text in platform.log(part).splitlines() if message in text]
        return [line for line in lines if line.get("trace_id") == trace]

    deadline = time.monotonic() + 30
    # From the worker, which had it with its lease, through the outboxes of trainer and storage and the bus.
    while not traced("inference", "model is loaded"):
        assert time.monotonic() < deadline, platform.log("inference")
        time.sleep(0.1)
    workers = [path.stem for path in (platform.data / "logs").glob("worker*.log")]
    (leased,) = [line for part in workers for line in traced(part, "leased")]
    assert leased["job_id"] == job


def _events(http: httpx.Client, job: str, headers: dict[str, str]) -> tuple[list[int], list[str]]:
    seqs, kinds = [], []
    with http.stream("GET", f"/jobs/{job}/events", headers=headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["x-accel-buffering"] == "no"
        for text in stream.iter_lines():
            if text.startswith("id: "):
                seqs.append(int(text[4:]))
            if text.startswith("event: "):
                kinds.append(text[7:])
    return seqs, kinds


def test_browsers_that_leave_are_forgotten(platform: Platform) -> None:
    base, ops = platform.endpoints["gateway"], status(platform.data).endpoints["ops"]["trainer"]
    gateway = urlsplit(base)

    def watchers() -> float:
        text = httpx.get(f"{ops}/metrics").text
        running = re.findall(r'guidehall_rpc_running{method="[^"]*/WatchJob"} (\S+)', text)
        return sum(map(float, running))

    with platform.client() as client:
        job = client.submit("toy.line", {**LINE, "model_name": "watched", "steps": 1000, "step_seconds": 1})
        before = watchers()
        head = f"GET /api/v1/jobs/{job.id}/events HTTP/1.1\r\nHost: {gateway.netloc}\r\n\r\n".encode()
        for pause in (0, 0.02, 0.1, 0.5):
            # More than gRPC lets one connection carry unless it is told otherwise.
            browsers = [socket.create_connection((gateway.hostname, gateway.port)) for _ in range(120)]
            for browser in browsers:
                browser.sendall(head)
            # They leave in the middle of whatever the gateway does for them.
            time.sleep(pause)
            assert httpx.get(f"{base}/api/v1/jobs/{job.id}", timeout=20).status_code == 200
            for browser in browsers:
                browser.close()
        deadline = time.monotonic() + 30
        while watchers() > before:
            assert time.monotonic() < deadline, f"{watchers()} watchers, {before} before"
            time.sleep(0.1)
        client.cancel(job.id)
        client.wait(job.id, timeout=30)


def test_http_upload_streams_and_comes_back_the_same(platform: Platform) -> None:
    content = np.random.default_rng(1).bytes(5_000_000)
    base = platform.endpoints["gateway"] + "/api/v1"
    with httpx.Client(base_url=base, timeout=60) as http:
        path = "/datasets/http-bytes/versions"
        answer = http.post(path, params={"filename": "some.bin"}, content=content)
        assert answer.status_code == 201, answer.text
        version = answer.json()["version"]
        assert http.get(f"{path}/{version}/content").content == content


def test_tritonclient_lists_describes_and_infers(platform: Platform, line: str) -> None:
    """In a process of its own: tritonclient's stubs have the names that ours have."""
    program = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
import guidehall.client
address, model = sys.argv[1:]
client = triton.InferenceServerClient(address)
assert client.is_server_ready() and client.is_model_ready(model)
index = [entry.name for entry in client.get_model_repository_index().models]
metadata = client.get_model_metadata(model)
tensor = triton.InferInput("x", [3, 1], "FP32")
tensor.set_data_from_numpy(np.array([[0], [1], [2]], dtype=np.float32))
answer = client.infer(model, [tensor], request_id="one")
print(json.dumps({
    "listed": model in index, "inputs": [i.name for i in metadata.inputs], "id": answer.get_response().id,
    "y": answer.as_numpy("y").ravel().tolist()}))
"""
    address = platform.endpoints["inference"]
    done = subprocess.run(
        [sys.executable, "-c", program, address, "e2e-line"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["listed"]
    assert answer["inputs"] == ["x"]
    assert answer["id"] == "one"
    np.testing.assert_allclose(answer["y"], [INTERCEPT, INTERCEPT + SLOPE, INTERCEPT + 2 * SLOPE], atol=1e-4)
    assert line.endswith("/versions/1")


def test_a_film_is_trained_and_reads_a_curve(platform: Platform, tmp_path: Path) -> None:
    """Reflectometry end to end, small: the answer is judged by the curve that it gives."""
    prior = {
        "model_name": "e2e-film",
        "stack": {
            "fronting": {"name": "air", "sld": 0.0},
            "layers": [
                {
                    "name": "film",
                    "sld": {"min": 1, "max": 5},
                    "thickness": {"min": 100, "max": 200},
                    "roughness": 3,
                }
            ],
            "backing": {"name": "silicon", "sld": 2.07, "roughness": 3},
        },
        "training": {"epochs": 3, "steps_per_epoch": 30, "batch_size": 64},
    }
    film = {
        "stack": {
            "fronting": {"name": "air", "sld": 0.0},
            "layers": [{"name": "film", "sld": 3.2, "thickness": 150, "roughness": 3}],
            "backing": {"name": "silicon", "sld": 2.07, "roughness": 3},
        },
        "probe": {"q_min": 0.01, "q_max": 0.15, "points": 80},
    }
    with platform.client() as client:
        job = client.submit("reflectometry.nr_sld", prior, seed=1)
        assert client.wait(job.id, timeout=150).state is JobState.SUCCEEDED, client.job(job.id).error
        truth = client.simulate(film).curve
        file = tmp_path / "curve.txt"
        np.savetxt(file, np.stack([truth.q, truth.r, 0.02 * truth.r + 1e-9], axis=1))
        curve = read_curve(file, "fwhm", 0.05)
        network = client.analyze(curve, None, Stage.NETWORK)
        refined = client.analyze(curve, "e2e-film", Stage.REFINED)

    assert "e2e-film" in network.model_version
    assert refined.mean_abs_log10_error < 0.01
    values = {parameter.name: parameter.value for parameter in refined.parameters}
    assert values["film.thickness"] == pytest.approx(150, abs=2)
    assert values["film.sld"] == pytest.approx(3.2, abs=0.1)


def test_the_queue_and_the_workers_are_seen(platform: Platform) -> None:
    with platform.client() as client:
        (pool,) = client.pools()
        workers = client.workers()
    assert pool.name == "pools/cpu"
    assert pool.live_workers == 2
    offered = {pipeline.split()[0] for worker in workers for pipeline in worker.pipelines}
    assert {"toy.line", "reflectometry.nr_sld", "reflectometry.simulate"} <= offered


def test_command_line_submits_follows_and_predicts(platform: Platform, tmp_path: Path) -> None:
    def guidehall(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "guidehall.cli",
                "--endpoints",
                str(platform.data / "endpoints.json"),
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    done = guidehall("submit", "toy.line", "--slope", "2", "--model_name", "cli", "--watch")
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    listed = json.loads(guidehall("jobs", "--limit", "1", "--json").stdout)
    assert "toy.line" in json.dumps(listed)
    refused = guidehall("submit", "toy.line", "--steps", "0")
    assert refused.returncode == 2
    assert "steps" in refused.stderr
