"""What a worker says to the trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core.errors import AppError, Code, Unauthenticated
from guidehall.core.telemetry import inject
from services.trainer.worker.lease import LeasedJob, leased_job
from services.trainer.worker.machine import Machine
from services.trainer.worker.retry import calling, passes
from services.trainer.worker.verdict import Finish

Metadata = tuple[tuple[str, str], ...]
# What reading a stream gives at its end.
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


def call_metadata(token: str) -> Metadata:
    """What a call carries: a credential and its trace."""
    headers = {"authorization": f"Bearer {token}"}
    inject(headers)
    return tuple(headers.items())


def is_stale(error: AppError) -> bool:
    """Whether the trainer says that the attempt does not hold its job any more."""
    return error.code is Code.NOT_FOUND or error.reason == "STALE_EPOCH"


def may_pass(error: AppError) -> bool:
    """Whether another try may succeed while the lease lives; meanwhile a credential may be renewed, too."""
    if error.code is Code.ABORTED:
        return not is_stale(error)
    return passes(error) or error.code is Code.UNAUTHENTICATED


@dataclass(frozen=True)
class Registration:
    """What the trainer calls this worker."""

    worker: str
    poll_interval_seconds: float


@dataclass(frozen=True)
class Offer:
    """What an idle worker is told."""

    job: LeasedJob | None
    # Drained or quarantined: there will be none until an operator says otherwise.
    out_of_service: bool


@dataclass(frozen=True)
class StagedObject:
    """What storage confirmed of an output."""

    sha256: str
    size_bytes: int
    media_type: str

    def message(self) -> common_pb2.ObjectRef:
        """The wire's form."""
        return common_pb2.ObjectRef(
            sha256=self.sha256, size_bytes=self.size_bytes, media_type=self.media_type
        )


@dataclass(frozen=True)
class Untold:
    """What the trainer did not acknowledge yet.

    Attributes:
        started_at: when the pipeline began, by the loop's clock, if that is news.
        events: at most one batch.
    """

    started_at: float | None
    events: workers_pb2.EventBatch


class TrainerClient:
    """The calls of `WorkerService`; each raises `AppError`."""

    def __init__(self, channel: grpc.aio.Channel, credential_file: Path, timeout_seconds: float) -> None:
        self._stub: Any = workers_pb2_grpc.WorkerServiceStub(channel)
        self._credential_file = credential_file
        self._timeout_seconds = timeout_seconds

    def metadata(self) -> Metadata:
        """Metadata with the worker's credential as the file has it now.

        Raises:
            Unauthenticated: there is none to read.
        """
        try:
            return call_metadata(self._credential_file.read_text().strip())
        except OSError as error:
            raise Unauthenticated(f"the credential file cannot be read: {error.strerror}") from None

    async def register(
        self, pool: str, machine: Machine, pipelines: Mapping[str, str], earlier: str
    ) -> Registration:
        """Makes the worker known, under its `earlier` name if it has one. `pipelines`: name -> version."""
        request = workers_pb2.RegisterRequest(
            pool=pool,
            hostname=machine.hostname,
            capabilities=machine.message(),
            pipelines=[
                workers_pb2.OfferedPipeline(name=name, version=version)
                for name, version in sorted(pipelines.items())
            ],
            software=machine.software,
            worker=earlier,
        )
        async with calling(self._timeout_seconds):
            answer = await self._stub.Register(request, metadata=self.metadata())
        return Registration(answer.worker.name, answer.poll_interval_seconds)

    async def lease(self, worker: str, wait_seconds: float) -> Offer:
        """Takes a job, if one comes within `wait_seconds`."""
        request = workers_pb2.LeaseRequest(worker=worker, wait_seconds=wait_seconds)
        limit = wait_seconds + self._timeout_seconds
        async with calling(limit):
            answer = await self._stub.Lease(request, metadata=self.metadata(), timeout=limit)
        job = leased_job(answer.lease) if answer.HasField("lease") else None
        return Offer(job, answer.out_of_service)

    async def leave(self, worker: str, within_seconds: float) -> None:
        """Gives back what an earlier `lease` that was given up may have been answered with."""
        request = workers_pb2.LeaseRequest(worker=worker, leaving=True)
        async with calling(within_seconds):
            await self._stub.Lease(request, metadata=self.metadata(), timeout=within_seconds)

    async def quarantine(self, worker: str, reason: str) -> None:
        """Says that the worker takes no job until an operator has reinstated it."""
        request = workers_pb2.QuarantineRequest(worker=worker, reason=reason)
        async with calling(self._timeout_seconds):
            await self._stub.Quarantine(request, metadata=self.metadata())

    def session(self) -> Any:
        """The stream of one running job."""
        return self._stub.Session(metadata=self.metadata())

    async def commit_checkpoint(self, job: LeasedJob, ordinal: int, step: int, staged: StagedObject) -> None:
        """Makes a staged checkpoint the one to go on from."""
        checkpoint = workers_pb2.CheckpointRef(
            ordinal=ordinal, step=step, lease_epoch=job.epoch, object=staged.message()
        )
        request = workers_pb2.CommitCheckpointRequest(
            job=job.job, lease_epoch=job.epoch, checkpoint=checkpoint
        )
        async with calling(self._timeout_seconds):
            await self._stub.CommitCheckpoint(request, metadata=self.metadata())

    async def finish(
        self,
        job: LeasedJob,
        finish: Finish,
        outputs: Mapping[str, StagedObject],
        untold: Untold,
        lease_next: bool,
    ) -> LeasedJob | None:
        """Reports the end of the attempt, and what was `untold`. Repeating it is harmless.

        Returns:
            The next job, if it was asked for and one waits.
        """
        request = workers_pb2.FinishRequest(
            job=job.job,
            lease_epoch=job.epoch,
            outcome=workers_pb2.Outcome.Value(f"OUTCOME_{finish.outcome.name}"),
            reason=jobs_pb2.EndReason.Value(f"END_REASON_{finish.reason.name}"),
            error=_error_detail(finish),
            outputs={name: staged.message() for name, staged in outputs.items()},
            lease_next=lease_next,
            events=untold.events,
        )
        if untold.started_at is not None:
            request.started_seconds_ago = asyncio.get_running_loop().time() - untold.started_at
        async with calling(self._timeout_seconds):
            answer = await self._stub.Finish(request, metadata=self.metadata())
        return leased_job(answer.next) if answer.HasField("next") else None

    async def release(self, job: LeasedJob, reason: str) -> None:
        """Hands the job back unfinished."""
        request = workers_pb2.ReleaseRequest(job=job.job, lease_epoch=job.epoch, reason=reason)
        async with calling(self._timeout_seconds):
            await self._stub.Release(request, metadata=self.metadata())


def _error_detail(finish: Finish) -> common_pb2.ErrorDetail | None:
    error = finish.error
    if error is None:
        return None
    violations: Sequence[tuple[str, str]] = error.violations
    return common_pb2.ErrorDetail(
        code=error.code.name,
        reason=error.reason,
        message=error.message,
        violations=[common_pb2.FieldViolation(field=f, description=d) for f, d in violations],
        error_id=error.error_id,
    )
