"""What is done to a job after its submission: pause, resume, stop, cancel, change, delete; its attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guidehall.client import _decode, _lists, types
from guidehall.client._config import Config
from guidehall.client._jobs import resolve
from guidehall.client._refusal import refusal
from guidehall.client._steps import Call, Operation, Rpc
from guidehall.client._submissions import notification, priority_number
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc

_UPDATE = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "UpdateJob")
_DELETE = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "DeleteJob")
_PURGE = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "PurgeJobs")
_ATTEMPTS = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "ListAttempts")
# Requests that are a job's name and nothing more.
_REQUESTS: dict[str, type[Any]] = {
    "CancelJob": jobs_pb2.CancelJobRequest,
    "PauseJob": jobs_pb2.PauseJobRequest,
    "ResumeJob": jobs_pb2.ResumeJobRequest,
    "StopJob": jobs_pb2.StopJobRequest,
    "ClaimJob": jobs_pb2.ClaimJobRequest,
}


def ask(config: Config, method: str, text: str) -> Operation[types.Job]:
    """Asks for something that takes no more than the job's name, such as "PauseJob"."""
    name = yield from resolve(config, text)
    rpc = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, method)
    message = yield Call(rpc, _REQUESTS[method](name=name), config.timeouts.call_seconds)
    return _decode.job(message)


def update(
    config: Config,
    text: str,
    *,
    name: str | None,
    labels: Mapping[str, str] | None,
    priority: str | None,
    notify: Sequence[str] | None,
    etag: str,
) -> Operation[types.Job]:
    """Changes what is not None."""
    job = jobs_pb2.Job(etag=etag)
    paths = []
    if name is not None:
        job.display_name = name
        paths.append("display_name")
    if labels is not None:
        job.labels.update(labels)
        paths.append("labels")
    if priority is not None:
        job.priority = priority_number(priority)
        paths.append("priority")
    if notify is not None:
        job.notifications.extend(map(notification, notify))
        paths.append("notifications")
    if not paths:
        raise refusal("update", "there is nothing to change: give name, labels, priority or notify")
    job.name = yield from resolve(config, text)
    request = jobs_pb2.UpdateJobRequest(job=job)
    request.update_mask.paths.extend(paths)
    message = yield Call(_UPDATE, request, config.timeouts.call_seconds)
    return _decode.job(message)


def delete(config: Config, text: str, etag: str) -> Operation[None]:
    """Deletes a job that has ended."""
    name = yield from resolve(config, text)
    yield Call(_DELETE, jobs_pb2.DeleteJobRequest(name=name, etag=etag), config.timeouts.call_seconds)


def purge(config: Config, filter: str, include_queued: bool, force: bool) -> Operation[types.Purge]:
    """Deletes many jobs, or counts them."""
    request = jobs_pb2.PurgeJobsRequest(
        parent=f"projects/{config.project}", filter=filter, include_queued=include_queued, force=force
    )
    message = yield Call(_PURGE, request, config.timeouts.call_seconds)
    return _decode.purge(message)


def attempts(config: Config, text: str, limit: int | None) -> Operation[None]:
    """Emits the attempts at a job, newest first."""
    name = yield from resolve(config, text)
    request = jobs_pb2.ListAttemptsRequest(parent=name)
    yield from _lists.items(config, _ATTEMPTS, request, "attempts", _decode.attempt, limit)
