"""Between the messages of workers and operators and what the code handles."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core import names
from guidehall.core.errors import InvalidArgument
from services.trainer.credentials import StoredCredential
from services.trainer.documents import Document, canonical, cleaned, plain
from services.trainer.launcher import Launch, target, waiting_for
from services.trainer.leases import Grant
from services.trainer.lifecycle import EndReason, Outcome
from services.trainer.messages import desired_state, document, struct, timestamp
from services.trainer.records import Checkpoint, Note, ObjectRef, Worker
from services.trainer.reports import Rest
from services.trainer.settings import LauncherSettings, LeaseSettings
from services.trainer.workers import Pool, Registration

_SHA256_CHARACTERS = 64
_LONGEST_ERROR = 4000
_MOST_VIOLATIONS = 50
_MOST_METRICS = 100
_LONGEST_NAME = 200
# Ten years.
_LONGEST_RUN_SECONDS = 3.2e8


def registration(request: workers_pb2.RegisterRequest) -> Registration:
    """What a worker says of itself."""
    able = request.capabilities
    capabilities: Document = {
        "device_class": cleaned(able.device_class, _LONGEST_NAME),
        "device_name": cleaned(able.device_name, _LONGEST_NAME),
        "device_memory_bytes": able.device_memory_bytes,
        "cpu_cores": able.cpu_cores,
        "memory_bytes": able.memory_bytes,
    }
    return Registration(
        hostname=cleaned(request.hostname, _LONGEST_NAME),
        capabilities=capabilities,
        pipelines=tuple(
            sorted(
                {
                    (cleaned(offer.name, _LONGEST_NAME), cleaned(offer.version, _LONGEST_NAME))
                    for offer in request.pipelines
                }
            )
        ),
        software={
            cleaned(key, _LONGEST_NAME): cleaned(value, _LONGEST_NAME)
            for key, value in request.software.items()
        },
    )


def quarantine_reason(text: str) -> str:
    """Why a worker takes itself out of service.

    Raises:
        InvalidArgument: it does not say.
    """
    if not text.strip():
        raise InvalidArgument.field("reason", text, "what is wrong with the worker's device")
    return cleaned(text, _LONGEST_ERROR)


def worker(known: Worker) -> workers_pb2.Worker:
    """A worker as operators see it."""
    if known.lost:
        state = workers_pb2.WORKER_STATE_LOST
    elif known.quarantine_time is not None:
        state = workers_pb2.WORKER_STATE_QUARANTINED
    elif known.drain_time is not None:
        state = workers_pb2.WORKER_STATE_DRAINING
    else:
        state = workers_pb2.WORKER_STATE_BUSY if known.job else workers_pb2.WORKER_STATE_IDLE
    return workers_pb2.Worker(
        name=known.name,
        pool=known.pool,
        hostname=known.hostname,
        capabilities=workers_pb2.Capabilities(**known.capabilities),
        pipelines=[
            workers_pb2.OfferedPipeline(name=name, version=version) for name, version in known.pipelines
        ],
        software=known.software,
        state=state,
        job=known.job,
        register_time=timestamp(known.register_time),
        last_seen_time=timestamp(known.last_seen_time),
        quarantine_reason=known.quarantine_reason,
    )


def pool(
    known: Pool, device_class: str, default_timeout_seconds: int, launcher: workers_pb2.Launcher
) -> workers_pb2.Pool:
    """A queue as operators see it."""
    return workers_pb2.Pool(
        name=names.POOL.format(pool=known.name),
        queued_jobs=known.queued,
        running_jobs=known.running,
        paused_jobs=known.paused,
        live_workers=known.live_workers,
        idle_workers=known.idle_workers,
        oldest_wait_seconds=known.oldest_wait_seconds,
        device_class=device_class,
        default_timeout_seconds=default_timeout_seconds,
        launcher=launcher,
    )


def launcher(settings: LauncherSettings, last: Launch, pool: Pool) -> workers_pb2.Launcher:
    """What starts workers for a pool, and how that went last."""
    message = workers_pb2.Launcher(kind=settings.kind, target=target(settings), last_error=last.error)
    if last.time is not None:
        message.last_launch_time.CopyFrom(timestamp(last.time))
    if settings.kind != "none":
        message.waiting_for = waiting_for(last, pool)
    return message


def credential(known: StoredCredential) -> workers_pb2.WorkerCredential:
    """What workers prove themselves with, without the proof."""
    return workers_pb2.WorkerCredential(
        name=known.name,
        note=known.note,
        create_time=timestamp(known.create_time),
        expire_time=timestamp(known.expire_time),
        revoke_time=timestamp(known.revoke_time) if known.revoke_time else None,
    )


def lease(grant: Grant, settings: LeaseSettings) -> workers_pb2.Lease:
    """The right to run a job."""
    job = grant.job
    message = workers_pb2.Lease(
        job=job.name,
        lease_epoch=job.lease_epoch,
        attempt=job.attempt_count,
        pipeline=job.pipeline,
        pipeline_version=job.pipeline_version,
        params=struct(job.params),
        seed=job.seed,
        inputs=job.inputs,
        job_token=grant.job_token,
        lease_seconds=settings.seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        timeout_seconds=job.timeout_seconds,
        desired_state=desired_state(job.desired),
        hang_seconds=settings.hang_seconds,
        owner=job.owner,
        traceparent=job.traceparent,
    )
    if grant.checkpoint is not None:
        newest = grant.checkpoint
        message.checkpoint.CopyFrom(
            workers_pb2.CheckpointRef(
                ordinal=newest.ordinal,
                step=newest.step,
                lease_epoch=newest.epoch,
                job=grant.checkpoint_job,
                object=common_pb2.ObjectRef(
                    sha256=newest.object.sha256,
                    size_bytes=newest.object.size_bytes,
                    media_type=newest.object.media_type,
                ),
            )
        )
    return message


def notes(batch: workers_pb2.EventBatch, settings: LeaseSettings) -> tuple[Note, ...]:
    """The events of a batch.

    Raises:
        InvalidArgument: one is empty, or its time or the number of its metrics makes no sense.
    """
    return tuple(_note(f"events[{place}]", item, settings) for place, item in enumerate(batch.events))


def _note(path: str, item: workers_pb2.WorkerEvent, settings: LeaseSettings) -> Note:
    time = _time(f"{path}.time", item.time) if item.HasField("time") else None
    match item.WhichOneof("payload"):
        case "progress":
            return Note("progress", _reported_progress(path, item.progress), time)
        case "log_line":
            line = cleaned(item.log_line.line, settings.max_line_characters)
            return Note("log_line", {"line": line}, time)
        case "preview":
            kind = cleaned(item.preview.kind, _LONGEST_NAME)
            try:
                shown = _shown(item.preview, settings.max_preview_bytes)
            except InvalidArgument as error:
                # No worker could do anything about it, and the job can do without it.
                line = cleaned(
                    f"[a preview {kind} is left out: {error.message}]", settings.max_line_characters
                )
                return Note("log_line", {"line": line}, time)
            return Note("preview", {"kind": kind, "document": shown}, time)
    raise InvalidArgument.field(path, "nothing", "progress, log_line or preview")


def _shown(preview: jobs_pb2.Preview, max_bytes: int) -> Document:
    shown: Document = plain(document(preview.document), "document")
    size = len(canonical(shown).encode())
    if size > max_bytes:
        raise InvalidArgument.field("document", f"{size} bytes", f"at most {max_bytes} bytes")
    return shown


def _reported_progress(path: str, progress: jobs_pb2.Progress) -> Document:
    if len(progress.metrics) > _MOST_METRICS:
        raise InvalidArgument.field(
            f"{path}.metrics", f"{len(progress.metrics)} of them", f"at most {_MOST_METRICS}"
        )
    return {
        "phase": cleaned(progress.phase, _LONGEST_NAME),
        "step": progress.step,
        "total": progress.total,
        "metrics": {cleaned(key, _LONGEST_NAME): _number(value) for key, value in progress.metrics.items()},
    }


def _number(value: float) -> float | str:
    """A loss may well be NaN, for which JSON has no number: float() reads these texts again."""
    return value if math.isfinite(value) else str(value)


def _time(path: str, time: Timestamp) -> datetime:
    try:
        return time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.field(path, f"{time.seconds} s", "a time in the years 1 to 9999") from None


def checkpoint(reference: workers_pb2.CheckpointRef, epoch: int) -> Checkpoint:
    """A checkpoint that an attempt wants committed.

    Raises:
        InvalidArgument: it says another epoch, or its numbers or digest make no sense.
    """
    if reference.lease_epoch not in (0, epoch):
        raise InvalidArgument.field("checkpoint.lease_epoch", reference.lease_epoch, f"{epoch}, or nothing")
    if reference.ordinal < 1:
        raise InvalidArgument.field("checkpoint.ordinal", reference.ordinal, "1 or more")
    found = object_ref("checkpoint.object", reference.object)
    return Checkpoint(reference.ordinal, reference.step, epoch, found)


def object_ref(path: str, reference: common_pb2.ObjectRef) -> ObjectRef:
    """What storage confirmed of an object.

    Raises:
        InvalidArgument: no SHA-256, or a size below 0.
    """
    digest = reference.sha256
    if len(digest) != _SHA256_CHARACTERS or not set(digest) <= set("0123456789abcdef"):
        raise InvalidArgument.field(f"{path}.sha256", digest, "64 lower-case hexadecimal digits")
    if reference.size_bytes < 0:
        raise InvalidArgument.field(f"{path}.size_bytes", reference.size_bytes, "0 or more")
    return ObjectRef(digest, reference.size_bytes, cleaned(reference.media_type, _LONGEST_NAME))


def outputs(request: workers_pb2.FinishRequest) -> dict[str, ObjectRef]:
    """What a finished attempt staged, by name.

    Raises:
        InvalidArgument: a name or a reference is wrong.
    """
    found = {}
    for key, reference in request.outputs.items():
        if not key or cleaned(key, _LONGEST_NAME) != key:
            raise InvalidArgument.field("outputs", key, f"names of 1 to {_LONGEST_NAME} characters")
        found[key] = object_ref(f"outputs.{key}", reference)
    return found


def rest(request: workers_pb2.FinishRequest, settings: LeaseSettings) -> Rest:
    """What no session was told of a finished attempt.

    Raises:
        InvalidArgument: as `notes`, or the start makes no sense.
    """
    ago = request.started_seconds_ago
    if not 0 <= ago <= _LONGEST_RUN_SECONDS:
        raise InvalidArgument.field("started_seconds_ago", ago, f"0 to {_LONGEST_RUN_SECONDS:g}")
    started = ago if request.HasField("started_seconds_ago") else None
    return Rest(started, request.events.first_number, notes(request.events, settings))


def outcome(number: workers_pb2.Outcome.ValueType) -> Outcome:
    """How an attempt says it ended.

    Raises:
        InvalidArgument: it does not say.
    """
    known = {workers_pb2.Outcome.Value(f"OUTCOME_{item.value}"): item for item in Outcome}
    if number not in known:
        raise InvalidArgument.field("outcome", number, ", ".join(f"OUTCOME_{item.value}" for item in Outcome))
    return known[number]


def reason(number: jobs_pb2.EndReason.ValueType) -> EndReason | None:
    """Why an attempt says it ended; None when it does not say.

    Raises:
        InvalidArgument: a number that means nothing.
    """
    if number == jobs_pb2.END_REASON_UNSPECIFIED:
        return None
    try:
        return EndReason(jobs_pb2.EndReason.Name(number).removeprefix("END_REASON_"))
    except ValueError:
        raise InvalidArgument.field("reason", number, "an EndReason") from None


def reported_error(error: common_pb2.ErrorDetail) -> Document:
    """Why an attempt says it failed."""
    return {
        "code": cleaned(error.code, _LONGEST_NAME),
        "reason": cleaned(error.reason, _LONGEST_NAME),
        "message": cleaned(error.message, _LONGEST_ERROR),
        "metadata": {
            cleaned(key, _LONGEST_NAME): cleaned(value, _LONGEST_ERROR)
            for key, value in list(error.metadata.items())[:_MOST_VIOLATIONS]
        },
        "violations": [
            {
                "field": cleaned(item.field, _LONGEST_NAME),
                "description": cleaned(item.description, _LONGEST_ERROR),
            }
            for item in error.violations[:_MOST_VIOLATIONS]
        ],
        "error_id": cleaned(error.error_id, _LONGEST_NAME),
    }
