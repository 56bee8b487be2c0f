"""Who is told what is in the outbox: the bus of doorbells and events, storage of endings and deeds."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import grpc
from prometheus_client import Counter
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.events.v1 import events_pb2
from guidehall.contracts.identity.v1 import audit_pb2, identity_pb2
from guidehall.contracts.results.v1 import staging_pb2, staging_pb2_grpc
from guidehall.core.audit import sender
from guidehall.core.bus import EventBus
from guidehall.core.errors import Code, from_rpc_error
from guidehall.core.faults import fault_point
from guidehall.core.telemetry import handling
from services.trainer import messages
from services.trainer.database import Database
from services.trainer.journal import append, lock_job
from services.trainer.outbox import Message, Teller
from services.trainer.records import Note, StoredEvent
from services.trainer.wakes import pool_topic

logger = logging.getLogger(__name__)

SERVICE = "trainer"
_REFUSED = Counter(
    "guidehall_promotions_refused", "Attempts to publish a result that storage refused for a lasting reason"
)
# Of answers, those that another try may not meet.
_PASSING = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.CANCELLED}
)
# A message of the bus holds at most 1 MiB.
_MOST_EVENT_BYTES = 512 << 10
_MOST_EVENTS = 2000


class BusTellers:
    """Doorbells and job events, for those who listen. Without a bus the database alone wakes."""

    def __init__(self, database: Database, bus: EventBus | None) -> None:
        self._database = database
        self._bus = bus

    def tellers(self) -> Mapping[str, Teller]:
        """By kind of message."""
        return {"doorbell": Teller(self.doorbell), "events": Teller(self.events, together=True)}

    async def doorbell(self, rings: Sequence[Message]) -> None:
        """Work waits in a pool: rings on the bus, and wakes held requests if that was put off."""
        pool = rings[0].subject
        if any(ring.payload["wake"] for ring in rings):
            async with self._database.unit() as unit:
                unit.wake(pool_topic(pool))
        if self._bus is None:
            return
        # Whoever hears it asks for jobs until there are no more: one ring tells of all.
        newest = rings[-1].message_id
        event = _event(newest, doorbell=events_pb2.Doorbell(pool=pool))
        fault_point("trainer.doorbell.before_ring")
        await self._bus.publish(f"jobs.{pool}", event.SerializeToString(), newest)
        fault_point("trainer.doorbell.rung")

    async def events(self, appended: Sequence[Message]) -> None:
        """Events were appended to jobs; neighbouring batches of a job travel together."""
        if self._bus is None:
            return
        origins = {message.subject: message.origin for message in appended}
        for ranges in _portions(appended):
            async with self._database.statements() as connection:
                rows = (await connection.execute(_EVENTS, {"ranges": ranges})).all()
            for job_id, told in groupby(rows, key=lambda row: str(row.job_id)):
                with handling(origins[job_id], "publish events"):
                    await self._publish(job_id, told)

    async def _publish(self, job_id: str, rows: Iterable[Any]) -> None:
        assert self._bus is not None  # noqa: S101 (asked before)
        for batch in _batches(job_id, rows):
            # The same events make the same id: a repeat counts once.
            span = f"{batch.events[0].seq}-{batch.events[-1].seq}"
            message_id = str(uuid.uuid5(uuid.UUID(job_id), span))
            event = _event(message_id, job_events=batch)
            await self._bus.publish(f"events.job.{job_id}", event.SerializeToString(), message_id)
            fault_point("trainer.fanout.published")


_EVENTS = text(
    """
    SELECT j.id AS job_id, j.project, e.seq, e.time, e.kind, e.payload
    FROM jsonb_to_recordset(:ranges) AS r(job_id uuid, first_seq bigint, last_seq bigint)
    JOIN trainer.jobs AS j ON j.id = r.job_id
    JOIN trainer.job_events AS e ON e.job_id = r.job_id AND e.seq BETWEEN r.first_seq AND r.last_seq
    ORDER BY j.id, e.seq
    """
).bindparams(bindparam("ranges", type_=JSONB))


def _portions(appended: Sequence[Message]) -> Iterator[list[dict[str, Any]]]:
    """Ranges of events to read at a time, so that not too many are held."""
    ranges: list[dict[str, Any]] = []
    count = 0
    for message in appended:
        ranges.append({"job_id": message.subject, **message.payload})
        count += message.payload["last_seq"] - message.payload["first_seq"] + 1
        if count >= _MOST_EVENTS:
            yield ranges
            ranges, count = [], 0
    if ranges:
        yield ranges


def _batches(job_id: str, rows: Iterable[Any]) -> Iterator[events_pb2.JobEventsAppended]:
    """The events of one job in messages that the bus carries."""
    batch, size = events_pb2.JobEventsAppended(), 0
    for row in rows:
        stored = StoredEvent(row.seq, row.time, row.kind, row.payload)
        event = messages.event(messages.job_name(row.project, job_id), stored)
        size += event.ByteSize()
        if size > _MOST_EVENT_BYTES and batch.events:
            yield batch
            batch, size = events_pb2.JobEventsAppended(), event.ByteSize()
        batch.events.append(event)
    yield batch


class StorageTellers:
    """Promotions, discards and the audit log, which storage keeps."""

    def __init__(self, database: Database, channel: grpc.aio.Channel, call_seconds: float) -> None:
        self._database = database
        self._staging = staging_pb2_grpc.StagingServiceStub(channel)
        self._append = sender(channel, call_seconds)
        self._call_seconds = call_seconds

    def endings(self) -> Mapping[str, Teller]:
        """What becomes of the outputs of a job, by kind of message."""
        return {
            "promote": Teller(self.promote),
            "claim": Teller(self.claim),
            "discard": Teller(self.discard),
        }

    def deeds(self) -> Mapping[str, Teller]:
        """The audit log, by kind of message."""
        return {"audit": Teller(self.audit, together=True)}

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
            fault_point("trainer.promote.before_call")
            try:
                promoted = await self._staging.Promote(request, timeout=self._call_seconds)
            except grpc.aio.AioRpcError as error:
                problem = from_rpc_error(error)
                if problem.code not in _PASSING:
                    # Whoever waits for the result waits until somebody has repaired this.
                    logger.error("storage refuses the outputs of %s: %s", payload["job"], problem.message)
                    _REFUSED.inc()
                raise problem from error
            fault_point("trainer.promote.answered")
            owner = payload["owner"]
            while claimed_by := await self._published(promotion.subject, owner, promoted):
                # Whoever hears that the result is there can read it.
                await self._claim(payload["job"], claimed_by)
                owner = claimed_by

    async def _published(self, job_id: str, owner: str, promoted: staging_pb2.PromoteResponse) -> str | None:
        """Says that the result can be read, unless the job has another owner than what was published.

        Returns:
            That owner, who has claimed the job meanwhile.
        """
        async with self._database.unit() as unit:
            job = await lock_job(unit.connection, job_id)
            if job is None or job.result is not None:
                return None
            if job.owner != owner:
                return job.owner
            published = {"result": promoted.result, "model_versions": list(promoted.model_versions)}
            await append(unit, job, [Note("published", published)], {"result": promoted.result})
            fault_point("trainer.publish.stored")
        fault_point("trainer.publish.committed")
        return None

    async def claim(self, claims: Sequence[Message]) -> None:
        """What a guest's job has published belongs to who has claimed the job."""
        payload = claims[-1].payload
        await self._claim(payload["job"], payload["owner"])

    async def _claim(self, job: str, owner: str) -> None:
        request = staging_pb2.ClaimRequest(job=job, owner=owner)
        fault_point("trainer.claim.before_call")
        try:
            await self._staging.Claim(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        fault_point("trainer.claim.answered")

    async def discard(self, endings: Sequence[Message]) -> None:
        """What a job staged is of no use any more, but perhaps for one checkpoint and the log."""
        # Each asks for more to go than the one before it, or names an owner after nobody.
        payload = endings[-1].payload
        request = staging_pb2.DiscardRequest(
            job=payload["job"],
            keep_checkpoint_epoch=payload["keep_epoch"],
            keep_checkpoint_ordinal=payload["keep_ordinal"],
            job_ended=payload["job_ended"],
            # An earlier version sent none.
            log_owner=payload.get("log_owner"),
        )
        fault_point("trainer.discard.before_call")
        try:
            await self._staging.Discard(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        fault_point("trainer.discard.answered")

    async def audit(self, deeds: Sequence[Message]) -> None:
        """Who did what."""
        await self._append([_audit_event(deed) for deed in deeds])
        fault_point("trainer.audit.answered")


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
