"""Where jobs stand: their place in the queue, and when they will start and end.

The place is the number of jobs that will be leased before, as things are now: if what runs goes on running,
and nothing is submitted, cancelled or delayed. Short queues are looked at anew for each answer. A long one is
remembered for a moment; a job that came in meanwhile is put where it belongs among those remembered.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import ARRAY, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.errors import Unavailable
from services.trainer.checkpoints import newest_checkpoints
from services.trainer.database import Database
from services.trainer.documents import Document
from services.trainer.estimates import (
    MOST_PLAYED,
    Durations,
    Finished,
    Forecast,
    Interval,
    Running,
    Sizes,
    Waiting,
    sizes_in,
)
from services.trainer.lifecycle import HELD, State
from services.trainer.records import Checkpoint, Job
from services.trainer.scheduler import Claim, Order
from services.trainer.settings import TrainerSettings

# How stale an answer about a long queue or durations may be: less than anybody sees, more than it costs.
_SHORT_QUEUE = 200
_REMEMBER_SECONDS = 2.0
_HISTORY_SECONDS = 5.0
# Of each pipeline, the newest.
_HISTORY_JOBS = 100
# Fewer of a pool's own than this, and those of other pools count too.
_LEAST_OWN_HISTORY = 3
_MOST_SIZES_KEPT = 20_000
_MAY_BE_RETRIED = frozenset({State.FAILED, State.CANCELLED})


@dataclass(frozen=True)
class Seen:
    """A job and where it stands.

    Attributes:
        queue_position: how many will be leased before it; -1 when it is not queued.
        start: when it will start, while queued.
        end: when it will end, while queued or running. Either is None where nothing is known.
        checkpoint: its newest that is kept.
        latest_retry: name of the newest job that is it once more, if it failed or was cancelled.
    """

    job: Job
    queue_position: int
    start: Interval | None = None
    end: Interval | None = None
    checkpoint: Checkpoint | None = None
    latest_retry: str = ""


@dataclass(frozen=True)
class _Queue:
    """A pool's queue as it was at `time`, by the monotonic clock."""

    time: float
    order: Order
    places: Mapping[str, int]
    # Of those that wait; and all that occur, also among those that run.
    pipelines: Mapping[str, str]
    every_pipeline: frozenset[str]

    def position(self, job: Job) -> int:
        """How many of those remembered come before a queued job."""
        if job.id in self.places:
            return self.places[job.id]
        claim = Claim(job.id, job.owner, job.group_name, job.queue_rank)
        before = bisect_left(self.order.ranks.get(job.owner, []), job.queue_rank.timestamp())
        return bisect_left(self.order.turns, self.order.turn(claim, before))


@dataclass(frozen=True)
class _Outlook:
    """What is expected of a pool, made at `time`, by the monotonic clock."""

    time: float
    forecast: Forecast
    # When the present attempt at each held job began.
    began: Mapping[str, datetime]


class Queues:
    """Looks at the queues of all pools."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._queues: dict[str, _Queue] = {}
        self._outlooks: dict[str, _Outlook] = {}
        self._history: dict[str, tuple[float, list[tuple[str, Finished]]]] = {}
        self._sizes: dict[str, Sizes] = {}
        self._looking: dict[str, asyncio.Lock] = {}

    async def see(self, connection: AsyncConnection, job: Job) -> Seen:
        """One job and where it stands."""
        return (await self.see_all(connection, [job]))[0]

    async def see_stored(self, database: Database, stored: Sequence[Job]) -> list[Seen]:
        """Jobs that were just changed: they are also when it cannot be told where they stand."""
        try:
            async with database.statements() as connection:
                return await self.see_all(connection, stored)
        except Unavailable:
            return [Seen(job, -1) for job in stored]

    async def see_all(self, connection: AsyncConnection, listed: Sequence[Job]) -> list[Seen]:
        """Jobs and where they stand, in the order given."""
        seen = {job.id: Seen(job, -1) for job in listed}
        pools: dict[str, list[Job]] = {}
        for job in listed:
            if job.state is State.QUEUED or job.state in HELD:
                pools.setdefault(job.pool, []).append(job)
        for pool, jobs in pools.items():
            # Many who look at a time need not all do the work.
            async with self._looking.setdefault(pool, asyncio.Lock()):
                queue = await self._queue(connection, pool)
                outlook = await self._outlook(connection, pool, queue)
            seen |= {item.job.id: item for item in self._stand(queue, outlook, jobs)}
        kept = await newest_checkpoints(connection, [job.id for job in listed if job.lease_epoch])
        retries = await _latest_retries(connection, [job for job in listed if job.state in _MAY_BE_RETRIED])
        return [
            replace(seen[job.id], checkpoint=kept.get(job.id), latest_retry=retries.get(job.id, ""))
            for job in listed
        ]

    def _stand(self, queue: _Queue, outlook: _Outlook, jobs: Sequence[Job]) -> Iterable[Seen]:
        now = datetime.now(UTC)
        queued = [job for job in jobs if job.state is State.QUEUED]
        waiting = [Waiting(job.pipeline, self._sizes_of(job), queue.position(job)) for job in queued]
        for job, told, times in zip(queued, waiting, outlook.forecast.of_waiting(waiting, now), strict=True):
            start, end = times or (None, None)
            yield Seen(job, told.position, start, end)
        held = [job for job in jobs if job.state in HELD]
        running = [
            Running(
                job.pipeline,
                self._sizes_of(job),
                (now - outlook.began.get(job.id, job.update_time)).total_seconds(),
                _fraction(job.progress),
            )
            for job in held
        ]
        for job, ends in zip(held, outlook.forecast.of_running(running, now), strict=True):
            yield Seen(job, -1, None, ends)

    async def _queue(self, connection: AsyncConnection, pool: str) -> _Queue:
        known = self._queues.get(pool)
        now = time.monotonic()
        if known is not None and len(known.places) > _SHORT_QUEUE and now - known.time < _REMEMBER_SECONDS:
            return known
        rows = (await connection.execute(_ACTIVE, {"pool": pool})).all()
        queued = [row for row in rows if row.state == State.QUEUED.value]
        order = Order(
            [Claim(str(row.id), row.owner, row.group_name, row.queue_rank) for row in queued],
            [(row.owner, row.group_name) for row in rows if row.state != State.QUEUED.value],
            self._settings.pool(pool),
            self._settings.jobs.share_seconds,
        )
        places = {turn[-1]: place for place, turn in enumerate(order.turns)}
        pipelines = {str(row.id): row.pipeline for row in queued}
        queue = _Queue(now, order, places, pipelines, frozenset(row.pipeline for row in rows))
        self._queues[pool] = queue
        return queue

    async def _outlook(self, connection: AsyncConnection, pool: str, queue: _Queue) -> _Outlook:
        known = self._outlooks.get(pool)
        now = time.monotonic()
        if known is not None and now - known.time < _REMEMBER_SECONDS:
            return known
        finished = await self._finished(connection, pool, sorted(queue.every_pipeline))
        if not finished:
            return _Outlook(now, Forecast(Durations([]), [], 0, []), {})
        values = {"pool": pool, "lost_seconds": self._settings.lease.seconds}
        workers = (await connection.execute(_WORKERS, values)).scalar_one()
        held = (await connection.execute(_HELD, {"pool": pool})).all()
        running = [
            Running(
                row.pipeline,
                self._sizes_of_document(row.params_digest, row.params),
                row.elapsed,
                _fraction(row.progress),
            )
            for row in held
        ]
        ids = [turn[-1] for turn in queue.order.turns]
        sizes = await self._queued_sizes(connection, ids[:MOST_PLAYED])
        in_order = [(queue.pipelines[job_id], sizes.get(job_id, {})) for job_id in ids]
        forecast = await asyncio.to_thread(
            lambda: Forecast(Durations(finished), running, int(workers), in_order)
        )
        outlook = _Outlook(now, forecast, {str(row.id): row.began for row in held})
        self._outlooks[pool] = outlook
        return outlook

    async def _queued_sizes(self, connection: AsyncConnection, ids: Sequence[str]) -> dict[str, Sizes]:
        """Sizes of queued jobs; the parameters of one that is known are not read again."""
        unknown = [job_id for job_id in ids if job_id not in self._sizes]
        if unknown:
            for row in await connection.execute(_PARAMS, {"ids": unknown}):
                self._keep(str(row.id), sizes_in(row.params))
        return {job_id: self._sizes[job_id] for job_id in ids if job_id in self._sizes}

    def _sizes_of(self, job: Job) -> Sizes:
        return self._sizes_of_document(job.params_digest, job.params)

    def _sizes_of_document(self, digest: str, params: Document) -> Sizes:
        if digest not in self._sizes:
            self._keep(digest, sizes_in(params))
        return self._sizes[digest]

    def _keep(self, key: str, sizes: Sizes) -> None:
        if len(self._sizes) >= _MOST_SIZES_KEPT:
            self._sizes.clear()
        self._sizes[key] = sizes

    async def _finished(
        self, connection: AsyncConnection, pool: str, pipelines: Sequence[str]
    ) -> list[Finished]:
        """What is known of some pipelines, from this pool where it has enough of it."""
        now = time.monotonic()
        stale = [name for name in pipelines if self._history.get(name, (0.0, []))[0] <= now]
        if stale:
            fresh: dict[str, list[tuple[str, Finished]]] = {name: [] for name in stale}
            values = {"pipelines": stale, "most": _HISTORY_JOBS}
            for row in await connection.execute(_FINISHED, values):
                sizes = self._sizes_of_document(row.params_digest, row.params)
                fresh[row.pipeline].append((row.pool, Finished(row.pipeline, sizes, row.seconds)))
            self._history |= {name: (now + _HISTORY_SECONDS, jobs) for name, jobs in fresh.items()}
        found = []
        for name in pipelines:
            jobs = self._history[name][1]
            own = [job for where, job in jobs if where == pool]
            found += own if len(own) >= _LEAST_OWN_HISTORY else [job for _, job in jobs]
        return found


async def _latest_retries(connection: AsyncConnection, ended: Sequence[Job]) -> dict[str, str]:
    """By the ids of jobs that have ended, the names of the newest that are them once more."""
    if not ended:
        return {}
    rows = await connection.execute(_RETRIES, {"ids": [job.id for job in ended]})
    return {str(row.retried_from): names.JOB.format(project=row.project, job=row.id) for row in rows}


def _fraction(progress: Document | None) -> float:
    """Of the present phase that is done, 0 to 1."""
    if not progress or progress["total"] <= 0:
        return 0.0
    return float(min(1.0, max(0.0, progress["step"] / progress["total"])))


_ACTIVE = text(
    """
    SELECT id, owner, group_name, queue_rank, pipeline, state FROM trainer.jobs
    WHERE pool = :pool AND state IN ('QUEUED', 'LEASED', 'RUNNING') AND end_reason IS NULL
    """
)
_HELD = text(
    """
    SELECT j.id, j.pipeline, j.params_digest, j.params, j.progress,
        coalesce(a.start_time, a.lease_time) AS began,
        extract(epoch FROM now() - coalesce(a.start_time, a.lease_time))::float8 AS elapsed
    FROM trainer.jobs j JOIN trainer.attempts a ON a.job_id = j.id AND a.epoch = j.lease_epoch
    WHERE j.pool = :pool AND j.state IN ('LEASED', 'RUNNING') AND j.end_reason IS NULL
    """
)
_WORKERS = text(
    """
    SELECT count(*) FROM trainer.workers
    WHERE pool = :pool AND last_seen_time >= now() - make_interval(secs => :lost_seconds)
        AND drain_time IS NULL AND quarantine_time IS NULL
    """
)
_PARAMS = text("SELECT id, params FROM trainer.jobs WHERE id = ANY(CAST(:ids AS uuid[]))").bindparams(
    bindparam("ids", type_=ARRAY(Text))
)
_RETRIES = text(
    """
    SELECT DISTINCT ON (retried_from) retried_from, project, id FROM trainer.jobs
    WHERE retried_from = ANY(CAST(:ids AS uuid[])) ORDER BY retried_from, create_time DESC, id DESC
    """
).bindparams(bindparam("ids", type_=ARRAY(Text)))
_FINISHED = text(
    """
    SELECT j.pipeline, j.pool, j.params_digest, j.params, j.seconds
    FROM unnest(:pipelines) AS p(name) CROSS JOIN LATERAL (
        SELECT pipeline, pool, params_digest, params,
            greatest(extract(epoch FROM end_time - start_time)::float8, 0.001) AS seconds
        FROM trainer.jobs
        WHERE pipeline = p.name AND state = 'SUCCEEDED' AND end_reason = 'COMPLETED' AND lease_epoch = 1
            AND start_time IS NOT NULL
        ORDER BY end_time DESC LIMIT :most
    ) AS j
    """
).bindparams(bindparam("pipelines", type_=ARRAY(Text)))
