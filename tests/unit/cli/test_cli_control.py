"""Control of jobs and of workers on the command line: what is asked of the server, and what is said."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from guidehall.cli._app import run
from guidehall.cli._output import moment
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.errors import FailedPrecondition, InvalidArgument
from tests.unit.cli.conftest import BATCH, CREDENTIAL, JOB, WORKER, Peer

NR_SLD = "reflectometry.nr_sld"
Captured = pytest.CaptureFixture[str]


def _requests(peer: Peer, kind: type) -> list[Any]:
    return [request for request in peer.requests if isinstance(request, kind)]


@pytest.mark.parametrize(
    ("command", "request_type", "said"),
    [
        ("cancel", jobs_pb2.CancelJobRequest, "job 0a1b2c3d is pausing"),
        ("stop", jobs_pb2.StopJobRequest, "job 0a1b2c3d is pausing"),
        ("pause", jobs_pb2.PauseJobRequest, "let it go on with: guidehall resume 0a1b2c3d"),
        ("resume", jobs_pb2.ResumeJobRequest, "job 0a1b2c3d is pausing"),
        ("claim", jobs_pb2.ClaimJobRequest, "job 0a1b2c3d belongs to ann"),
    ],
)
def test_a_word_to_a_job_names_it_and_tells_how_it_is(
    peer: Peer, capsys: Captured, command: str, request_type: type, said: str
) -> None:
    peer.job.state = jobs_pb2.JOB_STATE_RUNNING
    peer.job.desired_state = jobs_pb2.DESIRED_STATE_PAUSE
    peer.job.owner = "ann"

    assert run([command, "0a1b"]) == 0

    assert [request.name for request in _requests(peer, request_type)] == [JOB]
    assert said in capsys.readouterr().out
    assert run([command, "0a1b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == JOB


def test_a_refused_word_says_why(peer: Peer, capsys: Captured) -> None:
    peer.error = FailedPrecondition("job is not paused")

    assert run(["resume", JOB]) == 1

    assert capsys.readouterr().err == "guidehall: job is not paused\n"


def test_rename_changes_the_name_alone(peer: Peer, capsys: Captured) -> None:
    peer.job.display_name = "thin film"

    assert run(["rename", JOB, "thin film"]) == 0

    request = peer.requests[-1]
    assert (request.job.name, request.job.display_name) == (JOB, "thin film")
    assert list(request.update_mask.paths) == ["display_name"]
    assert capsys.readouterr().out == "job 0a1b2c3d is called 'thin film'\n"


def test_retry_changes_by_path_with_the_types_of_the_pipeline(peer: Peer, capsys: Captured) -> None:
    peer.job.pipeline = NR_SLD
    changes = ["--set", "training.epochs=50", "--set", "stack.layers.1.sld=4", "--set", "model_name=7"]

    code = run(["retry", JOB, *changes, "--seed", "3", "--from-start", "--name", "n", "--timeout", "2h"])

    assert code == 0, capsys.readouterr().err
    request = peer.requests[-1]
    assert dict(request.param_changes) == {
        "training.epochs": 50,
        "stack.layers[1].sld": 4,
        "model_name": "7",
    }
    assert (request.name, request.seed, request.from_start, request.timeout_seconds) == (JOB, 3, True, 7200)
    assert "follow it with: guidehall watch 0a1b2c3d" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "training.epoch=5"], "there is no parameter training.epoch"),
        (["--set", "training.epochs"], "'training.epochs' is not PATH=VALUE"),
        (["--set", "training.epochs=0"], "0 is not from 1 to 10000"),
        (["--timeout", "soon"], "'soon' is not a duration such as"),
    ],
)
def test_a_wrong_change_submits_nothing(
    peer: Peer, capsys: Captured, arguments: list[str], said: str
) -> None:
    peer.job.pipeline = NR_SLD

    assert run(["retry", JOB, *arguments]) == 2

    assert said in " ".join(capsys.readouterr().err.split())
    assert _requests(peer, jobs_pb2.RetryJobRequest) == []


def test_refusals_of_a_retry_name_flags(peer: Peer, capsys: Captured) -> None:
    peer.error = InvalidArgument.field("params.training.epochs", 5, "at most 4")

    assert run(["retry", JOB]) == 2

    assert capsys.readouterr().err == "guidehall: --set training.epochs: got 5; allowed: at most 4\n"


def test_attempts_tell_who_when_and_how_it_ended(peer: Peer, capsys: Captured) -> None:
    ended = jobs_pb2.Attempt(
        lease_epoch=2, number=1, worker=WORKER, end_reason=jobs_pb2.END_REASON_LEASE_LOST
    )
    start = datetime(2030, 1, 1, tzinfo=timezone.utc)
    ended.start_time.FromDatetime(start)
    ended.end_time.FromDatetime(start + timedelta(minutes=5))
    ended.checkpoint.step = 40
    peer.attempts = [jobs_pb2.Attempt(lease_epoch=3, number=2, worker=WORKER), ended]

    assert run(["attempts", JOB]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["3", "2", "1d2e3f4a", "works", "on", "it"]
    assert lines[2].split() == ["2", "1", "1d2e3f4a", "5", "min", "lease", "lost", "step", "40"]


def test_dead_jobs_are_found_by_their_reason(peer: Peer, capsys: Captured) -> None:
    peer.job.error.message = "the worker died"
    peer.job.latest_retry = JOB.replace("0a1b2c3d", "77b10f3e")

    assert run(["dead"]) == 0

    (listed,) = peer.requests
    assert listed.filter == 'end_reason = "ATTEMPTS_EXHAUSTED"'
    shown = capsys.readouterr().out
    assert "the worker died" in shown
    assert "77b10f3e" in shown


def test_redrive_submits_dead_jobs_and_no_others(peer: Peer, capsys: Captured) -> None:
    assert run(["dead", "--redrive", JOB]) == 2
    assert "has not failed on every attempt" in capsys.readouterr().err
    peer.job.end_reason = jobs_pb2.END_REASON_ATTEMPTS_EXHAUSTED

    assert run(["dead", "--redrive", JOB]) == 0
    assert capsys.readouterr().out == "job 0a1b2c3d is submitted once more as 0a1b2c3d\n"
    peer.job.latest_retry = JOB
    assert run(["dead", "--redrive", "--all"]) == 0

    assert [request.name for request in _requests(peer, jobs_pb2.RetryJobRequest)] == [JOB]


@pytest.mark.parametrize("arguments", [["--all"], ["--redrive"], [JOB], ["--redrive", "--all", JOB]])
def test_redrive_is_never_meant_by_chance(peer: Peer, arguments: list[str]) -> None:
    assert run(["dead", *arguments]) == 2
    assert peer.requests == []


def test_delete_looks_every_job_up_first(peer: Peer, capsys: Captured) -> None:
    assert run(["delete", "0a1b2c3d", "ffff0000"]) == 3
    assert _requests(peer, jobs_pb2.DeleteJobRequest) == []

    assert run(["delete", "0a1b2c3d"]) == 0

    assert [request.name for request in _requests(peer, jobs_pb2.DeleteJobRequest)] == [JOB]
    assert capsys.readouterr().out == "job 0a1b2c3d is deleted\n"


def _asked(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: answer)


@pytest.mark.parametrize(("answer", "code", "forced"), [("y", 0, [False, True]), ("n", 1, [False])])
def test_purge_counts_and_asks_first(
    peer: Peer, capsys: Captured, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, forced: list[bool]
) -> None:
    peer.purge = jobs_pb2.PurgeJobsResponse(deleted=3, skipped_running=1, skipped_publishing=2)
    _asked(monkeypatch, answer)

    assert run(["purge"]) == code

    assert [request.force for request in _requests(peer, jobs_pb2.PurgeJobsRequest)] == forced
    said = capsys.readouterr()
    left = "left alone: 1 held by a worker, 2 with a result that is still being published"
    assert f"3 jobs would be deleted; {left}" in said.err
    assert said.out == (f"3 jobs deleted; {left}\n" if code == 0 else "nothing was deleted\n")


def test_purge_of_nothing_asks_nothing(peer: Peer, capsys: Captured) -> None:
    assert run(["purge"]) == 0

    assert capsys.readouterr().err == "0 jobs would be deleted\n"
    assert [request.force for request in peer.requests] == [False]


def test_purge_is_narrowed_by_state_age_and_filter(peer: Peer, capsys: Captured) -> None:
    peer.purge = jobs_pb2.PurgeJobsResponse(deleted=2)
    words = "purge --yes --json --state failed --state cancelled --older-than 30d --filter"

    assert run([*words.split(), 'labels.run = "12"']) == 0

    assert json.loads(capsys.readouterr().out) == {
        "forced": True,
        "deleted": 4,
        "skipped_running": 0,
        "skipped_queued": 0,
        "skipped_publishing": 0,
    }
    assert all(request.force for request in peer.requests)
    label, time, state = peer.requests[0].filter.split(" AND ")
    assert (label, state) == ('labels.run = "12"', 'state = "FAILED"')
    before = datetime.fromisoformat(time.removeprefix('update_time < "').rstrip('"'))
    age = datetime.now(timezone.utc) - before
    assert timedelta(days=30) <= age < timedelta(days=30, minutes=5)


def test_purge_for_programs_counts_without_yes(peer: Peer, capsys: Captured) -> None:
    peer.purge = jobs_pb2.PurgeJobsResponse(deleted=2, skipped_queued=1)

    assert run(["purge", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {
        "forced": False,
        "deleted": 2,
        "skipped_running": 0,
        "skipped_queued": 1,
        "skipped_publishing": 0,
    }
    assert [request.force for request in peer.requests] == [False]


def test_queued_jobs_are_purged_only_when_it_is_said_twice(peer: Peer, capsys: Captured) -> None:
    assert run(["purge", "--state", "queued"]) == 2

    assert "--state QUEUED needs --include-queued" in capsys.readouterr().err
    assert peer.requests == []


def test_a_sweep_becomes_axes_of_the_types_of_the_pipeline(peer: Peer, capsys: Captured) -> None:
    sweeps = ["--sweep", "model_name=a,7", "--sweep", 'stack.layers.0.sld=[1,{"min":2,"max":3}]', "--zip"]
    options = "--timeout 30m --notify https://lab.example/hook --notify ann@lab.example --group g"

    code = run(["submit", NR_SLD, "--dry-run", "--device-class", "H200", *sweeps, *options.split()])

    assert code == 0
    request = peer.requests[-1]
    template = request.sweep.template
    assert (template.pipeline, template.timeout_seconds, template.group) == (NR_SLD, 1800, "g")
    assert template.device_class == "H200"
    assert [item.WhichOneof("target") for item in template.notifications] == ["webhook_url", "email_address"]
    first, second = request.sweep.axes
    assert (first.path, list(first.values)) == ("model_name", ["a", "7"])
    assert second.path == "stack.layers[0].sld"
    assert request.sweep.zipped
    assert request.validate_only
    assert capsys.readouterr().out == "2 jobs would be accepted; nothing was submitted\n"


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("sweep.template.params.training.epochs", "--training.epochs"),
        ("sweep.template.pool", "--pool"),
        ("sweep.axes[1].values[2]", "--sweep training.width, value 3"),
        ("sweep.axes[0].path", "--sweep model_name"),
        ("sweep.axes[0]", "--sweep model_name"),
        ("sweep.axes", "--sweep axes"),
    ],
)
def test_refusals_of_a_sweep_name_flags(peer: Peer, capsys: Captured, field: str, flag: str) -> None:
    peer.error = InvalidArgument.field(field, "x", "y")

    assert run(["submit", NR_SLD, "--sweep", "model_name=a", "--sweep", "training.width=8,16,32"]) == 2

    assert capsys.readouterr().err == f"guidehall: {flag}: got 'x'; allowed: y\n"


def test_a_sweep_lists_its_jobs_with_their_values(peer: Peer, capsys: Captured) -> None:
    assert run(["submit", NR_SLD, "--sweep", "model_name=a,b"]) == 0

    headings, *rows, last = capsys.readouterr().out.splitlines()
    assert headings.split() == ["JOB", "model_name"]
    assert [row.split() for row in rows] == [["0a1b2c3d", '"a"'], ["0a1b2c3d", '"b"']]
    assert last == f"see them with: guidehall jobs --filter 'batch = \"{BATCH}\"'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep", "training.epochs=5,0"], "0 is not from 1 to 10000"),
        (["--sweep", "training.epoch=5"], "there is no parameter training.epoch"),
        (["--sweep", "training.epochs=[]"], "at least one value is needed"),
        (["--sweep", "training.epochs=[5"], "Expecting"),
        (["--zip"], "--zip goes with --sweep"),
        (["--sweep", "training.epochs=5", "--watch"], "--watch follows one job"),
        (["--notify", "lab.example"], "--notify: got 'lab.example'; allowed: a web address"),
    ],
)
def test_a_wrong_sweep_submits_nothing(peer: Peer, capsys: Captured, arguments: list[str], said: str) -> None:
    assert run(["submit", NR_SLD, *arguments]) == 2

    assert said in " ".join(capsys.readouterr().err.split())
    assert peer.requests == []


def test_the_queue_shows_places_and_estimates(peer: Peer, capsys: Captured) -> None:
    start = datetime(2030, 1, 2, 12, tzinfo=timezone.utc)
    peer.job.queue_position = 2
    peer.job.pool = "cpu"
    for estimate, hours in ((peer.job.start_estimate, 0), (peer.job.end_estimate, 3)):
        estimate.time.FromDatetime(start + timedelta(hours=hours))
        estimate.earliest_time.FromDatetime(start + timedelta(hours=hours - 1))
        estimate.latest_time.FromDatetime(start + timedelta(hours=hours + 1))

    assert run(["queue"]) == 0
    queue = capsys.readouterr().out
    assert run(["job", JOB]) == 0
    job = capsys.readouterr().out

    assert [request.filter for request in _requests(peer, jobs_pb2.ListJobsRequest)] == [
        f'state = "{state}"' for state in ("RUNNING", "LEASED", "QUEUED")
    ]
    assert "2 in front" in queue
    assert f"~{moment(start)}" in queue
    assert f"~{moment(start + timedelta(hours=3))}" in queue
    around = [moment(start + timedelta(hours=hours)) for hours in (0, -1, 1)]
    assert "starts    about {}, most likely {} to {}".format(*around) in job.replace(
        "starts       ", "starts    "
    )


def test_the_queue_by_pool_tells_why_no_worker_is_launched(peer: Peer, capsys: Captured) -> None:
    peer.pool.device_class = "H200"
    peer.pool.launcher.kind = "command"
    peer.pool.launcher.waiting_for = "throttled"
    peer.pool.launcher.last_error = "exit code 3"

    assert run(["queue", "--by-pool"]) == 0

    assert "command, throttled, failed: exit code 3" in capsys.readouterr().out


def test_a_worker_is_drained_and_reinstated_by_its_short_id(peer: Peer, capsys: Captured) -> None:
    peer.worker.state = workers_pb2.WORKER_STATE_DRAINING
    peer.worker.job = JOB

    assert run(["workers", "drain", "1d2e3f4a", "--release-job"]) == 0
    request = peer.requests[-1]
    assert (request.name, request.release_job) == (WORKER, True)
    assert capsys.readouterr().out == "worker 1d2e3f4a is draining; it works on job 0a1b2c3d\n"
    assert run(["workers", "reinstate", "1d2e3f4a"]) == 0
    assert peer.requests[-1] == workers_pb2.ReinstateWorkerRequest(name=WORKER)
    assert run(["workers", "drain", "ffff"]) == 3


def test_quarantine_says_why(peer: Peer, capsys: Captured) -> None:
    peer.worker.state = workers_pb2.WORKER_STATE_QUARANTINED
    peer.worker.quarantine_reason = "CUDA error 719"

    assert run(["workers"]) == 0

    assert "CUDA error 719" in capsys.readouterr().out


def test_the_token_of_a_new_credential_is_alone_on_standard_output(peer: Peer, capsys: Captured) -> None:
    assert run(["workers", "credentials", "create", "cpu", "--note", "beamline 7", "--ttl", "90d"]) == 0

    request = peer.requests[-1]
    assert (request.parent, request.note, request.ttl_seconds) == ("pools/cpu", "beamline 7", 90 * 86_400)
    said = capsys.readouterr()
    assert said.out == "secret\n"
    assert "guidehall workers credentials revoke 5c0d91aa" in said.err


def test_credentials_are_listed_and_revoked(peer: Peer, capsys: Captured) -> None:
    assert run(["workers", "credentials", "--pool", "cpu"]) == 0
    assert peer.requests[-1].parent == "pools/cpu"
    assert "beamline 7" in capsys.readouterr().out

    assert run(["workers", "credentials", "revoke", "5c0d91aa"]) == 0

    assert peer.requests[-1] == workers_pb2.RevokeWorkerCredentialRequest(name=CREDENTIAL)
