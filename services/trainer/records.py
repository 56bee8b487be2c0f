"""Rows of the tables as the code handles them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from guidehall.core import names
from services.trainer.documents import Document
from services.trainer.lifecycle import FINAL, Desired, EndReason, JobFacts, State


@dataclass(frozen=True)
class Job:
    """A row of `jobs`."""

    id: str
    project: str
    owner: str
    display_name: str
    labels: Mapping[str, str]
    pipeline: str
    pipeline_version: str
    params: Document
    params_digest: str
    seed: int
    inputs: Mapping[str, str]
    pool: str
    priority: int
    memory_hint_bytes: int
    max_attempts: int
    timeout_seconds: int
    state: State
    desired: Desired
    end_reason: EndReason | None
    error: Document | None
    lease_epoch: int
    attempt_count: int
    worker_id: str | None
    lease_until: datetime | None
    timeout_at: datetime | None
    queue_rank: datetime
    not_before: datetime | None
    progress: Document | None
    last_log_line: str
    last_seq: int
    outputs: Document | None
    result: str | None
    retried_from: str | None
    checkpoint_from: str | None
    group_name: str
    device_class: str
    notifications: Sequence[Mapping[str, str]]
    batch: str | None
    batch_position: int | None
    annotations: Document
    readers: Sequence[str]
    first_seq: int
    traceparent: str
    version: int
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    update_time: datetime

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Job:
        """The job in a row that has at least the columns of `jobs`."""
        return cls(**_typed({name: row[name] for name in cls.__dataclass_fields__}))

    def changed(self, columns: Mapping[str, Any]) -> Job:
        """The job after some columns of its row were set."""
        known = {name: value for name, value in columns.items() if name in self.__dataclass_fields__}
        return replace(self, **_typed(known))

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.JOB.format(project=self.project, job=self.id)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return is_complete(self.state, self.result)

    @property
    def etag(self) -> str:
        """Changes with every change of the job."""
        return f'"{self.version}"'

    def facts(self) -> JobFacts:
        """What the lifecycle looks at."""
        return JobFacts(
            self.state,
            self.desired,
            self.end_reason,
            self.lease_epoch,
            self.attempt_count,
            self.max_attempts,
        )


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Columns of a job, with words for what the lifecycle knows."""
    kinds = {"state": State, "desired": Desired, "end_reason": EndReason}
    return values | {name: kind(values[name]) for name, kind in kinds.items() if values.get(name) is not None}


@dataclass(frozen=True)
class Note:
    """Something to append to a job's events. `kind` is the name of the payload's field in JobEvent."""

    kind: str
    payload: Document
    # When it happened, where that is not now.
    time: datetime | None = None


@dataclass(frozen=True)
class StoredEvent:
    """A row of `job_events`."""

    seq: int
    time: datetime
    kind: str
    payload: Document


@dataclass(frozen=True)
class ObjectRef:
    """Bytes in storage: what they are."""

    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    ordinal: int
    step: int
    epoch: int
    object: ObjectRef


@dataclass(frozen=True)
class Worker:
    """A registered worker."""

    id: str
    pool: str
    hostname: str
    capabilities: Document
    # (name, version) of each pipeline that it runs.
    pipelines: tuple[tuple[str, str], ...]
    software: Mapping[str, str]
    register_time: datetime
    last_seen_time: datetime
    drain_time: datetime | None = None
    drain_releases_job: bool = False
    quarantine_time: datetime | None = None
    quarantine_reason: str = ""
    lost: bool = False
    # Name of the job that it holds.
    job: str = ""

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.WORKER.format(pool=self.pool, worker=self.id)

    @property
    def out_of_service(self) -> bool:
        """Whether it gets no jobs until an operator says otherwise."""
        return self.drain_time is not None or self.quarantine_time is not None


def is_complete(state: State, result: str | None) -> bool:
    """Whether nothing can follow in a job: a success has one more event, when its result can be read."""
    return state in FINAL and (state is not State.SUCCEEDED or result is not None)


def worker_name(pool: str, worker_id: str | None) -> str:
    """The resource name of a job's worker; empty without one."""
    return names.WORKER.format(pool=pool, worker=worker_id) if worker_id else ""
