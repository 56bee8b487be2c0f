"""Submissions: one job, many, a sweep, and a job again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import struct_pb2

from guidehall.client import _decode, _names, types
from guidehall.client._config import Config
from guidehall.client._jobs import resolve
from guidehall.client._refusal import refusal
from guidehall.client._steps import Call, Operation, Rpc
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core.durations import seconds_in
from guidehall.core.errors import InvalidArgument
from guidehall.core.structs import to_struct

_SUBMIT = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "SubmitJob")
_BATCH = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "BatchSubmitJobs")
_RETRY = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "RetryJob")


def submit(
    config: Config, submission: types.Submission, validate_only: bool, request_id: str | None
) -> Operation[types.Job]:
    """Submits a job, or only checks it."""
    request = _request(config, submission)
    request.parent = _project(config)
    request.validate_only = validate_only
    request.request_id = _request_id(request_id)
    message = yield Call(_SUBMIT, request, config.timeouts.call_seconds)
    return _decode.job(message)


def submit_many(
    config: Config,
    submissions: Sequence[types.Submission],
    sweep: types.Sweep | None,
    validate_only: bool,
    request_id: str | None,
) -> Operation[types.Batch]:
    """Submits jobs together: all or none."""
    if not submissions and sweep is None:
        raise refusal("submissions", "there is nothing to submit: give some, or a sweep")
    request = jobs_pb2.BatchSubmitJobsRequest(
        parent=_project(config),
        requests=[
            _request(config, submission, f"submissions[{place}].")
            for place, submission in enumerate(submissions)
        ],
        request_id=_request_id(request_id),
        validate_only=validate_only,
    )
    if sweep is not None:
        request.sweep.template.CopyFrom(_request(config, sweep.template, "sweep.template."))
        request.sweep.axes.extend(_axis(path, values) for path, values in sweep.axes.items())
        request.sweep.zipped = sweep.zipped
    message = yield Call(_BATCH, request, config.timeouts.call_seconds)
    return _decode.batch(message)


def retry(
    config: Config,
    text: str,
    changes: Mapping[str, Any] | None,
    *,
    seed: int,
    pool: str,
    name: str,
    timeout: int | float | str,
    from_start: bool,
    validate_only: bool,
    request_id: str | None,
) -> Operation[types.Job]:
    """Submits once more what an ended job had."""
    request = jobs_pb2.RetryJobRequest(
        param_changes=to_struct(changes or {}, "changes"),
        seed=seed,
        pool=_pool(pool),
        display_name=name,
        timeout_seconds=seconds_in(timeout, "timeout"),
        from_start=from_start,
        request_id=_request_id(request_id),
        validate_only=validate_only,
    )
    request.name = yield from resolve(config, text)
    message = yield Call(_RETRY, request, config.timeouts.call_seconds)
    return _decode.job(message)


def priority_number(text: str, field: str = "priority") -> jobs_pb2.JobPriority.ValueType:
    """A priority by its word.

    Raises:
        InvalidArgument: there is no such priority.
    """
    word = text.upper()
    if word not in types.Priority.__members__:
        raise InvalidArgument.field(field, text, "one of LOW, NORMAL, HIGH")
    return jobs_pb2.JobPriority.Value(f"JOB_PRIORITY_{word}")


def notification(address: str, field: str = "notify") -> jobs_pb2.Notification:
    """Who is told: a web address or an e-mail address.

    Raises:
        InvalidArgument: neither of them.
    """
    if address.startswith(("https://", "http://")):
        return jobs_pb2.Notification(webhook_url=address)
    if "@" in address and "/" not in address:
        return jobs_pb2.Notification(email_address=address)
    raise InvalidArgument.field(
        field, address, "a web address (https://…) or an e-mail address (name@example.org)"
    )


def _request(config: Config, submission: types.Submission, place: str = "") -> jobs_pb2.SubmitJobRequest:
    """What is sent for a submission; `place` is where among the caller's arguments it is, for refusals."""
    inputs = (submission.inputs or {}).items()
    return jobs_pb2.SubmitJobRequest(
        pipeline=submission.pipeline,
        params=to_struct(submission.params or {}, f"{place}params"),
        display_name=submission.name,
        seed=submission.seed,
        inputs={role: _names.dataset_version(config, text) for role, text in inputs},
        pool=_pool(submission.pool),
        device_class=submission.device_class,
        priority=priority_number(submission.priority, f"{place}priority"),
        group=submission.group,
        labels=dict(submission.labels or {}),
        timeout_seconds=seconds_in(submission.timeout, f"{place}timeout"),
        max_attempts=submission.max_attempts,
        memory_hint_bytes=submission.memory_hint_bytes,
        notifications=[notification(address, f"{place}notify") for address in submission.notify],
    )


def _axis(path: str, values: Sequence[Any]) -> jobs_pb2.SweepAxis:
    filled: struct_pb2.Struct = to_struct({path: list(values)}, "sweep.axes")
    return jobs_pb2.SweepAxis(path=path, values=filled.fields[path].list_value)


def _project(config: Config) -> str:
    return f"projects/{config.project}"


def _pool(text: str) -> str:
    # By its id on the wire; people may also give the name that `pools` answers with.
    return text.removeprefix("pools/")


def _request_id(given: str | None) -> str:
    # With an id of its own, a request that is sent again cannot make a second job.
    return given or str(uuid.uuid4())
