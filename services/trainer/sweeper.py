"""Looks after what nobody reports: leases that ran out, attempts that take too long, lost doorbells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge
from sqlalchemy import delete, func, or_, select, text

from guidehall.core.errors import Aborted, Unavailable
from guidehall.core.faults import fault_point
from services.trainer.database import Database
from services.trainer.journal import Cause, Journal, ring, seconds
from services.trainer.leases import Leases
from services.trainer.lifecycle import HELD, TimedOut
from services.trainer.outbox import KINDS
from services.trainer.records import Job
from services.trainer.retention import drop_old
from services.trainer.settings import TrainerSettings
from services.trainer.tables import jobs, outbox, request_ids
from services.trainer.workers import Workers

logger = logging.getLogger(__name__)

# Pools in which a job waits while a worker idles.
_UNHEARD = text(
    """
    SELECT DISTINCT w.pool FROM trainer.workers w
    WHERE w.last_seen_time >= now() - make_interval(secs => :lost_seconds)
        AND w.drain_time IS NULL AND w.quarantine_time IS NULL
        AND NOT EXISTS (
            SELECT FROM trainer.jobs WHERE worker_id = w.id AND state IN ('LEASED', 'RUNNING'))
        AND EXISTS (
            SELECT FROM trainer.jobs WHERE pool = w.pool AND state = 'QUEUED'
                AND coalesce(not_before, update_time) < now() - make_interval(secs => :wait_seconds))
    """
)
_JOBS = Gauge("guidehall_jobs", "Jobs that have not ended", ["pool", "state"])
_OLDEST = Gauge("guidehall_queue_oldest_seconds", "How long the oldest queued job has waited", ["pool"])
_WORKERS = Gauge("guidehall_workers", "Workers heard of lately", ["pool", "state"])
_BACKLOG = Gauge("guidehall_outbox_messages", "Messages still to be told", ["kind"])
_MOST_POOLS = 1000
# Any number that no other use of advisory locks in this database has.
_RING_LOCK = 0x67686C72


class Sweeper:
    """Runs in every replica; what one has locked the others pass over."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        leases: Leases,
        workers: Workers,
        settings: TrainerSettings,
        on_database: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._database = database
        self._journal = journal
        self._leases = leases
        self._workers = workers
        self._settings = settings
        self._on_database = on_database

    async def run(self) -> None:
        """Sweeps until the process is about to end, and tells each time whether the database was there."""
        loop = asyncio.get_running_loop()
        sweep = self._settings.sweep
        next_ring = loop.time() + sweep.ring_again_seconds
        while not self._database.wakes.closed:
            try:
                await self.expire()
                if loop.time() >= next_ring:
                    next_ring = loop.time() + sweep.ring_again_seconds
                    await self.ring_again()
                    await self.purge()
                    await drop_old(self._database, self._settings)
                    await self.measure()
                await self._on_database(True)
            except Aborted:
                logger.debug("swept at the same time as another; the next sweep finds what is left")
            except Unavailable:
                await self._on_database(False)
            await asyncio.sleep(sweep.interval_seconds)

    async def expire(self) -> None:
        """Takes jobs from workers that are silent, and ends attempts that take too long."""
        for _ in range(self._settings.sweep.batch):
            async with self._database.unit() as unit:
                overdue = or_(jobs.c.lease_until < func.now(), jobs.c.timeout_at < func.now())
                statement = (
                    select(jobs, (jobs.c.timeout_at < func.now()).label("timed_out"))
                    .where(jobs.c.state.in_([state.value for state in HELD]), overdue)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                )
                row = (await unit.connection.execute(statement)).mappings().first()
                if row is None:
                    return
                job = Job.of(row)
                if row["timed_out"]:
                    error = {
                        "code": "DEADLINE_EXCEEDED",
                        "reason": "TIMEOUT",
                        "message": f"the attempt took longer than timeout_seconds, {job.timeout_seconds}",
                    }
                    await self._journal.apply(unit, job, TimedOut(job.lease_epoch), Cause(error=error))
                else:
                    logger.warning("lease lost: %s at epoch %d", job.name, job.lease_epoch)
                    await self._leases.expire(unit, job)
                fault_point("trainer.expire.stored")
            fault_point("trainer.expire.committed")

    async def ring_again(self) -> None:
        """Rings for jobs that wait although workers idle: their doorbells got lost."""
        values = {
            "wait_seconds": self._settings.sweep.ring_again_seconds,
            "lost_seconds": self._settings.lease.seconds,
        }
        async with self._database.unit() as unit:
            mine = await unit.connection.execute(select(func.pg_try_advisory_xact_lock(_RING_LOCK)))
            if not mine.scalar_one():
                return
            for pool in (await unit.connection.execute(_UNHEARD, values)).scalars():
                ring(unit, pool)

    async def measure(self) -> None:
        """Sets the gauges of what waits."""
        for gauge in (_JOBS, _OLDEST, _WORKERS):
            # Of pools that are not any more.
            gauge.clear()
        for pool in await self._workers.pools(self._settings.named_pools, "", _MOST_POOLS):
            _JOBS.labels(pool.name, "queued").set(pool.queued)
            _JOBS.labels(pool.name, "running").set(pool.running)
            _JOBS.labels(pool.name, "paused").set(pool.paused)
            _OLDEST.labels(pool.name).set(pool.oldest_wait_seconds)
            _WORKERS.labels(pool.name, "live").set(pool.live_workers)
            _WORKERS.labels(pool.name, "idle").set(pool.idle_workers)
        counts = select(outbox.c.kind, func.count().label("left")).group_by(outbox.c.kind)
        async with self._database.statements() as connection:
            rows = await connection.execute(counts)
            backlog = {row.kind: row.left for row in rows}
        for kind in KINDS:
            _BACKLOG.labels(kind).set(backlog.get(kind, 0))

    async def purge(self) -> None:
        """Drops what has no use any more: old request ids, and what the bus could not be told for long."""
        requests = request_ids.c.create_time < func.now() - seconds(
            self._settings.jobs.request_id_keep_seconds
        )
        # The database holds the events, and the sweep rings again for jobs that wait.
        stale = outbox.c.create_time < func.now() - seconds(self._settings.relay.events_keep_seconds)
        of_bus = outbox.c.kind.in_(["events", "doorbell"]) & (outbox.c.tries > 0)
        async with self._database.unit() as unit:
            await unit.connection.execute(delete(request_ids).where(requests))
            await unit.connection.execute(delete(outbox).where(stale, of_bus))
