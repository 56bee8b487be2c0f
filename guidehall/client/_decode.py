"""Messages of the wire into the values of `types.py`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from google.protobuf import timestamp_pb2

from guidehall.client import types
from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import audit_pb2, groups_pb2, identity_pb2, personal_data_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.contracts.usage.v1 import usage_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.structs import from_struct


def _word(enum: Any, number: int) -> str:
    """`JOB_STATE_QUEUED` as "QUEUED"; empty for the zero value and for numbers newer than this client."""
    if number == 0 or number not in enum.values():
        return ""
    zero = enum.Name(0)
    return str(enum.Name(number).removeprefix(zero.removesuffix("UNSPECIFIED")))


def _time(message: Any, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    value: timestamp_pb2.Timestamp = getattr(message, field)
    return value.ToDatetime(tzinfo=timezone.utc)


def _state(number: int) -> types.JobState:
    return types.JobState(_word(jobs_pb2.JobState, number) or "UNKNOWN")


def _failure(message: Any) -> types.Failure | None:
    if not message.HasField("error"):
        return None
    error: common_pb2.ErrorDetail = message.error
    return types.Failure(
        code=error.code,
        reason=error.reason,
        message=error.message,
        violations=tuple(types.FieldViolation(v.field, v.description) for v in error.violations),
        error_id=error.error_id,
    )


def _progress(message: jobs_pb2.Progress) -> types.Progress:
    return types.Progress(message.phase, message.step, message.total, dict(message.metrics))


def _object(message: common_pb2.ObjectRef) -> types.StoredObject:
    return types.StoredObject(message.sha256, message.size_bytes, message.media_type)


def job(message: jobs_pb2.Job) -> types.Job:
    """A job."""
    return types.Job(
        name=message.name,
        display_name=message.display_name,
        pipeline=message.pipeline,
        pipeline_version=message.pipeline_version,
        params=from_struct(message.params),
        params_digest=message.params_digest,
        seed=message.seed,
        inputs=dict(message.inputs),
        pool=message.pool,
        priority=_word(jobs_pb2.JobPriority, message.priority),
        state=_state(message.state),
        desired_state=_word(jobs_pb2.DesiredState, message.desired_state),
        end_reason=_word(jobs_pb2.EndReason, message.end_reason),
        error=_failure(message),
        owner=message.owner,
        labels=dict(message.labels),
        create_time=_time(message, "create_time"),
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
        update_time=_time(message, "update_time"),
        attempt_count=message.attempt_count,
        max_attempts=message.max_attempts,
        timeout_seconds=message.timeout_seconds,
        progress=_progress(message.progress) if message.HasField("progress") else None,
        last_log_line=message.last_log_line,
        result=message.result,
        queue_position=message.queue_position,
        worker=message.worker,
        last_seq=message.last_seq,
        lease_epoch=message.lease_epoch,
        retried_from=message.retried_from,
        latest_retry=message.latest_retry,
        etag=message.etag,
        memory_hint_bytes=message.memory_hint_bytes,
        group=message.group,
        device_class=message.device_class,
        notifications=tuple(filter(None, map(_target, message.notifications))),
        batch=message.batch,
        start_estimate=_estimate(message, "start_estimate"),
        end_estimate=_estimate(message, "end_estimate"),
        checkpoint=_checkpoint(message),
    )


def _target(message: jobs_pb2.Notification) -> str:
    return message.webhook_url or message.email_address


def _estimate(message: jobs_pb2.Job, field: str) -> types.Estimate | None:
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    value: jobs_pb2.Estimate = getattr(message, field)
    return types.Estimate(_time(value, "time"), _time(value, "earliest_time"), _time(value, "latest_time"))


def _checkpoint(
    message: jobs_pb2.Job | jobs_pb2.Attempt | jobs_pb2.JobEvent,
) -> types.CheckpointCommitted | None:
    if not message.HasField("checkpoint"):
        return None
    return types.CheckpointCommitted(message.checkpoint.ordinal, message.checkpoint.step)


def attempt(message: jobs_pb2.Attempt) -> types.Attempt:
    """An attempt at a job."""
    return types.Attempt(
        lease_epoch=message.lease_epoch,
        number=message.number,
        worker=message.worker,
        lease_time=_time(message, "lease_time"),
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
        end_reason=_word(jobs_pb2.EndReason, message.end_reason),
        error=_failure(message),
        checkpoint=_checkpoint(message),
    )


def batch(message: jobs_pb2.BatchSubmitJobsResponse) -> types.Batch:
    """Jobs that were submitted together."""
    return types.Batch(message.batch, tuple(map(job, message.jobs)))


def purge(message: jobs_pb2.PurgeJobsResponse) -> types.Purge:
    """What a purge did, or would do."""
    return types.Purge(
        message.deleted, message.skipped_running, message.skipped_queued, message.skipped_publishing
    )


def job_event(message: jobs_pb2.JobEvent) -> types.JobEvent:
    """An event of a job."""
    kind = message.WhichOneof("payload") or "unknown"
    return types.JobEvent(message.job, message.seq, _time(message, "time"), kind, _payload(message))


def _payload(message: jobs_pb2.JobEvent) -> types.EventPayload | None:
    kind = message.WhichOneof("payload")
    if kind == "state_change":
        change = message.state_change
        return types.StateChange(
            state=_state(change.state),
            desired_state=_word(jobs_pb2.DesiredState, change.desired_state),
            end_reason=_word(jobs_pb2.EndReason, change.end_reason),
            error=_failure(change),
            worker=change.worker,
        )
    if kind == "progress":
        return _progress(message.progress)
    if kind == "log_line":
        return types.LogLine(message.log_line.line)
    if kind == "preview":
        return types.Preview(message.preview.kind, from_struct(message.preview.document))
    if kind == "checkpoint":
        return _checkpoint(message)
    if kind == "published":
        return types.ResultPublished(message.published.result, tuple(message.published.model_versions))
    return None


def pipeline(message: jobs_pb2.Pipeline) -> types.Pipeline:
    """A pipeline."""
    return types.Pipeline(
        name=message.name,
        version=message.version,
        title=message.title,
        description=message.description,
        params_schema=from_struct(message.params_schema),
        result_schema=from_struct(message.result_schema),
        live_workers=message.live_workers,
    )


def result(message: results_pb2.Result) -> types.Result:
    """A result with its document."""
    return types.Result(
        name=message.name,
        job=message.job,
        pipeline=message.pipeline,
        document=from_struct(message.document),
        artifacts=tuple(
            types.Artifact(artifact.name, artifact.filename, _object(artifact.object))
            for artifact in message.artifacts
        ),
        model_versions=tuple(message.model_versions),
        owner=message.owner,
        create_time=_time(message, "create_time"),
    )


def model(message: models_pb2.Model) -> types.Model:
    """A model series."""
    return types.Model(
        name=message.name,
        display_name=message.display_name,
        owner=message.owner,
        labels=dict(message.labels),
        latest_version=message.latest_version,
        create_time=_time(message, "create_time"),
        update_time=_time(message, "update_time"),
        tags=dict(message.tags),
    )


def _specs(messages: Any) -> tuple[types.TensorSpec, ...]:
    return tuple(
        types.TensorSpec(spec.name, spec.datatype, tuple(spec.shape), spec.unit, spec.description)
        for spec in messages
    )


def model_version(message: models_pb2.ModelVersion) -> types.ModelVersion:
    """A model version."""
    return types.ModelVersion(
        name=message.name,
        version=message.version,
        architecture=message.architecture,
        manifest=from_struct(message.manifest),
        manifest_sha256=message.manifest_sha256,
        weights=_object(message.weights),
        inputs=_specs(message.inputs),
        outputs=_specs(message.outputs),
        metrics=dict(message.metrics),
        job=message.job,
        owner=message.owner,
        labels=dict(message.labels),
        create_time=_time(message, "create_time"),
        tags=tuple(message.tags),
        pinned=message.pinned,
    )


def dataset(message: datasets_pb2.Dataset) -> types.Dataset:
    """A dataset series."""
    return types.Dataset(
        name=message.name,
        display_name=message.display_name,
        description=message.description,
        owner=message.owner,
        labels=dict(message.labels),
        latest_version=message.latest_version,
        create_time=_time(message, "create_time"),
        update_time=_time(message, "update_time"),
    )


def dataset_version(message: datasets_pb2.DatasetVersion) -> types.DatasetVersion:
    """A dataset version."""
    return types.DatasetVersion(
        name=message.name,
        version=message.version,
        object=_object(message.object),
        filename=message.filename,
        content_info=from_struct(message.content_info),
        labels=dict(message.labels),
        owner=message.owner,
        create_time=_time(message, "create_time"),
    )


def pool(message: workers_pb2.Pool) -> types.Pool:
    """A pool."""
    return types.Pool(
        name=message.name,
        queued_jobs=message.queued_jobs,
        running_jobs=message.running_jobs,
        paused_jobs=message.paused_jobs,
        live_workers=message.live_workers,
        idle_workers=message.idle_workers,
        oldest_wait_seconds=message.oldest_wait_seconds,
        device_class=message.device_class,
        default_timeout_seconds=message.default_timeout_seconds,
        launcher=_launcher(message.launcher) if message.HasField("launcher") else None,
    )


def _launcher(message: workers_pb2.Launcher) -> types.Launcher:
    return types.Launcher(
        kind=message.kind,
        target=message.target,
        last_launch_time=_time(message, "last_launch_time"),
        last_error=message.last_error,
        waiting_for=message.waiting_for,
    )


def worker_credential(message: workers_pb2.WorkerCredential) -> types.WorkerCredential:
    """A credential of workers."""
    return types.WorkerCredential(
        name=message.name,
        note=message.note,
        create_time=_time(message, "create_time"),
        expire_time=_time(message, "expire_time"),
        revoke_time=_time(message, "revoke_time"),
    )


def api_key(message: identity_pb2.ApiKey) -> types.ApiKey:
    """An API key."""
    return types.ApiKey(
        name=message.name,
        display_name=message.display_name,
        roles=tuple(_word(identity_pb2.Role, role) for role in message.roles),
        prefix=message.prefix,
        create_time=_time(message, "create_time"),
        expire_time=_time(message, "expire_time"),
        revoke_time=_time(message, "revoke_time"),
        last_use_time=_time(message, "last_use_time"),
        scopes=tuple(message.scopes),
    )


def group(message: groups_pb2.Group) -> types.Group:
    """A group."""
    role = _word(identity_pb2.GroupRole, message.role) if message.role else ""
    return types.Group(message.name, message.display_name, message.description, role)


def group_member(message: groups_pb2.GroupMember) -> types.GroupMember:
    """A member."""
    return types.GroupMember(message.user, _word(identity_pb2.GroupRole, message.role))


def service_account(message: identity_pb2.User) -> types.ServiceAccount:
    """A service account."""
    return types.ServiceAccount(
        message.name,
        message.display_name,
        message.owner_group,
        tuple(_word(identity_pb2.Role, role) for role in message.roles),
        message.disabled,
    )


def audit_event(message: audit_pb2.AuditEvent) -> types.AuditEvent:
    """An event of the audit log."""
    return types.AuditEvent(
        sequence=message.sequence,
        time=_time(message, "time"),
        service=message.service,
        subject=message.subject,
        kind=_word(identity_pb2.PrincipalKind, message.kind),
        actor=message.actor,
        method=message.method,
        resource=message.resource,
        outcome=message.outcome,
        etag_before=message.etag_before,
        etag_after=message.etag_after,
        job=message.job,
        request_id=message.request_id,
        trace_id=message.trace_id,
        count=message.count,
        seal=message.seal,
    )


def erasure(message: personal_data_pb2.Erasure) -> types.Erasure:
    """An erasure."""
    return types.Erasure(
        name=message.name,
        user=message.user,
        pseudonym=message.pseudonym,
        hand_over_to=message.hand_over_to,
        steps_done=tuple(message.steps_done),
        steps_left=tuple(message.steps_left),
        create_time=_time(message, "create_time"),
        due_time=_time(message, "due_time"),
        done_time=_time(message, "done_time"),
    )


def worker(message: workers_pb2.Worker) -> types.Worker:
    """A worker."""
    machine = message.capabilities
    return types.Worker(
        name=message.name,
        pool=message.pool,
        hostname=message.hostname,
        state=_word(workers_pb2.WorkerState, message.state),
        device_class=machine.device_class,
        device_name=machine.device_name,
        device_memory_bytes=machine.device_memory_bytes,
        cpu_cores=machine.cpu_cores,
        memory_bytes=machine.memory_bytes,
        pipelines=tuple(f"{offered.name} {offered.version}" for offered in message.pipelines),
        software=dict(message.software),
        job=message.job,
        register_time=_time(message, "register_time"),
        last_seen_time=_time(message, "last_seen_time"),
        quarantine_reason=message.quarantine_reason,
    )


def usage(stored: usage_pb2.Usage, jobs: jobs_pb2.CountJobsResponse) -> types.Usage:
    """What storage says, and the trainer."""
    return types.Usage(
        dataset_bytes=stored.dataset_bytes,
        model_bytes=stored.model_bytes,
        artifact_bytes=stored.artifact_bytes,
        log_bytes=stored.log_bytes,
        total_bytes=stored.total_bytes,
        allowed_bytes=stored.allowed_bytes,
        queued_jobs=jobs.queued,
        running_jobs=jobs.running,
        ended_jobs=jobs.ended,
    )


def identity(message: identity_pb2.Principal) -> types.Identity:
    """A principal."""
    return types.Identity(
        subject=message.subject,
        kind=_word(identity_pb2.PrincipalKind, message.kind),
        roles=tuple(_word(identity_pb2.Role, role) for role in message.roles),
        groups=tuple(message.groups),
        default_project=message.default_project,
        actor=message.actor,
    )
