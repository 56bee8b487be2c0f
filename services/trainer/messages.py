"""Between the messages of jobs and what the code handles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct
from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core import names
from services.trainer.documents import Document
from services.trainer.estimates import Interval
from services.trainer.jobs import Attempt
from services.trainer.lifecycle import Desired
from services.trainer.queues import Seen
from services.trainer.records import StoredEvent, worker_name


def job_name(project: str, job_id: str) -> str:
    """The resource name of a job."""
    return names.JOB.format(project=project, job=job_id)


def timestamp(time: datetime) -> Timestamp:
    """A time as it travels."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def struct(document: Mapping[str, Any]) -> Struct:
    """A document as it travels."""
    message = Struct()
    message.update(document)
    return message


def values(message: ListValue) -> list[Any]:
    """What a list holds."""
    return [_value(item) for item in message.values]


def document(message: Struct) -> Document:
    """What a Struct holds."""
    return {key: _value(value) for key, value in message.fields.items()}


def _value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return document(value.struct_value)
        case "list_value":
            return values(value.list_value)
        case "null_value" | None:
            return None
        case kind:
            return getattr(value, kind)


def job(seen: Seen) -> jobs_pb2.Job:
    """A job as its owner sees it."""
    job = seen.job
    message = jobs_pb2.Job(
        name=job.name,
        display_name=job.display_name,
        pipeline=job.pipeline,
        pipeline_version=job.pipeline_version,
        params=struct(job.params),
        params_digest=job.params_digest,
        seed=job.seed,
        inputs=job.inputs,
        pool=job.pool,
        priority=job.priority,  # type: ignore[arg-type]
        state=_state(job.state.value),
        desired_state=desired_state(job.desired),
        end_reason=_end_reason(job.end_reason.value if job.end_reason else None),
        error=_error(job.error),
        owner=job.owner,
        readers=job.readers,
        labels=job.labels,
        create_time=timestamp(job.create_time),
        update_time=timestamp(job.update_time),
        start_time=timestamp(job.start_time) if job.start_time else None,
        end_time=timestamp(job.end_time) if job.end_time else None,
        lease_epoch=job.lease_epoch,
        attempt_count=job.attempt_count,
        max_attempts=job.max_attempts,
        timeout_seconds=job.timeout_seconds,
        progress=_progress(job.progress) if job.progress else None,
        last_log_line=job.last_log_line,
        result=job.result or "",
        queue_position=seen.queue_position,
        worker=worker_name(job.pool, job.worker_id),
        last_seq=job.last_seq,
        etag=job.etag,
        memory_hint_bytes=job.memory_hint_bytes,
        group=job.group_name,
        device_class=job.device_class,
        notifications=[jobs_pb2.Notification(**target) for target in job.notifications],
        start_estimate=_estimate(seen.start),
        end_estimate=_estimate(seen.end),
        latest_retry=seen.latest_retry,
    )
    if job.annotations:
        message.annotations.update(job.annotations)
    if job.retried_from:
        message.retried_from = job_name(job.project, job.retried_from)
    if job.batch:
        message.batch = names.BATCH.format(project=job.project, batch=job.batch)
    if seen.checkpoint is not None:
        message.checkpoint.CopyFrom(_checkpoint(seen.checkpoint.ordinal, seen.checkpoint.step))
    return message


def attempt(known: Attempt) -> jobs_pb2.Attempt:
    """A lease of a job as its owner sees it."""
    message = jobs_pb2.Attempt(
        lease_epoch=known.epoch,
        number=known.number,
        worker=known.worker,
        lease_time=timestamp(known.lease_time),
        start_time=timestamp(known.start_time) if known.start_time else None,
        end_time=timestamp(known.end_time) if known.end_time else None,
        end_reason=_end_reason(known.end_reason.value if known.end_reason else None),
        error=_error(known.error),
    )
    if known.checkpoint_ordinal is not None:
        message.checkpoint.CopyFrom(_checkpoint(known.checkpoint_ordinal, known.checkpoint_step or 0))
    return message


def _checkpoint(ordinal: int, step: int) -> jobs_pb2.CheckpointCommitted:
    return jobs_pb2.CheckpointCommitted(ordinal=ordinal, step=step)


def targets(notifications: Iterable[jobs_pb2.Notification]) -> list[dict[str, str]]:
    """Whom to tell of a job's end, as it is stored; nobody is an empty one."""
    found: list[dict[str, str]] = []
    for notification in notifications:
        kind = notification.WhichOneof("target")
        found.append({kind: getattr(notification, kind)} if kind else {})
    return found


def _estimate(interval: Interval | None) -> jobs_pb2.Estimate | None:
    if interval is None:
        return None
    return jobs_pb2.Estimate(
        time=timestamp(interval.middle),
        earliest_time=timestamp(interval.earliest),
        latest_time=timestamp(interval.latest),
    )


def event(name: str, stored: StoredEvent) -> jobs_pb2.JobEvent:
    """An event of the job called `name`."""
    message = jobs_pb2.JobEvent(job=name, seq=stored.seq, time=timestamp(stored.time))
    payload = stored.payload
    match stored.kind:
        case "state_change":
            message.state_change.CopyFrom(_state_change(payload))
        case "progress":
            message.progress.CopyFrom(_progress(payload))
        case "log_line":
            message.log_line.line = payload["line"]
        case "preview":
            preview = jobs_pb2.Preview(kind=payload["kind"], document=struct(payload["document"]))
            message.preview.CopyFrom(preview)
        case "checkpoint":
            message.checkpoint.CopyFrom(jobs_pb2.CheckpointCommitted(**payload))
        case "published":
            message.published.CopyFrom(jobs_pb2.ResultPublished(**payload))
    return message


def _state_change(payload: Document) -> jobs_pb2.StateChange:
    return jobs_pb2.StateChange(
        state=_state(payload["state"]),
        desired_state=desired_state(Desired(payload["desired_state"])),
        end_reason=_end_reason(payload["end_reason"]),
        error=_error(payload["error"]),
        lease_epoch=payload["lease_epoch"],
        worker=payload["worker"],
    )


def _progress(payload: Document) -> jobs_pb2.Progress:
    metrics = {key: float(value) for key, value in payload["metrics"].items()}
    return jobs_pb2.Progress(
        phase=payload["phase"], step=payload["step"], total=payload["total"], metrics=metrics
    )


def _error(stored: Document | None) -> common_pb2.ErrorDetail | None:
    if stored is None:
        return None
    return common_pb2.ErrorDetail(
        code=stored["code"],
        reason=stored["reason"],
        message=stored["message"],
        metadata=stored.get("metadata", {}),
        violations=[common_pb2.FieldViolation(**item) for item in stored.get("violations", ())],
        error_id=stored.get("error_id", ""),
    )


def _state(state: str) -> jobs_pb2.JobState.ValueType:
    return jobs_pb2.JobState.Value(f"JOB_STATE_{state}")


def desired_state(desired: Desired) -> jobs_pb2.DesiredState.ValueType:
    """What an owner wants, as it travels."""
    return jobs_pb2.DesiredState.Value(f"DESIRED_STATE_{desired.value}")


def _end_reason(reason: str | None) -> jobs_pb2.EndReason.ValueType:
    return jobs_pb2.EndReason.Value(f"END_REASON_{reason or 'UNSPECIFIED'}")
