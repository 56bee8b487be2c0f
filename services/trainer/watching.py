"""Following the events of a job: Postgres is read from a number on; wakes only say when to look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.auth import Principal
from guidehall.core.errors import NotFound, OutOfRange
from services.trainer.database import Database
from services.trainer.jobs import find
from services.trainer.lifecycle import State
from services.trainer.records import StoredEvent, is_complete
from services.trainer.settings import WatchSettings
from services.trainer.tables import job_events, jobs
from services.trainer.wakes import job_topic

# Connections that watchers may use at a time: however many there are, workers need some, too.
_MOST_READING = 2


class Watching:
    """Streams of events. Those who wait for the same share one read."""

    def __init__(self, database: Database, settings: WatchSettings) -> None:
        self._database = database
        self._settings = settings
        self._reading = asyncio.Semaphore(_MOST_READING)
        # Reads that have not begun, by job and number: what they find is not older than who asked for it.
        self._wanted: dict[tuple[str, int], asyncio.Task[tuple[_There, list[StoredEvent]]]] = {}

    async def events(
        self, principal: Principal, name: str, after_seq: int
    ) -> AsyncGenerator[StoredEvent, None]:
        """Every event after `after_seq` and each new one, up to the last one of a job that has ended.

        Raises:
            NotFound: the caller sees no such job.
            OutOfRange: the job has never had so many events, or the next ones were dropped (EVENTS_DROPPED,
                with the first that is kept as `first_seq`).
            Unavailable: the database is away, or this server is about to stop: go on from the last number.
        """
        wakes = self._database.wakes
        async with self._reading, self._database.statements() as connection:
            job = await find(connection, principal, name)
        if not 0 <= after_seq <= job.last_seq:
            raise OutOfRange(f"after_seq: got {after_seq}; the job has {job.last_seq} events")
        with wakes.listening(job_topic(job.id)) as ear:
            while True:
                ear.clear()
                there, found = await self._look(name, job.id, after_seq)
                for event in found:
                    yield event
                    after_seq = event.seq
                if after_seq < there.last_seq:
                    continue
                if there.complete:
                    return
                wakes.require_open()
                await ear.listen(self._settings.recheck_seconds)

    async def _look(self, name: str, job_id: str, after_seq: int) -> tuple[_There, list[StoredEvent]]:
        """How far the job is, then its events: all that are counted, if the page is long enough."""
        key = job_id, after_seq
        if key not in self._wanted:
            self._wanted[key] = asyncio.create_task(self._read(name, job_id, after_seq))
        # One who hangs up ends nobody else's.
        return await asyncio.shield(self._wanted[key])

    async def _read(self, name: str, job_id: str, after_seq: int) -> tuple[_There, list[StoredEvent]]:
        async with self._reading:
            del self._wanted[job_id, after_seq]
            return await self._fetch(name, job_id, after_seq)

    async def _fetch(self, name: str, job_id: str, after_seq: int) -> tuple[_There, list[StoredEvent]]:
        async with self._database.statements() as connection:
            there = await _progress(connection, name, job_id)
            if there.last_seq <= after_seq:
                return there, []
            statement = (
                select(job_events.c.seq, job_events.c.time, job_events.c.kind, job_events.c.payload)
                .where(job_events.c.job_id == job_id, job_events.c.seq > after_seq)
                .order_by(job_events.c.seq)
                .limit(self._settings.page)
            )
            found = [StoredEvent(*row) for row in await connection.execute(statement)]
            if not found or found[0].seq != after_seq + 1:
                # Looked at again: they may have been dropped just now.
                raise _dropped(await _progress(connection, name, job_id), after_seq)
            return there, found


@dataclass(frozen=True)
class _There:
    """How far a job is."""

    first_seq: int
    last_seq: int
    # Whether no event can follow.
    complete: bool


async def _progress(connection: AsyncConnection, name: str, job_id: str) -> _There:
    """How far the job of a watcher is who may see it.

    Raises:
        NotFound: it was deleted meanwhile.
    """
    columns = select(jobs.c.state, jobs.c.result, jobs.c.first_seq, jobs.c.last_seq)
    row = (await connection.execute(columns.where(jobs.c.id == job_id))).first()
    if row is None:
        raise NotFound.named(name)
    return _There(row.first_seq, row.last_seq, is_complete(State(row.state), row.result))


def _dropped(there: _There, after_seq: int) -> OutOfRange:
    return OutOfRange(
        f"after_seq: got {after_seq}; the events before {there.first_seq} have been dropped",
        reason="EVENTS_DROPPED",
        metadata={"first_seq": str(there.first_seq)},
    )
