"""WorkerService."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument
from guidehall.core.telemetry import note_job
from services.trainer import messages, worker_messages
from services.trainer.leases import Leases, OutOfService
from services.trainer.lifecycle import State
from services.trainer.reports import Reports
from services.trainer.sessions import (
    Ack,
    Answer,
    Batch,
    Begun,
    Heartbeat,
    Hello,
    Lost,
    Report,
    Sessions,
    Wish,
)
from services.trainer.settings import LeaseSettings
from services.trainer.workers import Workers

FULL_NAME = workers_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name


class WorkerServicer(workers_pb2_grpc.WorkerServiceServicer):
    """What trainer workers speak."""

    def __init__(
        self, workers: Workers, leases: Leases, reports: Reports, sessions: Sessions, settings: LeaseSettings
    ) -> None:
        self._workers = workers
        self._leases = leases
        self._reports = reports
        self._sessions = sessions
        self._settings = settings

    async def Register(  # noqa: N802
        self, request: workers_pb2.RegisterRequest, _context: Any
    ) -> workers_pb2.RegisterResponse:
        told = worker_messages.registration(request)
        worker = await self._workers.register(current_principal(), request.pool, request.worker, told)
        return workers_pb2.RegisterResponse(
            worker=worker_messages.worker(worker), poll_interval_seconds=self._settings.poll_interval_seconds
        )

    async def Lease(self, request: workers_pb2.LeaseRequest, _context: Any) -> workers_pb2.LeaseResponse:  # noqa: N802
        if request.leaving:
            await self._leases.leave(current_principal(), request.worker)
            return workers_pb2.LeaseResponse()
        wait = request.wait_seconds
        if not (math.isfinite(wait) and wait >= 0):
            raise InvalidArgument.field("wait_seconds", wait, "0 or more")
        grant = await self._leases.lease(current_principal(), request.worker, wait)
        match grant:
            case None:
                return workers_pb2.LeaseResponse()
            case OutOfService():
                return workers_pb2.LeaseResponse(out_of_service=True)
        return workers_pb2.LeaseResponse(lease=worker_messages.lease(grant, self._settings))

    async def Quarantine(  # noqa: N802
        self, request: workers_pb2.QuarantineRequest, _context: Any
    ) -> workers_pb2.QuarantineResponse:
        reason = worker_messages.quarantine_reason(request.reason)
        await self._workers.quarantine(current_principal(), request.worker, reason)
        return workers_pb2.QuarantineResponse()

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[workers_pb2.SessionRequest], _context: Any
    ) -> AsyncIterator[workers_pb2.SessionResponse]:
        reports = (self._report(request) async for request in request_iterator)
        answers = self._sessions.converse(current_principal(), reports)
        async with aclosing(answers):
            async for answer in answers:
                yield _answer(answer)

    def _report(self, request: workers_pb2.SessionRequest) -> Report:
        match request.WhichOneof("message"):
            case "hello":
                note_job(request.hello.job)
                return Hello(request.hello.job, request.hello.lease_epoch)
            case "heartbeat":
                return Heartbeat()
            case "started":
                return Begun()
            case "events":
                batch = request.events
                return Batch(batch.first_number, worker_messages.notes(batch, self._settings))
        raise InvalidArgument.field("message", "nothing", "hello, heartbeat, started or events")

    async def CommitCheckpoint(  # noqa: N802
        self, request: workers_pb2.CommitCheckpointRequest, _context: Any
    ) -> workers_pb2.CommitCheckpointResponse:
        checkpoint = worker_messages.checkpoint(request.checkpoint, request.lease_epoch)
        replaced = await self._reports.checkpoint(
            current_principal(), request.job, request.lease_epoch, checkpoint
        )
        return workers_pb2.CommitCheckpointResponse(replaced_ordinal=replaced)

    async def Finish(self, request: workers_pb2.FinishRequest, _context: Any) -> workers_pb2.FinishResponse:  # noqa: N802
        state, grant = await self._reports.finish(
            current_principal(),
            request.job,
            request.lease_epoch,
            worker_messages.outcome(request.outcome),
            worker_messages.reason(request.reason),
            worker_messages.reported_error(request.error) if request.HasField("error") else None,
            worker_messages.outputs(request),
            request.lease_next,
            worker_messages.rest(request, self._settings),
        )
        following = None if grant is None else worker_messages.lease(grant, self._settings)
        return workers_pb2.FinishResponse(state=_state(state), next=following)

    async def Release(  # noqa: N802
        self, request: workers_pb2.ReleaseRequest, _context: Any
    ) -> workers_pb2.ReleaseResponse:
        state = await self._reports.release(current_principal(), request.job, request.lease_epoch)
        return workers_pb2.ReleaseResponse(state=_state(state))


def _answer(answer: Answer) -> workers_pb2.SessionResponse:
    match answer:
        case Ack(stored_number, lease_seconds):
            ack = workers_pb2.SessionAck(stored_number=stored_number, lease_remaining_seconds=lease_seconds)
            return workers_pb2.SessionResponse(ack=ack)
        case Wish(desired):
            change = workers_pb2.DesiredChange(desired_state=messages.desired_state(desired))
            return workers_pb2.SessionResponse(desired=change)
        case Lost(reason):
            return workers_pb2.SessionResponse(lost=workers_pb2.LeaseLost(reason=reason))


def _state(state: State) -> jobs_pb2.JobState.ValueType:
    return jobs_pb2.JobState.Value(f"JOB_STATE_{state.value}")
