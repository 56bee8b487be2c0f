"""The old web app's runs, jobs, queue and checkpoints, as its page calls them, against the whole platform."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from guidehall.client import Client, JobState
from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.core.auth import KeyPair, Role, TokenIssuer
from guidehall.local import control
from guidehall.local.identity import Identity
from guidehall.science.pipeline import LocalContext
from guidehall.science.reflectometry.cnn import train
from guidehall.science.reflectometry.cnn.params import CnnParams
from tests.fixtures.gateway import Gateway
from tests.fixtures.platform import Platform

pytestmark = pytest.mark.slow

Json = dict[str, Any]

WAIT_SECONDS = 150.0
SMALL: Json = {
    "layers": [],
    "generator": {"numCurves": 20, "numFilmLayers": 5},
    "training": {"epochs": 1, "batchSize": 8},
}
# Hours, if nobody ends it.
LONG: Json = {**SMALL, "training": {"epochs": 1000, "batchSize": 1}, "generator": {"numCurves": 2000}}
NO_JOB = str(uuid.uuid4())


@pytest.fixture(scope="module")
def base(platform: Platform) -> str:
    return f"{platform.endpoints['gateway']}/api"


def _client(base: str, user: str | None) -> httpx.Client:
    headers = {} if user is None else {"X-User-ID": user}
    return httpx.Client(base_url=base, headers=headers, timeout=WAIT_SECONDS)


@pytest.fixture
def guest(base: str) -> Iterator[httpx.Client]:
    """The page when nobody is logged in, and wherever it forgets to say who is."""
    with _client(base, None) as client:
        yield client


@pytest.fixture
def ada(base: str) -> Iterator[httpx.Client]:
    with _client(base, "ada") as client:
        yield client


@pytest.fixture
def grace(base: str) -> Iterator[httpx.Client]:
    with _client(base, "grace") as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_left(platform: Platform) -> Iterator[None]:
    """Ends what a test that fails leaves running: the next one needs the workers."""
    yield
    with platform.client() as client:
        for job in client.jobs('labels.guidehall-legacy = "generate"', limit=10):
            if job.state not in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
                client.cancel(job.id)


def _submit(client: httpx.Client, body: Mapping[str, Any] = SMALL) -> str:
    answer = client.post("/jobs/submit", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


def _until(client: httpx.Client, job_id: str, done: Callable[[Json], bool]) -> Json:
    """The job, polled as the page does until it is in some state."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        answer = client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: Json = answer.json()
        if done(job):
            return job
        assert job["status"] in ("queued", "started"), job
        time.sleep(0.2)
    raise AssertionError(f"{job_id} is still {job['status']} ({job['meta']})")


def _finished(client: httpx.Client, job_id: str) -> Json:
    return _until(client, job_id, lambda job: bool(job["status"] == "finished"))


def _training(job: Json) -> bool:
    return bool(job["meta"]["status"] == "training")


@pytest.fixture(scope="module")
def done(base: str) -> Json:
    """A finished run of ada's."""
    with _client(base, "ada") as client:
        return _finished(client, _submit(client, {**SMALL, "name": "first film"}))


def test_a_run_is_submitted_polled_and_finished(guest: httpx.Client) -> None:
    answer = guest.post("/jobs/submit", json={**SMALL, "unknown": 1}).json()
    assert set(answer) == {"job_id", "status", "message", "queue_position", "remote_worker"}
    assert (answer["status"], answer["remote_worker"]["triggered"]) == ("queued", False)
    assert isinstance(answer["queue_position"], int)
    job = _finished(guest, answer["job_id"])
    assert job["job_id"] == answer["job_id"]
    assert job["exc_info"] is None
    for name in ("enqueued_at", "started_at", "ended_at"):
        assert job[name].endswith("+00:00")
        datetime.fromisoformat(job[name])
    assert job["meta"]["status"] == "completed"
    assert job["meta"]["user_id"] is None
    assert job["meta"]["progress"]["epoch"] == job["meta"]["progress"]["total"] == 1
    assert job["meta"]["generation"] == {"done": 20, "total": 20}
    assert 0 < len(job["meta"]["logs"]) <= 20
    # The page shows the last line, whole: that of the errors of every parameter is cut off.
    assert job["meta"]["logs"][-1] == "done; the result is saved"
    assert any(line.startswith("test: ") for line in job["meta"]["logs"])
    assert max(len(line) for line in job["meta"]["logs"]) <= 200


def test_the_result_has_the_fields_and_lengths_of_the_old_document(done: Json) -> None:
    result = done["result"]
    nr, sld, training = result["nr"], result["sld"], result["training"]
    assert len(nr["q"]) == len(nr["groundTruth"]) == len(nr["computed"]) == 308
    assert len(sld["z"]) == len(sld["groundTruth"]) == len(sld["predicted"]) == 900
    assert sld["z"][0] == 0
    assert sld["z"] == sorted(sld["z"])
    # From the silicon up to the air.
    assert sld["groundTruth"][0] == pytest.approx(2.07, abs=0.05)
    assert sld["groundTruth"][-1] == pytest.approx(0.0, abs=0.1)
    # Of a network that has hardly been trained the curve is another one, and says so.
    assert nr["computed"] != nr["groundTruth"]
    assert training["epochs"] == [1]
    assert len(training["trainingLoss"]) == len(training["validationLoss"]) == 1
    assert result["chi"] == []
    assert all(isinstance(result["metrics"][name], float | int) for name in ("mse", "r2", "mae"))
    assert result["name"] == "first film"
    assert str(uuid.UUID(result["model_id"])) == result["model_id"]
    assert result["model_size_mb"] > 0
    assert set(result["timing"]) == {"generation", "training", "inference", "total"}
    assert "projects/" not in json.dumps(result)


def test_a_finished_job_is_not_sent_again_to_who_has_it(guest: httpx.Client, done: Json) -> None:
    first = guest.get(f"/jobs/{done['job_id']}")
    again = guest.get(f"/jobs/{done['job_id']}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/generate", "/generate/stream", "/jobs/submit"])
def test_a_body_of_the_wrong_shape_is_a_list_of_what_is_wrong(guest: httpx.Client, path: str) -> None:
    wrong = {**SMALL, "training": {"epochs": 0}, "gpu": "T5", "layers": [{"sld": 200}]}
    answer = guest.post(path, json=wrong)
    assert answer.status_code == 422
    found = {tuple(error["loc"]): error for error in answer.json()["detail"]}
    assert set(found) == {("body", "training", "epochs"), ("body", "gpu"), ("body", "layers", 0, "sld")}
    assert found["body", "training", "epochs"]["input"] == 0
    missing = guest.post(path, json={"layers": []}).json()["detail"]
    assert {(error["type"], error["loc"][-1]) for error in missing} == {
        ("missing", "generator"),
        ("missing", "training"),
    }


BOUND = {"i": 1, "par": "sld", "bounds": [3.0, 4.0]}
FILM = [{"sld": 2.07}, {"sld": 3.47, "thickness": 12}, {"sld": 4.0, "thickness": 100}, {"sld": 0}]


@pytest.mark.parametrize(
    ("generator", "text"),
    [
        ({"numFilmLayers": 2, "layerBound": [BOUND]}, "numFilmLayers"),
        ({"numFilmLayers": 1, "layerBound": [{**BOUND, "i": 4}]}, "layerBound[0].i"),
        ({"numFilmLayers": 1, "layerBound": [{**BOUND, "bounds": [4, 3]}]}, "layerBound[0].bounds"),
        ({"numFilmLayers": 1, "layerBound": [{**BOUND, "bounds": [3, 200]}]}, "allowed for sld"),
        ({"numFilmLayers": 1, "layerBound": [{**BOUND, "bounds": [3, 3]}]}, "fixed"),
    ],
)
def test_bounds_that_make_no_sense_are_refused_in_a_sentence(
    guest: httpx.Client, generator: Json, text: str
) -> None:
    body = {**SMALL, "layers": FILM, "generator": {"numCurves": 20, **generator}}
    for path in ("/generate", "/jobs/submit"):
        answer = guest.post(path, json=body)
        assert answer.status_code == 400
        assert text in answer.json()["detail"]
    streamed = guest.post("/generate/stream", json=body)
    assert streamed.status_code == 200
    ((name, detail),) = _frames(streamed.text)
    assert name == "error"
    assert text in detail


def test_a_film_with_bounds_and_negative_sld_is_trained_for(guest: httpx.Client) -> None:
    titanium = {"name": "ti!", "sld": -1.95, "thickness": 60, "roughness": 5}
    layers = [
        {"name": "si", "sld": 2.07},
        {"name": "ti!", "sld": 3.47, "thickness": 12},
        titanium,
        {"sld": -0.56},
    ]
    bounds = [
        {"i": 2, "par": "thickness", "bounds": [40, 80]},
        {"i": 2, "par": "sld", "bounds": [-2.1, -1.8]},
    ]
    body = {
        **SMALL,
        "layers": layers,
        "generator": {"numCurves": 20, "numFilmLayers": 1, "layerBound": bounds},
    }
    answer = guest.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["sld"]["groundTruth"][-1] == pytest.approx(-0.56, abs=0.05)
    # As of the synchronous call.
    assert answer.json()["model_size_mb"] is None
    assert not {"timing", "name"} & answer.json().keys()


def test_a_job_that_is_not_there_is_404_everywhere(ada: httpx.Client) -> None:
    for job_id in (NO_JOB, "no-uuid"):
        calls = [
            ada.get(f"/jobs/{job_id}"),
            ada.patch(f"/jobs/{job_id}/name", json={"name": "x"}),
            *(
                ada.post(f"/jobs/{job_id}/{verb}")
                for verb in ("claim", "retry", "stop", "pause", "force-purge")
            ),
            ada.delete(f"/jobs/{job_id}"),
            ada.delete(f"/jobs/{job_id}/delete"),
            ada.post(f"/checkpoints/{job_id}/resume"),
            ada.delete(f"/checkpoints/{job_id}"),
        ]
        assert [answer.status_code for answer in calls] == [404] * len(calls)
        assert all(list(answer.json()) == ["detail"] for answer in calls)


def test_jobs_of_other_pipelines_are_not_there(platform: Platform, guest: httpx.Client) -> None:
    with platform.client() as client:
        job = client.submit("toy.line", {"model_name": "other", "steps": 1})
        client.wait(job.id, timeout=60)
    assert guest.get(f"/jobs/{job.id}").status_code == 404
    assert job.id not in guest.get("/queue").json()["job_ids"]


def test_wrong_methods_and_paths_fail_in_the_old_shape(guest: httpx.Client) -> None:
    for answer, status in ((guest.put("/jobs/submit"), 405), (guest.get("/jobs"), 404)):
        assert (answer.status_code, list(answer.json())) == (status, ["detail"])


def test_a_users_job_is_the_owners_and_may_be_looked_at_without_a_name(
    done: Json, ada: httpx.Client, grace: httpx.Client, guest: httpx.Client
) -> None:
    path = f"/jobs/{done['job_id']}"
    assert done["meta"]["user_id"] == "ada"
    assert guest.get(path).status_code == ada.get(path).status_code == 200
    refused = [
        grace.get(path),
        grace.patch(f"{path}/name", json={"name": "mine"}),
        grace.post(f"{path}/claim"),
        grace.post(f"{path}/retry"),
        grace.delete(f"{path}/delete"),
        guest.post(f"{path}/retry"),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert guest.patch(f"{path}/name", json={"name": "x"}).status_code == 401
    assert guest.post(f"{path}/claim").status_code == 401


def test_a_name_is_changed_and_removed(done: Json, ada: httpx.Client) -> None:
    path = f"/jobs/{done['job_id']}/name"
    assert ada.patch(path, json={"name": " second film "}).json() == {
        "job_id": done["job_id"],
        "name": "second film",
    }
    assert ada.get(f"/jobs/{done['job_id']}").json()["result"]["name"] == "second film"
    assert ada.patch(path, json={"name": "x" * 81}).status_code == 400
    assert ada.patch(path, json={"name": "  "}).json()["name"] is None


def test_a_finished_job_of_a_guest_is_claimed_and_goes_into_the_history(
    platform: Platform, guest: httpx.Client, grace: httpx.Client
) -> None:
    job_id = _submit(guest)
    assert job_id in guest.get("/queue").json()["job_ids"]
    _finished(guest, job_id)
    for _ in range(2):
        claimed = grace.post(f"/jobs/{job_id}/claim").json()
        assert claimed == {"job_id": job_id, "user_id": "grace", "status": "claimed"}
    assert job_id not in guest.get("/queue").json()["job_ids"]
    assert job_id in grace.get("/queue").json()["job_ids"]
    with platform.client() as client:
        assert client.job(job_id).labels["guidehall-legacy-kept"] == "1"


def test_a_run_that_is_run_again_begins_with_marks_of_its_own(
    platform: Platform, grace: httpx.Client, guest: httpx.Client
) -> None:
    job_id = _submit(guest)
    _finished(guest, job_id)
    grace.post(f"/jobs/{job_id}/claim")
    marks = {"guidehall-legacy-kept", "guidehall-legacy-no-checkpoint"}
    with platform.client() as client:
        labels = client.job(job_id).labels
        assert "guidehall-legacy-kept" in labels
        client.update(job_id, labels={**labels, "guidehall-legacy-no-checkpoint": "1"})
        again = grace.post(f"/jobs/{job_id}/retry").json()["job_id"]
        assert not marks & set(client.job(again).labels)
        assert marks <= set(client.job(job_id).labels)
        model = _finished(grace, again)["result"]["model_id"]
    kept = [run["result"]["model_id"] for run in grace.get("/history").json()]
    assert model in kept


def test_a_run_is_paused_resumed_stopped_with_its_best_and_run_again(
    ada: httpx.Client, guest: httpx.Client
) -> None:
    job_id = _submit(ada, {**LONG, "name": "long"})
    started = _until(ada, job_id, _training)
    assert started["status"] == "started"
    assert ada.delete(f"/jobs/{job_id}").status_code == 400
    assert ada.delete(f"/jobs/{job_id}/delete").status_code == 400
    assert ada.post(f"/checkpoints/{job_id}/resume").status_code == 404
    assert ada.post(f"/jobs/{job_id}/pause").json()["status"] == "pause_requested"
    paused = _until(ada, job_id, lambda job: bool(job["meta"]["status"] == "paused"))
    assert paused["status"] == "finished"
    assert paused["result"]["paused"] is True
    assert ada.post(f"/jobs/{job_id}/stop").status_code == 400
    assert job_id in ada.get("/checkpoints").json()["checkpoints"]
    # That would end it, and who it is was not said.
    assert guest.delete(f"/jobs/{job_id}/delete").status_code == 403
    assert guest.get(f"/jobs/{job_id}").json()["meta"]["status"] == "paused"

    resumed = ada.post(f"/checkpoints/{job_id}/resume").json()
    assert (resumed["job_id"], resumed["resumed_from"], resumed["status"]) == (job_id, job_id, "queued")
    going = _until(ada, job_id, _training)
    assert going["meta"]["name"] == "long (resumed)"
    soft = ada.post(f"/jobs/{job_id}/stop").json()
    assert (soft["status"], soft["hard_stop"]) == ("stop_requested", False)
    stopped = _finished(ada, job_id)
    assert stopped["meta"]["status"] == "stopped"
    assert stopped["meta"]["logs"][-1] == "stopped early; the best so far is saved"
    assert stopped["meta"]["stop_requested"]
    assert stopped["result"]["stopped"] is True
    # What it had by then is there.
    assert len(stopped["result"]["nr"]["q"]) == 308

    again = ada.post(f"/jobs/{job_id}/retry").json()
    assert again["job_id"] != job_id
    retried = _until(ada, again["job_id"], _training)
    assert (retried["meta"]["retried_from"], retried["meta"]["user_id"]) == (job_id, "ada")
    hard = ada.post(f"/jobs/{again['job_id']}/stop", params={"hard": "true"}).json()
    assert hard["hard_stop"] is True
    assert set(hard) == {"job_id", "status", "hard_stop", "phase", "cleanup", "message"}
    ended = _until(ada, again["job_id"], lambda job: bool(job["status"] == "stopped"))
    assert "result" not in ended
    assert ada.delete(f"/jobs/{again['job_id']}/delete").json()["status"] == "deleted"
    assert ada.get(f"/jobs/{again['job_id']}").status_code == 404


def test_what_waits_has_a_place_is_cancelled_and_not_listed_then(
    guest: httpx.Client, ada: httpx.Client
) -> None:
    long = [_submit(ada, LONG) for _ in range(2)]
    for job_id in long:
        _until(ada, job_id, lambda job: bool(job["status"] == "started"))
    job_id = _submit(guest)
    waiting = guest.get(f"/jobs/{job_id}").json()
    assert (waiting["status"], waiting["position"], waiting["started_at"]) == ("queued", 1, None)
    assert waiting["queue_length"] >= 1
    queue = ada.get("/queue").json()
    assert queue["available"] is True
    assert (queue["queue_name"], queue["started_jobs"]) == ("training", 2)
    assert set(long) | {job_id} <= set(queue["job_ids"])
    assert {worker["state"] for worker in queue["workers"]} == {"busy"}
    assert {worker["current_job"] for worker in queue["workers"]} == set(long)
    seen = guest.get("/queue").json()
    assert not set(long) & set(seen["job_ids"])
    assert {worker["current_job"] for worker in seen["workers"]} == {None}

    assert guest.delete(f"/jobs/{job_id}").json()["status"] == "cancelled"
    assert guest.get(f"/jobs/{job_id}").json()["status"] == "canceled"
    assert job_id not in guest.get("/queue").json()["job_ids"]

    checked = guest.post("/queue/cleanup", params={"dry_run": "true"}).json()
    assert (checked["scanned"], checked["stale"], checked["cleaned"]) == (2, [], [])
    for started in long:
        purged = ada.post(f"/jobs/{started}/force-purge").json()
        assert (purged["success"], purged["removed_from"]) == (True, ["started"])
        assert ada.get(f"/jobs/{started}").status_code == 404
    assert guest.post("/queue/spawn").json()["remote_worker"]["triggered"] is False


def test_a_run_that_tells_nothing_for_long_is_ended_by_the_cleanup(
    platform: Platform, ada: httpx.Client
) -> None:
    job_id = _submit(ada, LONG)
    _until(ada, job_id, _training)
    workers = [part.pid for part in control.status(platform.data).services if part.name.startswith("worker")]
    asked = {"threshold_seconds": "1"}
    # Silent, until its lease runs out in four seconds.
    for pid in workers:
        os.kill(pid or 0, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (told := ada.post("/queue/cleanup", params=asked | {"dry_run": "true"}).json())["stale"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert ([job["job_id"] for job in told["stale"]], told["cleaned"]) == ([job_id], [])
        told = ada.post("/queue/cleanup", params=asked).json()
    finally:
        for pid in workers:
            os.kill(pid or 0, signal.SIGCONT)
    assert ([job["job_id"] for job in told["stale"]], told["cleaned"], told["errors"]) == (
        [job_id],
        [job_id],
        [],
    )
    _until(ada, job_id, lambda job: bool(job["status"] == "stopped"))


def test_a_user_purges_own_jobs(grace: httpx.Client, guest: httpx.Client, done: Json) -> None:
    _finished(grace, _submit(grace))
    assert guest.delete("/jobs/purge").status_code == 401
    purged = grace.delete("/jobs/purge", params={"include_queued": "true"}).json()
    assert set(purged) == {
        "user_id",
        "deleted",
        "skipped_running",
        "skipped_queued",
        "skipped_unowned",
        "missing",
        "include_queued",
    }
    assert purged["user_id"] == "grace"
    assert purged["deleted"] >= 1
    assert guest.get(f"/jobs/{done['job_id']}").status_code == 200


def _frames(text: str) -> list[tuple[str, Any]]:
    """Names and data of the events of a stream."""
    found = []
    for part in text.strip().split("\n\n"):
        lines = [line for line in part.split("\n") if not line.startswith(":")]
        if lines:
            name, data = lines
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_stream_tells_progress_and_gives_the_result(ada: httpx.Client) -> None:
    body = {**SMALL, "training": {"epochs": 2, "batchSize": 8}, "name": "streamed"}
    answer = ada.post("/generate/stream", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    frames = _frames(answer.text)
    progress = [data for name, data in frames if name == "progress"]
    assert [item["epoch"] for item in progress] == [1, 2]
    assert set(progress[0]) == {"epoch", "total", "trainLoss", "valLoss"}
    names = [name for name, _ in frames]
    # Each before the line about it.
    assert names[names.index("progress") + 1] == "log"
    (result,) = (data for name, data in frames if name == "result")
    assert len(result["nr"]["q"]) == 308
    assert result["name"] == "streamed"
    assert not {"timing", "model_size_mb"} & result.keys()
    assert frames[-1] == ("log", "saved to the history")


def test_a_stream_outlives_a_restart_of_the_trainer(platform: Platform, ada: httpx.Client) -> None:
    body = {**SMALL, "generator": {"numCurves": 100}, "training": {"epochs": 40, "batchSize": 8}}
    text, killed = "", False
    with ada.stream("POST", "/generate/stream", json=body) as answer:
        for piece in answer.iter_text():
            text += piece
            if "event: progress" in text and not killed:
                platform.kill("trainer")
                killed = True
    frames = _frames(text)
    epochs = [data["epoch"] for name, data in frames if name == "progress"]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == 40
    assert [name for name, _ in frames if name in ("result", "error")] == ["result"]


@pytest.mark.parametrize("path", ["/generate", "/generate/stream"])
def test_who_hangs_up_ends_the_run(platform: Platform, base: str, path: str) -> None:
    mark = f"left {path}"
    with platform.client() as client:

        def hang_up() -> None:
            with (
                _client(base, "ada") as impatient,
                impatient.stream("POST", path, json={**LONG, "name": mark}) as answer,
            ):
                next(answer.iter_lines())

        if path == "/generate":
            with _client(base, "ada") as impatient:
                impatient.timeout = httpx.Timeout(3.0)
                with pytest.raises(httpx.ReadTimeout):
                    impatient.post(path, json={**LONG, "name": mark})
        else:
            hang_up()
        (job,) = client.jobs(f'display_name = "{mark}"')
        assert client.wait(job.id, timeout=60).state.name == "CANCELLED"


def test_real_data_is_not_for_the_synchronous_call_nor_for_guests(
    guest: httpx.Client, ada: httpx.Client
) -> None:
    real = {**SMALL, "dataSource": "real"}
    assert guest.post("/generate", json=real).status_code == 400
    assert guest.post("/jobs/submit", json=real).status_code == 401
    missing = ada.post("/jobs/submit", json={**real, "workflow": "sld_chi"})
    assert missing.status_code == 400
    assert "sld_chi_model_sld_file" in missing.json()["detail"]


@pytest.fixture(scope="module")
def uploaded(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A user whose files for every run on measured data are there."""
    token = TokenIssuer("storage", KeyPair.load(_identity(platform).key_file("storage"))).mint(
        "linus", "user", roles=[Role.SCIENTIST], ttl_seconds=3600
    )
    network = _small_network(tmp_path_factory.mktemp("network"))
    nr, sld = (np.load(network / "artifacts" / f"{name}_train.npy") for name in ("nr", "sld"))
    heights = np.linspace(0.08, 0.11, len(sld))
    files = {
        "nr_train": _npy(nr),
        "sld_train": _npy(sld),
        "experimental_nr": _npy(nr[:1]),
        "nr_sld_model": (network / "models" / "small" / "model.safetensors").read_bytes(),
        "normalization_stats": next((network / "artifacts").glob("*.json")).read_bytes(),
        "sld_chi_model_sld_file": _npy(sld),
        "sld_chi_model_chi_params_file": _npy(np.stack([heights, 10 * heights], axis=1)),
        "sld_chi_experimental_profile": _npy(sld[0]),
    }
    roles = datasets_pb2.UploadRoles(name="users/linus/uploadRoles")
    storage = platform.endpoints["storage"]
    with Client({"storage": storage}, token) as client:
        for role, content in files.items():
            version = client.upload_dataset(content, f"legacy-{role}".replace("_", "-"), filename=role)
            roles.dataset_versions[role] = version.name
    with grpc.insecure_channel(storage) as channel:
        stub = datasets_pb2_grpc.UploadRolesServiceStub(channel)
        request = datasets_pb2.UpdateUploadRolesRequest(upload_roles=roles)
        stub.UpdateUploadRoles(request, metadata=(("authorization", f"Bearer {token}"),), timeout=10)
    return "linus"


def _identity(platform: Platform) -> Identity:
    return Identity(platform.data / "identity")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _small_network(folder: Path) -> Path:
    """A network of pyreflect that has hardly been trained, its statistics and curves, in a folder."""
    params = CnnParams.model_validate(
        {
            "model_name": "small",
            "curves": 30,
            "probe": {"points": 32, "resolution": 0.02, "scale": 1, "background": 0},
            "profile_points": 40,
            "network": {"layers": 2, "width": 8, "kernel": 5, "dropout": 0.0},
            "training": {"epochs": 1, "precision": "float32"},
            "export": True,
        }
    )
    train.run(params, LocalContext(folder, seed=1))
    return folder


REAL: Json = {
    "layers": [],
    "generator": {},
    "training": {"epochs": 1, "layers": 1, "batchSize": 8, "aeEpochs": 2, "mlpEpochs": 3, "latentDim": 4},
    "dataSource": "real",
}


def test_real_training_reads_the_files(base: str, uploaded: str) -> None:
    with _client(base, uploaded) as client:
        job = _finished(client, _submit(client, {**REAL, "name": "measured"}))
    result = job["result"]
    # Of the files' own grids.
    assert (len(result["nr"]["q"]), len(result["sld"]["z"])) == (32, 40)
    assert result["training"]["epochs"] == [1]
    assert result["model_id"]
    assert result["name"] == "measured"


def test_real_inference_predicts_the_first_curve(base: str, uploaded: str) -> None:
    with _client(base, uploaded) as client:
        job = _finished(client, _submit(client, {**REAL, "mode": "infer"}))
    result = job["result"]
    assert (len(result["nr"]["q"]), len(result["sld"]["z"])) == (32, 40)
    assert result["sld"]["groundTruth"] == result["sld"]["predicted"]
    assert result["metrics"] == {"mse": 0, "r2": 0, "mae": 0}
    assert (result["chi"], result["training"]["epochs"], result["model_id"]) == ([], [], None)


@pytest.mark.parametrize(
    ("workflow", "mode"), [("sld_chi", "train"), ("nr_sld_chi", "train"), ("nr_sld_chi", "infer")]
)
def test_chi_is_told_with_the_truth_that_is_known(base: str, uploaded: str, workflow: str, mode: str) -> None:
    with _client(base, uploaded) as client:
        body = {**REAL, "workflow": workflow, "mode": mode}
        result = _finished(client, _submit(client, body))["result"]
    assert [point["x"] for point in result["chi"]] == [1, 2]
    assert 0.08 <= result["chi"][0]["actual"] <= 0.11
    assert result["chi"][0]["actual"] != result["chi"][0]["predicted"]
    # Of the measured ones there is only what is predicted.
    assert len(result["predictions"]) == 1
    assert len(result["sld"]["z"]) == len(result["sld"]["predicted"]) == 40
    assert len(result["nr"]["q"]) == (0 if workflow == "sld_chi" else 32)
    assert (result["model_id"] is None) == (workflow == "sld_chi" or mode == "infer")


@pytest.fixture(scope="module")
def shared(platform: Platform) -> Iterator[Gateway]:
    """A gateway of a shared installation: behind a proxy, in production."""
    ends = platform.endpoints
    gateway = Gateway(
        _identity(platform),
        AUTH__MODE="proxy",
        AUTH__PROXY_SECRET="s3cret",
        LEGACY__ADMIN_TOKEN="t0ken",
        LEGACY__LIMITS_WHITELIST_USER_IDS='["grace"]',
        LEGACY__JOBS_SUBMIT_PER_MINUTE=3,
        TRAINER__TARGET=ends["trainer"],
        STORAGE__TARGET=ends["storage"],
        INFERENCE__TARGET=ends["inference"],
    )
    yield gateway
    gateway.stop()


def _behind_proxy(gateway: Gateway, user: str | None) -> httpx.Client:
    headers = {"X-Guidehall-Proxy-Secret": "s3cret"} | ({} if user is None else {"X-User-ID": user})
    return httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}/api", headers=headers, timeout=30)


def test_in_production_limits_count_and_all_that_are_exceeded_are_named(shared: Gateway) -> None:
    much = {**SMALL, "generator": {"numCurves": 5001, "numFilmLayers": 11}, "training": {"epochs": 51}}
    with _behind_proxy(shared, None) as guest:
        for path in ("/jobs/submit", "/generate"):
            answer = guest.post(path, json=much)
            assert answer.status_code == 400
            detail = answer.json()["detail"]
            assert [part.split(":")[0] for part in detail.split("; ") if ":" in part] == [
                "generator.numCurves",
                "generator.numFilmLayers",
                "training.epochs",
            ]
        ((name, streamed),) = _frames(guest.post("/generate/stream", json=much).text)
        assert (name, streamed) == ("error", detail)


def test_in_production_guests_neither_stop_nor_pause_and_administration_needs_the_token(
    shared: Gateway, done: Json
) -> None:
    path = f"/jobs/{done['job_id']}"
    with _behind_proxy(shared, None) as guest:
        refused = [
            guest.post(f"{path}/stop"),
            guest.post(f"{path}/pause"),
            guest.post(f"/checkpoints/{done['job_id']}/resume"),
            guest.post(f"{path}/force-purge"),
            guest.post("/queue/spawn", headers={"X-Admin-Token": "wrong"}),
            guest.post("/queue/cleanup"),
        ]
        assert [answer.status_code for answer in refused] == [401] * len(refused)
        assert guest.post("/queue/spawn", headers={"X-Admin-Token": "t0ken"}).status_code == 200
        assert guest.get(path).status_code == 200
    bare = httpx.get(f"http://127.0.0.1:{shared.port}/api{path}", headers={"X-User-ID": "ada"})
    assert bare.status_code == 401


def test_all_that_makes_jobs_is_limited_together_and_polls_are_not(shared: Gateway, done: Json) -> None:
    wrong = {**SMALL, "layers": FILM, "generator": {"layerBound": [BOUND]}}
    with _behind_proxy(shared, "ada") as ada:
        ways = ("/jobs/submit", "/generate", "/generate/stream")
        answers = [ada.post(path, json=wrong) for path in ways]
        assert [answer.status_code for answer in answers] == [400, 400, 200]
        refused = [ada.post(path, json=wrong) for path in ways]
        refused.append(ada.post(f"/jobs/{done['job_id']}/retry"))
        for answer in refused:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
        # What has the wrong shape is told first.
        assert ada.post("/jobs/submit", json={}).status_code == 422
        assert {ada.get("/queue").status_code for _ in range(50)} == {200}


def test_without_the_trainer_the_queue_says_so_and_jobs_are_503(platform: Platform) -> None:
    alone = Gateway(_identity(platform))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{alone.port}/api", timeout=60) as client:
            queue = client.get("/queue")
            assert queue.status_code == 200
            assert queue.json()["available"] is False
            assert client.post("/jobs/submit", json=SMALL).status_code == 503
            assert client.get(f"/jobs/{NO_JOB}").status_code == 503
    finally:
        alone.stop()
