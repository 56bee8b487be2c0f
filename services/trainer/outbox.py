"""The outbox: what a committed transaction still has to tell others, told at least once.

Rows are claimed for a while (`FOR UPDATE SKIP LOCKED`), so several replicas share the work, and what a dead
one had claimed is told by another. A row that was told goes; one that was not comes again later, and later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import Counter
from sqlalchemy import ARRAY, Text, bindparam, delete, func, select, text, update

from guidehall.core.errors import AppError
from services.trainer.database import Database
from services.trainer.documents import Document
from services.trainer.journal import seconds
from services.trainer.settings import RelaySettings
from services.trainer.tables import outbox
from services.trainer.wakes import outbox_topic

logger = logging.getLogger(__name__)

_TOLD = Counter("guidehall_outbox_told", "Messages told to others", ["kind"])
_FAILED = Counter("guidehall_outbox_failed", "Attempts to tell that failed", ["kind"])

_CLAIM = text(
    """
    UPDATE trainer.outbox SET next_time = now() + make_interval(secs => :claim_seconds), tries = tries + 1
    WHERE id IN (
        SELECT id FROM trainer.outbox WHERE next_time <= now() AND kind = ANY(:kinds)
        ORDER BY next_time, id LIMIT :batch FOR UPDATE SKIP LOCKED)
    RETURNING id, kind, subject, payload, message_id::text, tries, create_time
    """
).bindparams(bindparam("kinds", type_=ARRAY(Text)))


KINDS = ("doorbell", "events", "promote", "discard", "audit")


@dataclass(frozen=True)
class Message:
    """A row of the outbox."""

    id: int
    kind: str
    subject: str
    payload: Document
    message_id: str
    tries: int
    create_time: datetime


# Tells messages of one kind and about one subject; raises AppError when that has to be tried again.
Teller = Callable[[Sequence[Message]], Awaitable[None]]


class Relay:
    """Tells what is in the outbox, of some kinds."""

    def __init__(self, database: Database, tellers: Mapping[str, Teller], settings: RelaySettings) -> None:
        self._database = database
        self._tellers = tellers
        self._settings = settings
        # Kinds that failed last, so that an outage is logged once.
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Tells until the process is about to end, and what is being told then to its end."""
        wakes = self._database.wakes
        at_once = asyncio.Semaphore(self._settings.parallel)
        with wakes.listening(*map(outbox_topic, self._tellers)) as ear:
            async with asyncio.TaskGroup() as tasks:
                while not wakes.closed:
                    ear.clear()
                    try:
                        groups = await self._claim()
                        pause = 0.0 if groups else await self._until_next()
                    except AppError:
                        groups, pause = [], self._settings.idle_seconds
                    telling = [tasks.create_task(self._tell(group, at_once)) for group in groups]
                    if telling:
                        # One that takes long does not hold up what comes after it.
                        await asyncio.wait(telling, timeout=self._settings.patience_seconds)
                    elif pause > 0:
                        await ear.listen(pause)

    async def _claim(self) -> list[list[Message]]:
        """What is due, taken for a while; those of one kind about one subject together, in order."""
        settings = self._settings
        values = {
            "claim_seconds": settings.claim_seconds,
            "kinds": list(self._tellers),
            "batch": settings.batch,
        }
        async with self._database.unit() as unit:
            rows = (await unit.connection.execute(_CLAIM, values)).all()
        groups: dict[tuple[str, str], list[Message]] = {}
        for message in sorted((Message(*row) for row in rows), key=lambda message: message.id):
            groups.setdefault((message.kind, message.subject), []).append(message)
        return list(groups.values())

    async def _until_next(self) -> float:
        """Seconds until something is due, as far as is known now."""
        wait = func.extract("epoch", func.min(outbox.c.next_time) - func.clock_timestamp())
        statement = select(wait).where(outbox.c.kind.in_(list(self._tellers)))
        async with self._database.read() as connection:
            found = (await connection.execute(statement)).scalar_one()
        idle = self._settings.idle_seconds
        return idle if found is None else min(max(float(found), 0.001), idle)

    async def _tell(self, group: Sequence[Message], at_once: asyncio.Semaphore) -> None:
        kind = group[0].kind
        problem = None
        async with at_once:
            try:
                async with asyncio.timeout(self._settings.call_seconds):
                    await self._tellers[kind](group)
            except AppError as error:
                problem = f"{error.code.name}: {error.message}"
            except TimeoutError:
                problem = "took too long"
            except Exception as error:
                # Whatever is wrong with this one, the others have to be told.
                logger.exception("cannot tell a message of kind %s", kind)
                problem = type(error).__name__
        try:
            if problem is None:
                await self._done(group)
            else:
                await self._again(group, problem)
        except AppError:
            logger.debug("the database is away: what was told will be told again when its claim runs out")

    async def _done(self, group: Sequence[Message]) -> None:
        async with self._database.unit() as unit:
            await unit.connection.execute(delete(outbox).where(outbox.c.id.in_([item.id for item in group])))
        kind = group[0].kind
        _TOLD.labels(kind).inc(len(group))
        if kind in self._failing:
            self._failing.remove(kind)
            logger.info("messages of kind %s are told again", kind)

    async def _again(self, group: Sequence[Message], problem: str) -> None:
        settings = self._settings
        tries = max(message.tries for message in group)
        pause = min(settings.retry_first_seconds * 2 ** min(tries - 1, 20), settings.retry_longest_seconds)
        ids = [message.id for message in group]
        later = {"next_time": func.now() + seconds(pause), "last_error": problem}
        async with self._database.unit() as unit:
            await unit.connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(later))
        kind = group[0].kind
        _FAILED.labels(kind).inc(len(group))
        if kind not in self._failing:
            self._failing.add(kind)
            logger.warning("messages of kind %s cannot be told: %s", kind, problem)
