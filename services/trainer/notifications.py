"""Whom to tell when a job has ended: checked when they are named, put into the outbox when it has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from guidehall.core.errors import InvalidArgument
from services.trainer.database import Unit
from services.trainer.documents import Document
from services.trainer.origins import origin
from services.trainer.records import Job
from services.trainer.settings import NotifySettings

MOST_NOTIFICATIONS = 8
_LONGEST_ADDRESS = 254
_ADDRESS = re.compile(r"[A-Za-z0-9_+=.%-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")

# {"webhook_url": ...} or {"email_address": ...}
Target = Mapping[str, str]


def check_targets(targets: Sequence[Target], settings: NotifySettings) -> None:
    """Refuses whom nobody could tell, or whom the operator does not allow.

    Raises:
        InvalidArgument: by the path of the field, such as `notifications[1].webhook_url`.
    """
    if len(targets) > MOST_NOTIFICATIONS:
        raise InvalidArgument.field(
            "notifications", f"{len(targets)} of them", f"at most {MOST_NOTIFICATIONS}"
        )
    for place, target in enumerate(targets):
        path = f"notifications[{place}]"
        match target:
            case {"webhook_url": url}:
                _check_url(f"{path}.webhook_url", url, settings)
            case {"email_address": address}:
                _check_address(f"{path}.email_address", address, settings)
            case _:
                raise InvalidArgument.field(path, "nothing", "webhook_url or email_address")


def _check_url(path: str, url: str, settings: NotifySettings) -> None:
    if not settings.webhook_origins:
        raise InvalidArgument.field(path, url, "none: this installation calls no webhooks")
    if origin(url) not in settings.webhook_origins:
        allowed = f"a URL at one of {', '.join(settings.webhook_origins)}"
        raise InvalidArgument.field(path, url, allowed)


def _check_address(path: str, address: str, settings: NotifySettings) -> None:
    if settings.mail_host is None:
        raise InvalidArgument.field(path, address, "none: this installation sends no e-mail")
    if len(address) > _LONGEST_ADDRESS or not _ADDRESS.fullmatch(address):
        raise InvalidArgument.field(path, address, "an address such as ada@example.org")


def notify(unit: Unit, job: Job) -> None:
    """Puts a message for each target into the outbox, of a subject of its own: none waits for another."""
    for place, target in enumerate(job.notifications):
        payload = {
            "target": dict(target),
            "event": _event(job),
            "since": datetime.now(UTC).isoformat(),
        }
        unit.send("notify", f"{job.id}/{place}", payload)


def _event(job: Job) -> Document:
    """What is told: a JSON document, the same for all."""
    return {
        "type": "job.ended",
        "job": job.name,
        "display_name": job.display_name,
        "pipeline": job.pipeline,
        "labels": dict(job.labels),
        "state": job.state.value,
        "end_reason": job.end_reason.value if job.end_reason else None,
        "error": job.error,
        "result": job.result,
        "create_time": job.create_time.isoformat(),
        "start_time": job.start_time.isoformat() if job.start_time else None,
        "end_time": job.end_time.isoformat() if job.end_time else None,
    }
