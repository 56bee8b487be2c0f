"""Who is told what is in the outbox: the bus of doorbells and events, storage of endings and deeds."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

import grpc
from sqlalchemy import select

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.events.v1 import events_pb2
from guidehall.contracts.identity.v1 import audit_pb2, audit_pb2_grpc, identity_pb2
from guidehall.contracts.results.v1 import staging_pb2, staging_pb2_grpc
from guidehall.core.bus import EventBus
from guidehall.core.errors import from_rpc_error
from services.trainer import messages
from services.trainer.database import Database
from services.trainer.journal import append, lock_job
from services.trainer.outbox import Message, Teller
from services.trainer.records import Note, StoredEvent
from services.trainer.tables import job_events, jobs
from services.trainer.wakes import pool_topic

SERVICE = "trainer"
# A message of the bus holds at most 1 MiB.
_MOST_EVENT_BYTES = 512 << 10
_MOST_EVENTS = 500


class BusTellers:
    """Doorbells and job events, for those who listen. Without a bus the database alone wakes."""

    def __init__(self, database: Database, bus: EventBus | None) -> None:
        self._database = database
        self._bus = bus

    def tellers(self) -> Mapping[str, Teller]:
        return {"doorbell": self.doorbell, "events": self.events}

    async def doorbell(self, rings: Sequence[Message]) -> None:
        """Work waits in a pool: wakes the requests that are held, then rings on the bus."""
        pool = rings[0].subject
        async with self._database.unit() as unit:
            unit.wake(pool_topic(pool))
        if self._bus is None:
            return
        for ring in rings:
            event = _event(ring.message_id, doorbell=events_pb2.Doorbell(pool=pool))
            await self._bus.publish(f"jobs.{pool}", event.SerializeToString(), ring.message_id)

    async def events(self, appended: Sequence[Message]) -> None:
        """Events were appended to a job; neighbouring batches travel together."""
        if self._bus is None:
            return
        job_id = appended[0].subject
        first = min(int(item.payload["first_seq"]) for item in appended)
        last = max(int(item.payload["last_seq"]) for item in appended)
        while first <= last:
            batch = await self._batch(job_id, first, last)
            if not batch.events:
                return
            # The same events make the same id: a repeat counts once.
            end = batch.events[-1].seq
            message_id = str(uuid.uuid5(uuid.UUID(job_id), f"{first}-{end}"))
            event = _event(message_id, job_events=batch)
            await self._bus.publish(f"events.job.{job_id}", event.SerializeToString(), message_id)
            first = end + 1

    async def _batch(self, job_id: str, first: int, last: int) -> events_pb2.JobEventsAppended:
        statement = (
            select(
                jobs.c.project, job_events.c.seq, job_events.c.time, job_events.c.kind, job_events.c.payload
            )
            .join(jobs, jobs.c.id == job_events.c.job_id)
            .where(job_events.c.job_id == job_id, job_events.c.seq.between(first, last))
            .order_by(job_events.c.seq)
            .limit(_MOST_EVENTS)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        batch, size = events_pb2.JobEventsAppended(), 0
        for project, *stored in rows:
            event = messages.event(messages.job_name(project, job_id), StoredEvent(*stored))
            size += event.ByteSize()
            if size > _MOST_EVENT_BYTES and batch.events:
                break
            batch.events.append(event)
        return batch


class StorageTellers:
    """Promotions, discards and the audit log, which storage keeps."""

    def __init__(self, database: Database, channel: grpc.aio.Channel, call_seconds: float) -> None:
        self._database = database
        self._staging = staging_pb2_grpc.StagingServiceStub(channel)
        self._audit = audit_pb2_grpc.AuditServiceStub(channel)
        self._call_seconds = call_seconds

    def tellers(self) -> Mapping[str, Teller]:
        return {"promote": self.promote, "discard": self.discard, "audit": self.audit}

    async def promote(self, promotions: Sequence[Message]) -> None:
        """The winning attempt's outputs become visible; then the job's watchers hear of it, once."""
        for promotion in promotions:
            payload = promotion.payload
            request = staging_pb2.PromoteRequest(
                job=payload["job"],
                lease_epoch=payload["lease_epoch"],
                owner=payload["owner"],
                outputs={key: common_pb2.ObjectRef(**ref) for key, ref in payload["outputs"].items()},
            )
            try:
                promoted = await self._staging.Promote(request, timeout=self._call_seconds)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            await self._published(promotion.subject, promoted.result, list(promoted.model_versions))

    async def _published(self, job_id: str, result: str, model_versions: list[str]) -> None:
        async with self._database.unit() as unit:
            job = await lock_job(unit.connection, job_id)
            if job is None or job.result is not None:
                return
            note = Note("published", {"result": result, "model_versions": model_versions})
            await append(unit, job, [note], {"result": result})

    async def discard(self, endings: Sequence[Message]) -> None:
        """What a job staged is of no use any more, but perhaps for one checkpoint."""
        # Each asks for more to go than the one before it.
        payload = endings[-1].payload
        request = staging_pb2.DiscardRequest(
            job=payload["job"],
            keep_checkpoint_epoch=payload["keep_epoch"],
            keep_checkpoint_ordinal=payload["keep_ordinal"],
        )
        try:
            await self._staging.Discard(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def audit(self, deeds: Sequence[Message]) -> None:
        """Who did what."""
        request = audit_pb2.AppendAuditEventsRequest(events=[_audit_event(deed) for deed in deeds])
        try:
            await self._audit.AppendAuditEvents(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def _event(event_id: str, **payload: object) -> events_pb2.Event:
    event = events_pb2.Event(event_id=event_id, source=SERVICE, **payload)  # type: ignore[arg-type]
    event.time.GetCurrentTime()
    return event


def _audit_event(deed: Message) -> audit_pb2.AuditEvent:
    fields = dict(deed.payload)
    time = datetime.fromisoformat(fields.pop("time"))
    kind = identity_pb2.PrincipalKind.Value(f"PRINCIPAL_KIND_{fields.pop('kind').upper()}")
    event = audit_pb2.AuditEvent(event_id=deed.message_id, service=SERVICE, kind=kind, count=1, **fields)
    event.time.FromDatetime(time)
    return event
