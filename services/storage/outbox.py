"""Announcements: written with the change that they tell of, published by a relay once the bus is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import Counter, Gauge
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from guidehall.contracts.events.v1 import events_pb2
from guidehall.core.bus import EventBus
from guidehall.core.errors import AppError, Unavailable
from guidehall.core.faults import fault_point
from guidehall.core.postgres import transaction
from guidehall.core.telemetry import handling, trace_headers
from services.storage.tables import outbox

logger = logging.getLogger(__name__)

MODEL_PUBLISHED = "model.published"
MODEL_DELETED = "model.deleted"
MODEL_UNDELETED = "model.undeleted"
MODEL_CHANGED = "model.changed"
DATASET_VERSION_CREATED = "dataset.version_created"

_BATCH = 100
_PUBLISHED = Counter("guidehall_storage_announcements", "Announcements published", ["subject"])
_WAITING = Gauge("guidehall_storage_announcements_waiting", "Announcements that the bus has not taken yet")


@dataclass(frozen=True)
class Announcement:
    """What the bus is to be told: a subject, and the fields of its message."""

    subject: str
    payload: dict[str, Any]


async def enqueue(connection: AsyncConnection, announcements: Sequence[Announcement]) -> None:
    """Adds to what remains to be announced."""
    if announcements:
        origin = trace_headers() or None
        rows = [
            {"subject": item.subject, "payload": item.payload, "origin": origin} for item in announcements
        ]
        await connection.execute(insert(outbox), rows)


class Relay:
    """Publishes what waits, oldest first. Several may run: no two take the same row at one time."""

    def __init__(
        self,
        engine: AsyncEngine,
        bus: EventBus,
        announced: asyncio.Event,
        retry_seconds: float,
        idle_seconds: float,
    ) -> None:
        self._engine = engine
        self._bus = bus
        self._announced = announced
        self._retry_seconds = retry_seconds
        self._idle_seconds = idle_seconds

    async def run(self) -> None:
        """Goes on until cancelled, whatever is away meanwhile."""
        while True:
            self._announced.clear()
            try:
                while await self._publish_batch() == _BATCH:
                    pass
            except AppError as error:
                logger.debug("announcements wait: %s", error.message)
                await asyncio.sleep(self._retry_seconds)
                continue
            # Woken by a commit of this process; the time is for what another left behind.
            try:
                async with asyncio.timeout(self._idle_seconds):
                    await self._announced.wait()
            except TimeoutError:
                continue

    async def _publish_batch(self) -> int:
        if not self._bus.connected:
            await self._count_waiting()
            raise Unavailable("the event bus cannot be reached")
        refused: Unavailable | None = None
        async with transaction(self._engine) as connection:
            query = select(outbox).order_by(outbox.c.id).limit(_BATCH).with_for_update(skip_locked=True)
            rows = (await connection.execute(query)).all()
            published = []
            for row in rows:
                try:
                    data = encode(row.subject, row.payload, row.message_id, row.create_time)
                    with handling(row.origin, row.subject):
                        await self._bus.publish(row.subject, data, row.message_id)
                except Unavailable as error:
                    refused = error
                    break
                fault_point("storage.outbox.published")
                published.append(row.id)
                _PUBLISHED.labels(row.subject).inc()
            if published:
                await connection.execute(delete(outbox).where(outbox.c.id.in_(published)))
        if refused is not None:
            raise refused
        if len(rows) < _BATCH:
            _WAITING.set(0)
        return len(rows)

    async def _count_waiting(self) -> None:
        async with transaction(self._engine) as connection:
            _WAITING.set(await connection.scalar(select(func.count()).select_from(outbox)) or 0)


def encode(subject: str, payload: dict[str, Any], message_id: str, time: datetime) -> bytes:
    """An announcement as it travels."""
    moment = Timestamp()
    moment.FromDatetime(time)
    event = events_pb2.Event(event_id=message_id, time=moment, source="storage")
    match subject:
        case "model.published":
            event.model_published.CopyFrom(events_pb2.ModelPublished(**payload))
        case "model.deleted" | "model.undeleted":
            event.model_visibility_changed.CopyFrom(events_pb2.ModelVisibilityChanged(**payload))
        case "model.changed":
            event.model_changed.CopyFrom(events_pb2.ModelChanged(**payload))
        case "dataset.version_created":
            event.dataset_version_created.CopyFrom(events_pb2.DatasetVersionCreated(**payload))
        case _:
            raise ValueError(f"no message is defined for {subject}")
    return event.SerializeToString()
