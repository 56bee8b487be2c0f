"""A job in the words of the old web app, and the frames of its streams."""

from __future__ import annotations

from typing import Any

import pytest

from guidehall.contracts.jobs.v1 import jobs_pb2
from services.gateway.legacy.status import LOG_LINES, Told, frame, meta, phase, status

STATES = jobs_pb2.JobState
REQUEST = {"training": {"epochs": 10, "aeEpochs": 50, "mlpEpochs": 60}}


def _job(state: str, **fields: Any) -> jobs_pb2.Job:
    job = jobs_pb2.Job(
        name="projects/default/jobs/1", state=STATES.Value(f"JOB_STATE_{state}"), desired_state=1
    )
    desired, reason = fields.pop("desired", None), fields.pop("reason", None)
    if desired:
        job.desired_state = jobs_pb2.DesiredState.Value(f"DESIRED_STATE_{desired}")
    if reason:
        job.end_reason = jobs_pb2.EndReason.Value(f"END_REASON_{reason}")
    if fields.pop("started", False):
        job.start_time.FromSeconds(1_700_000_000)
    if "progress" in fields:
        name, step, total = fields.pop("progress")
        job.progress.CopyFrom(jobs_pb2.Progress(phase=name, step=step, total=total))
    for name, value in fields.items():
        setattr(job, name, value)
    return job


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (_job("QUEUED"), ("queued", None)),
        (_job("LEASED"), ("started", "initializing")),
        (_job("RUNNING", started=True), ("started", "initializing")),
        (_job("RUNNING", progress=("generate", 256, 1000)), ("started", "generating")),
        (_job("RUNNING", progress=("generate", 1000, 1000)), ("started", "preprocessing")),
        (_job("RUNNING", progress=("train", 10, 250)), ("started", "training")),
        (_job("RUNNING", progress=("perceptron", 1, 2)), ("started", "training")),
        (_job("RUNNING", progress=("train", 250, 250)), ("started", "saving")),
        (_job("RUNNING", desired="STOP"), ("started", "stopping")),
        (_job("RUNNING", desired="CANCEL"), ("started", "stopping")),
        (_job("RUNNING", desired="PAUSE"), ("started", "pausing")),
        (_job("PAUSED", desired="PAUSE"), ("finished", "paused")),
        (_job("SUCCEEDED"), ("started", "saving")),
        (_job("SUCCEEDED", result="r"), ("finished", "completed")),
        (_job("SUCCEEDED", result="r", reason="STOPPED_EARLY"), ("finished", "stopped")),
        (_job("FAILED"), ("failed", "failed")),
        (_job("CANCELLED"), ("canceled", "cancelled")),
        (_job("CANCELLED", started=True), ("stopped", "stopped")),
    ],
)
def test_states_have_the_old_words(job: jobs_pb2.Job, told: tuple[str, str | None]) -> None:
    assert (status(job), phase(job)) == told


def _event(seq: int, **payload: Any) -> jobs_pb2.JobEvent:
    return jobs_pb2.JobEvent(seq=seq, **payload)


def _epoch(epoch: int, loss: float, name: str = "train") -> jobs_pb2.Progress:
    metrics = {"epoch": epoch, "train_loss": loss, "validation_loss": loss / 2}
    return jobs_pb2.Progress(phase=name, step=epoch * 10, total=100, metrics=metrics)


def test_progress_is_told_once_an_epoch_before_its_line() -> None:
    told = Told()
    first = told.add(_event(1, progress=_epoch(1, 0.5)), REQUEST)
    assert first[0] == ("progress", {"epoch": 1, "total": 10, "trainLoss": 0.5, "valLoss": 0.25})
    assert first[1][0] == "log"
    assert "epoch 1 of 10" in first[1][1]
    # Between two epochs the numbers of the last one come again.
    assert told.add(_event(2, progress=_epoch(1, 0.5)), REQUEST) == []
    assert told.add(_event(3, progress=jobs_pb2.Progress(phase="train", step=1, total=9)), REQUEST) == []
    assert [name for name, _ in told.add(_event(4, progress=_epoch(2, 0.4)), REQUEST)] == ["progress", "log"]
    assert told.seq == 4
    assert told.progress is not None
    assert told.progress["epoch"] == 2


def test_epochs_of_each_network_are_counted_against_their_own_number() -> None:
    told = Told()
    ae = told.add(_event(1, progress=_epoch(1, 0.5, "autoencoder")), REQUEST)
    mlp = told.add(_event(2, progress=_epoch(1, 0.5, "perceptron")), REQUEST)
    assert (ae[0][1]["total"], mlp[0][1]["total"]) == (50, 60)


def test_numbers_that_are_none_are_null() -> None:
    told = Told()
    ((_, progress), _) = told.add(_event(1, progress=_epoch(1, float("nan"))), REQUEST)
    assert progress["trainLoss"] is None
    frame("progress", progress)


def test_the_last_lines_are_kept_and_curves_counted() -> None:
    told = Told()
    for seq in range(1, 31):
        told.add(_event(seq, log_line=jobs_pb2.LogLine(line=f"line {seq}")), REQUEST)
    told.add(_event(31, progress=jobs_pb2.Progress(phase="generate", step=512, total=1000)), REQUEST)
    assert len(told.lines) == LOG_LINES
    assert told.lines[-1] == "generated 512 of 1000 curves"
    assert told.generation == {"done": 512, "total": 1000}


def test_meta_has_all_of_its_fields() -> None:
    job = _job("CANCELLED", started=True, owner="ada", display_name="film", progress=("train", 1, 2))
    job.retried_from = "projects/default/jobs/0"
    found = meta(job, Told())
    assert found == {
        "status": "stopped",
        "progress": None,
        "generation": None,
        "logs": [],
        "started_at": "2023-11-14T22:13:20+00:00",
        "completed_at": None,
        "updated_at": None,
        "user_id": "ada",
        "name": "film",
        "retried_from": "0",
        "stop_requested": True,
        "stopped_phase": "training",
        "stopped_early": True,
    }


def test_a_frame_is_a_name_one_line_of_json_and_a_blank_line() -> None:
    assert frame("log", "two\nlines é") == 'event: log\ndata: "two\\nlines é"\n\n'
