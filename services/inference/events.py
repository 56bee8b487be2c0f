"""Hears from the bus what happened to models, so that a new version answers at once."""

from __future__ import annotations

import logging

from google.protobuf.message import DecodeError

from guidehall.contracts.events.v1 import events_pb2
from guidehall.core.bus import EventBus
from guidehall.core.errors import AppError
from guidehall.core.telemetry import handling
from services.inference.repository import Repository
from services.inference.versions import Reference

_log = logging.getLogger(__name__)

_SUBJECTS = "model.>"


async def follow(bus: EventBus, repository: Repository) -> None:
    """Passes events on until it is cancelled. What is missed here, the next reconciliation finds."""
    async for message in bus.tail(_SUBJECTS):
        with handling(message.headers, message.subject):
            try:
                await _follow(events_pb2.Event.FromString(message.data), repository)
            except (AppError, DecodeError) as error:
                _log.warning(
                    "an event could not be followed", extra={"subject": message.subject, "reason": str(error)}
                )
                repository.reconcile_soon()


async def _follow(event: events_pb2.Event, repository: Repository) -> None:
    kind = event.WhichOneof("payload")
    if kind == "model_published":
        await repository.model_published(
            Reference.of_resource(event.model_published.model_version, "model_version")
        )
    elif kind == "model_visibility_changed" and event.model_visibility_changed.deleted:
        changed = event.model_visibility_changed
        await repository.model_deleted(Reference.of_resource(changed.model, "model").key)
    else:
        repository.reconcile_soon()
