"""Where a job is, in the words of the old web app, and what it tells while it runs."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.jobs.v1 import jobs_pb2

Json = dict[str, Any]

LOG_LINES = 20
# Of a line beside a job: the page shows it whole, in a narrow column.
_LINE_CHARACTERS = 200
_TRAINING_EPOCHS = {"train": "epochs", "autoencoder": "aeEpochs", "perceptron": "mlpEpochs"}
_PHASES = {"generate": "generating", "apply": "inference", **dict.fromkeys(_TRAINING_EPOCHS, "training")}
_AFTER = {"generating": "preprocessing", "training": "saving", "inference": "saving"}
_WISHES = {
    jobs_pb2.DESIRED_STATE_PAUSE: "pausing",
    jobs_pb2.DESIRED_STATE_STOP: "stopping",
    jobs_pb2.DESIRED_STATE_CANCEL: "stopping",
}
HELD = (jobs_pb2.JOB_STATE_LEASED, jobs_pb2.JOB_STATE_RUNNING)


def status(job: jobs_pb2.Job) -> str:
    """One of queued, started, finished, failed, canceled, stopped."""
    match job.state:
        case jobs_pb2.JOB_STATE_QUEUED:
            return "queued"
        case jobs_pb2.JOB_STATE_PAUSED:
            return "finished"
        case jobs_pb2.JOB_STATE_SUCCEEDED:
            return "finished" if job.result else "started"
        case jobs_pb2.JOB_STATE_FAILED:
            return "failed"
        case jobs_pb2.JOB_STATE_CANCELLED:
            return "stopped" if job.HasField("start_time") else "canceled"
        case _:
            return "started"


def phase(job: jobs_pb2.Job) -> str | None:
    """What is being done, or how it ended; None while it waits."""
    match job.state:
        case jobs_pb2.JOB_STATE_QUEUED:
            return None
        case jobs_pb2.JOB_STATE_PAUSED:
            return "paused"
        case jobs_pb2.JOB_STATE_SUCCEEDED if not job.result:
            return "saving"
        case jobs_pb2.JOB_STATE_SUCCEEDED:
            return "stopped" if stopped_early(job) else "completed"
        case jobs_pb2.JOB_STATE_FAILED:
            return "failed"
        case jobs_pb2.JOB_STATE_CANCELLED:
            return "stopped" if job.HasField("start_time") else "cancelled"
    if job.desired_state in _WISHES:
        return _WISHES[job.desired_state]
    return _work(job)


def stopped_early(job: jobs_pb2.Job) -> bool:
    """Whether it was stopped, and kept the best it had."""
    return job.end_reason == jobs_pb2.END_REASON_STOPPED_EARLY


def _work(job: jobs_pb2.Job) -> str:
    if job.state == jobs_pb2.JOB_STATE_LEASED or not job.HasField("progress"):
        return "initializing"
    found = _PHASES.get(job.progress.phase, "initializing")
    done = job.progress.total > 0 and job.progress.step >= job.progress.total
    return _AFTER.get(found, found) if done else found


@dataclass
class Told:
    """What a job has told so far, of which the newest is kept.

    Attributes:
        seq: of the newest event in it.
        progress: of the training: epoch, total, trainLoss and valLoss.
        generation: of the curves: done and total.
    """

    seq: int = 0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    progress: Json | None = None
    generation: Json | None = None
    _epoch: tuple[str, int] = ("", 0)

    def add(self, event: jobs_pb2.JobEvent, request: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Takes an event in; gives what a stream tells of it: names and data of its own events, in turn."""
        self.seq = event.seq
        found: list[tuple[str, Any]] = []
        match event.WhichOneof("payload"):
            case "log_line":
                found.append(("log", event.log_line.line))
            case "state_change":
                found += [("log", line) for line in _state_lines(event.state_change)]
            case "progress":
                found += self._progress(event.progress, request)
        self.lines.extend(data for name, data in found if name == "log")
        return found

    def _progress(self, told: jobs_pb2.Progress, request: Mapping[str, Any]) -> list[tuple[str, Any]]:
        if told.phase == "generate":
            self.generation = {"done": told.step, "total": told.total}
            return [("log", f"generated {told.step} of {told.total} curves")]
        progress = training_progress(told, request)
        if progress is None:
            return []
        self.progress = progress
        if (told.phase, progress["epoch"]) == self._epoch:
            return []
        self._epoch = told.phase, progress["epoch"]
        line = (
            f"{told.phase}: epoch {progress['epoch']} of {progress['total']}, training loss"
            f" {told.metrics['train_loss']:.6g}, validation loss {told.metrics['validation_loss']:.6g}"
        )
        return [("progress", progress), ("log", line)]


def training_progress(told: jobs_pb2.Progress, request: Mapping[str, Any]) -> Json | None:
    """The newest epoch that is complete; None before the first."""
    if told.phase not in _TRAINING_EPOCHS or "epoch" not in told.metrics:
        return None
    total = request.get("training", {}).get(_TRAINING_EPOCHS[told.phase])
    return {
        "epoch": int(told.metrics["epoch"]),
        "total": total,
        "trainLoss": _finite(told.metrics["train_loss"]),
        "valLoss": _finite(told.metrics["validation_loss"]),
    }


def _finite(number: float) -> float | None:
    """JSON has no word for NaN."""
    return number if math.isfinite(number) else None


def _state_lines(change: jobs_pb2.StateChange) -> list[str]:
    if change.state in HELD and change.desired_state in _WISHES:
        return [_WISHES[change.desired_state]]
    match change.state:
        case jobs_pb2.JOB_STATE_QUEUED if change.lease_epoch:
            return ["waits for a worker again"]
        case jobs_pb2.JOB_STATE_QUEUED:
            return ["waits for a worker"]
        case jobs_pb2.JOB_STATE_LEASED:
            return ["a worker prepares the run"]
        case jobs_pb2.JOB_STATE_RUNNING:
            return ["running"]
        case jobs_pb2.JOB_STATE_PAUSED:
            return ["paused; its state is saved"]
        case jobs_pb2.JOB_STATE_SUCCEEDED:
            return ["computed; the result is being saved"]
        case jobs_pb2.JOB_STATE_FAILED:
            return [f"failed: {change.error.message}"]
        case jobs_pb2.JOB_STATE_CANCELLED:
            return ["stopped; nothing is kept"]
    return []


def meta(job: jobs_pb2.Job, told: Told) -> Json:
    """What the old app keeps beside a job."""
    now = phase(job)
    stopped = now == "stopped"
    return {
        "status": now,
        "progress": told.progress,
        "generation": told.generation,
        "logs": [_short(line) for line in [*told.lines, *_ending(job)][-LOG_LINES:]],
        "started_at": time_text(job, "start_time"),
        "completed_at": time_text(job, "end_time"),
        "updated_at": time_text(job, "update_time"),
        "user_id": job.owner or None,
        "name": job.display_name or None,
        "retried_from": job.retried_from.rpartition("/")[2] or None,
        "stop_requested": stopped or now == "stopping",
        "stopped_phase": _PHASES.get(job.progress.phase, "initializing") if stopped else None,
        "stopped_early": stopped,
    }


def _short(line: str) -> str:
    return line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"


def _ending(job: jobs_pb2.Job) -> list[str]:
    """The last line of a run whose result can be read: the page shows it, and no event of the job says so."""
    if job.state != jobs_pb2.JOB_STATE_SUCCEEDED or not job.result:
        return []
    return ["stopped early; the best so far is saved" if stopped_early(job) else "done; the result is saved"]


def time_text(job: jobs_pb2.Job, name: str) -> str | None:
    """One of a job's times, in ISO 8601 with its offset; None where there is none."""
    if not job.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(job, name)
    return time.ToDatetime(tzinfo=UTC).isoformat()


def frame(name: str, data: Any) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"


KEEPALIVE = ":keepalive\n\n"
