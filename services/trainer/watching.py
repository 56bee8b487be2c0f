"""Following the events of a job: Postgres is read from a number on; wakes only say when to look."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sqlalchemy import select

from guidehall.core.auth import Principal
from guidehall.core.errors import OutOfRange
from services.trainer.database import Database
from services.trainer.jobs import find
from services.trainer.lifecycle import FINAL, State
from services.trainer.records import Job, StoredEvent
from services.trainer.settings import WatchSettings
from services.trainer.tables import job_events
from services.trainer.wakes import job_topic


class Watching:
    """Streams of events."""

    def __init__(self, database: Database, settings: WatchSettings) -> None:
        self._database = database
        self._settings = settings

    async def events(self, principal: Principal, name: str, after_seq: int) -> AsyncIterator[StoredEvent]:
        """Every event after `after_seq` and each new one, up to the last one of a job that has ended.

        Raises:
            NotFound: the caller sees no such job.
            OutOfRange: the job has never had so many events.
            Unavailable: the database is away, or this server is about to stop: go on from the last number.
        """
        wakes = self._database.wakes
        async with self._database.read() as connection:
            job = await find(connection, principal, name)
        if not 0 <= after_seq <= job.last_seq:
            raise OutOfRange(f"after_seq: got {after_seq}; the job has {job.last_seq} events")
        with wakes.listening(job_topic(job.id)) as ear:
            while True:
                ear.clear()
                job, found = await self._look(principal, name, after_seq)
                for event in found:
                    yield event
                    after_seq = event.seq
                if after_seq < job.last_seq:
                    continue
                if _is_complete(job):
                    return
                wakes.require_open()
                await ear.listen(self._settings.recheck_seconds)

    async def _look(self, principal: Principal, name: str, after_seq: int) -> tuple[Job, list[StoredEvent]]:
        """The job, then its events: whatever the job counts is among them, if the page is long enough."""
        async with self._database.read() as connection:
            job = await find(connection, principal, name)
            if job.last_seq <= after_seq:
                return job, []
            statement = (
                select(job_events.c.seq, job_events.c.time, job_events.c.kind, job_events.c.payload)
                .where(job_events.c.job_id == job.id, job_events.c.seq > after_seq)
                .order_by(job_events.c.seq)
                .limit(self._settings.page)
            )
            rows = await connection.execute(statement)
            return job, [StoredEvent(*row) for row in rows]


def _is_complete(job: Job) -> bool:
    """Whether no event can follow: a job that succeeded has one more when its result can be read."""
    return job.state in FINAL and (job.state is not State.SUCCEEDED or job.result is not None)
