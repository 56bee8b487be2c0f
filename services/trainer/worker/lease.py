"""A lease as the worker keeps it: the right to run one job, and what running it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.science.pipeline import Desired

_DESIRED = {
    jobs_pb2.DESIRED_STATE_PAUSE: Desired.PAUSE,
    jobs_pb2.DESIRED_STATE_STOP: Desired.STOP,
    jobs_pb2.DESIRED_STATE_CANCEL: Desired.CANCEL,
}


@dataclass(frozen=True)
class CheckpointFile:
    """A committed checkpoint of an earlier attempt, or of the job that this one retries."""

    job: str
    ordinal: int
    lease_epoch: int
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class LeasedJob:
    """What the trainer granted."""

    job: str
    epoch: int
    attempt: int
    pipeline: str
    pipeline_version: str
    params: dict[str, Any]
    seed: int
    # Dataset versions by role.
    inputs: Mapping[str, str]
    token: str = field(repr=False)
    lease_seconds: float
    heartbeat_seconds: float
    checkpoint: CheckpointFile | None
    # 0 means no limit.
    timeout_seconds: float
    hang_seconds: float
    desired: Desired
    # Empty for a guest.
    owner: str
    # Trace context of the submission, if it had one.
    traceparent: str


def desired_of(state: jobs_pb2.DesiredState.ValueType) -> Desired:
    """The wire's desired state; RUN for one that is not known here."""
    return _DESIRED.get(state, Desired.RUN)


def leased_job(lease: workers_pb2.Lease) -> LeasedJob:
    """Reads a lease."""
    checkpoint = None
    if lease.HasField("checkpoint"):
        stored = lease.checkpoint
        checkpoint = CheckpointFile(
            stored.job or lease.job,
            stored.ordinal,
            stored.lease_epoch,
            stored.object.sha256,
            stored.object.size_bytes,
        )
    return LeasedJob(
        job=lease.job,
        epoch=lease.lease_epoch,
        attempt=lease.attempt,
        pipeline=lease.pipeline,
        pipeline_version=lease.pipeline_version,
        params=json_format.MessageToDict(lease.params),
        seed=lease.seed,
        inputs=dict(lease.inputs),
        token=lease.job_token,
        lease_seconds=lease.lease_seconds,
        heartbeat_seconds=lease.heartbeat_seconds,
        checkpoint=checkpoint,
        timeout_seconds=float(lease.timeout_seconds),
        hang_seconds=lease.hang_seconds,
        desired=desired_of(lease.desired_state),
        owner=lease.owner,
        traceparent=lease.traceparent,
    )
