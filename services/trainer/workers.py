"""Workers: who works on the jobs of a pool, and who is out of service."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, NotFound
from services.trainer.audit import POOLS_SERVICE, WORKER_SERVICE, audit
from services.trainer.credentials import require_credential
from services.trainer.database import Database
from services.trainer.documents import Document
from services.trainer.journal import seconds
from services.trainer.lifecycle import HELD
from services.trainer.records import Worker
from services.trainer.scheduler import LOCK_POOL
from services.trainer.settings import LeaseSettings
from services.trainer.tables import jobs, worker_credentials, workers
from services.trainer.wakes import job_topic, pool_topic

logger = logging.getLogger(__name__)

_HELD = jobs.c.state.in_([state.value for state in HELD])
_IN_SERVICE = workers.c.drain_time.is_(None) & workers.c.quarantine_time.is_(None)


@dataclass(frozen=True)
class Registration:
    """What a worker says of itself."""

    hostname: str
    capabilities: Document
    pipelines: tuple[tuple[str, str], ...]
    software: Mapping[str, str]


@dataclass(frozen=True)
class Pool:
    """A queue and who works on it."""

    name: str
    queued: int
    running: int
    paused: int
    live_workers: int
    idle_workers: int
    oldest_wait_seconds: float
    # Of those that wait, how many could start now.
    due: int = 0


@dataclass(frozen=True)
class Asking:
    """A worker that asks for a job, and whether one is held by it already."""

    worker: Worker
    holds_job: bool


class Workers:
    """The table of workers."""

    def __init__(self, database: Database, settings: LeaseSettings) -> None:
        self._database = database
        self._settings = settings
        self._lost = workers.c.last_seen_time < func.now() - seconds(settings.seconds)

    async def register(self, principal: Principal, pool: str, earlier: str, told: Registration) -> Worker:
        """Makes a worker known, or takes an earlier registration up again.

        Raises:
            InvalidArgument: the pool is not the credential's.
            Unauthenticated: the credential was revoked.
        """
        if pool not in ("", principal.pool):
            raise InvalidArgument.field("pool", pool, f"the credential's own pool, {principal.pool}")
        values = {
            "pool": principal.pool,
            "credential_id": principal.credential_id,
            "hostname": told.hostname,
            "capabilities": told.capabilities,
            "pipelines": [list(offered) for offered in told.pipelines],
            "software": dict(told.software),
            "last_seen_time": func.now(),
        }
        async with self._database.unit() as unit:
            await require_credential(unit.connection, principal)
            row = None
            if earlier:
                statement = update(workers).where(_OWN).values(values).returning(*workers.c)
                again = self._own(principal, earlier)
                row = (await unit.connection.execute(statement, again)).mappings().first()
            if row is None:
                new = insert(workers).values(values | {"id": str(uuid.uuid4())}).returning(*workers.c)
                row = (await unit.connection.execute(new)).mappings().one()
        return _worker(row)

    async def next_in_line(self, connection: AsyncConnection, worker_id: str) -> Worker:
        """A worker that is known to be there and wants a job; its pool is locked."""
        return _worker((await connection.execute(_NEXT_IN_LINE, {"worker_id": worker_id})).mappings().one())

    async def asking(self, connection: AsyncConnection, principal: Principal, name: str) -> Asking:
        """The caller's own worker, which asks for a job; its pool is locked unless it holds one.

        Raises:
            Unauthenticated, NotFound: as `find`.
        """
        row = await self._found(connection, principal, name, _ASKING)
        return Asking(_worker(row), row["holds_job"])

    async def find(self, connection: AsyncConnection, principal: Principal, name: str) -> Worker:
        """The caller's own worker.

        Raises:
            Unauthenticated: the credential was revoked.
            NotFound: the worker has to register.
        """
        return _worker(await self._found(connection, principal, name, _FIND))

    async def _found(
        self, connection: AsyncConnection, principal: Principal, name: str, statement: Select[Any]
    ) -> Mapping[Any, Any]:
        found = await connection.execute(statement, self._own(principal, name))
        row: Mapping[Any, Any] | None = found.mappings().first()
        if row is None:
            await require_credential(connection, principal)
            raise NotFound(f"{name} is not registered", reason="WORKER_UNKNOWN", metadata={"resource": name})
        return row

    @staticmethod
    def _own(principal: Principal, name: str) -> dict[str, Any]:
        """What `_OWN` compares."""
        ids = names.WORKER.parse(name, "worker")
        try:
            worker_id = str(uuid.UUID(ids["worker"]))
        except ValueError:
            raise InvalidArgument.field("worker", name, "a name that Register gave") from None
        return {
            "own_id": worker_id,
            "own_pool": ids["pool"],
            "own_credential_id": principal.credential_id,
        }

    async def page(self, pool: str, after: Sequence[str] | None, size: int) -> list[Worker]:
        """Workers heard of lately, by pool and id, beginning after (pool, id)."""
        statement = self._listed().order_by(workers.c.pool, workers.c.id).limit(size)
        if pool:
            statement = statement.where(workers.c.pool == pool)
        if after is not None:
            statement = statement.where(
                tuple_(workers.c.pool, workers.c.id)
                > tuple_(*after, types=(workers.c.pool.type, workers.c.id.type))
            )
        async with self._database.statements() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [_worker(row) for row in rows]

    def _listed(self) -> Any:
        """Workers that are listed, with what they run."""
        return (
            select(workers, self._lost.label("lost"), jobs.c.project, jobs.c.id.label("job_id"))
            .outerjoin(jobs, (jobs.c.worker_id == workers.c.id) & _HELD)
            .where(workers.c.last_seen_time > func.now() - seconds(self._settings.forget_seconds))
        )

    async def drain(self, principal: Principal, name: str, release_job: bool) -> Worker:
        """Takes a worker out of service after its job, or before with `release_job`; harmless to repeat.

        Raises:
            NotFound: no such worker is listed.
        """
        drained = {
            "drain_time": func.coalesce(workers.c.drain_time, func.now()),
            "drain_releases_job": release_job,
        }
        return await self._change(principal, "DrainWorker", name, drained)

    async def reinstate(self, principal: Principal, name: str) -> Worker:
        """Puts a drained or quarantined worker back into service; harmless to repeat.

        Raises:
            NotFound: no such worker is listed.
        """
        back = {
            "drain_time": None,
            "drain_releases_job": False,
            "quarantine_time": None,
            "quarantine_reason": "",
        }
        return await self._change(principal, "ReinstateWorker", name, back)

    async def _change(self, principal: Principal, method: str, name: str, values: dict[str, Any]) -> Worker:
        """What an operator does to a worker."""
        ids = names.WORKER.parse(name)
        missing = NotFound.named(name)
        try:
            known = (workers.c.id == str(uuid.UUID(ids["worker"]))) & (workers.c.pool == ids["pool"])
        except ValueError:
            raise missing from None
        async with self._database.unit() as unit:
            await unit.connection.execute(update(workers).where(known).values(values))
            row = (await unit.connection.execute(self._listed().where(known))).mappings().first()
            if row is None:
                raise missing
            audit(unit, principal, method, name, service=POOLS_SERVICE)
            # A request of its that is held, and the session of its job, look again.
            unit.wake(pool_topic(row["pool"]))
            if row["job_id"]:
                unit.wake(job_topic(row["job_id"]))
        return _worker(row)

    async def quarantine(self, principal: Principal, name: str, reason: str) -> None:
        """A worker takes itself out of service; the first reason stays when it repeats that.

        Raises:
            NotFound: the worker has to register.
            Unauthenticated: its credential was revoked.
        """
        async with self._database.unit() as unit:
            worker = await self.find(unit.connection, principal, name)
            if worker.quarantine_time is not None:
                return
            values = {"quarantine_time": func.now(), "quarantine_reason": reason}
            await unit.connection.execute(update(workers).where(workers.c.id == worker.id).values(values))
            audit(unit, principal, "Quarantine", name, service=WORKER_SERVICE)
        logger.warning("quarantined: %s: %s", name, reason)

    async def pools(self, configured: Sequence[str], after: str, size: int, *, name: str = "") -> list[Pool]:
        """Pools that are configured, have jobs to do or workers, by name, beginning after `after`.

        Workers that are out of service do not count. With a name, only the pool of that name.
        """
        values = {
            "lost_seconds": self._settings.seconds,
            "configured": list(configured),
            "after": after,
            "size": size,
            "name": name,
        }
        async with self._database.statements() as connection:
            rows = await connection.execute(_POOLS, values)
            return [Pool(**row) for row in rows.mappings()]

    async def live_pools(self, connection: AsyncConnection) -> set[str]:
        """Pools with a worker that lives and is in service."""
        statement = select(workers.c.pool).distinct().where(~self._lost, _IN_SERVICE)
        return set((await connection.execute(statement)).scalars())

    async def live_by_pipeline(self) -> Mapping[tuple[str, str], int]:
        """How many live workers offer each (name, version) of a pipeline."""
        async with self._database.statements() as connection:
            rows = await connection.execute(_OFFERS, {"lost_seconds": self._settings.seconds})
            return {(row.name, row.version): row.live for row in rows}


# Names of its own: `register` sets columns in the same statement.
_OWN = and_(
    workers.c.id == bindparam("own_id"),
    workers.c.pool == bindparam("own_pool"),
    workers.c.credential_id == bindparam("own_credential_id"),
)
_FIND = (
    select(workers)
    .join(worker_credentials, worker_credentials.c.id == workers.c.credential_id)
    .where(_OWN, worker_credentials.c.revoke_time.is_(None))
)
# Made once, and with all that can be told at once: a statement costs more than what it finds out.
_LOCKED: ColumnElement[Any] = literal_column(LOCK_POOL.format(pool="workers.pool"))
_HOLDS_JOB = exists().where(jobs.c.worker_id == workers.c.id, _HELD)
_NEXT_IN_LINE = select(workers, _LOCKED).where(workers.c.id == bindparam("worker_id"))
_ASKING = _FIND.add_columns(
    _HOLDS_JOB.label("holds_job"), case((~_HOLDS_JOB, cast(_LOCKED, Text))).label("locked")
)
_POOLS = text(
    """
    WITH waiting AS (
        SELECT pool,
            count(*) FILTER (WHERE state = 'QUEUED') AS queued,
            count(*) FILTER (
                WHERE state = 'QUEUED' AND (not_before IS NULL OR not_before <= now())) AS due,
            count(*) FILTER (WHERE state IN ('LEASED', 'RUNNING')) AS running,
            count(*) FILTER (WHERE state = 'PAUSED') AS paused,
            extract(epoch FROM now() - min(create_time) FILTER (WHERE state = 'QUEUED')) AS oldest
        FROM trainer.jobs WHERE end_reason IS NULL GROUP BY pool
    ), working AS (
        SELECT w.pool, count(*) AS live, count(*) FILTER (WHERE j.id IS NULL) AS idle
        FROM trainer.workers w
        LEFT JOIN trainer.jobs j ON j.worker_id = w.id AND j.state IN ('LEASED', 'RUNNING')
        WHERE w.last_seen_time >= now() - make_interval(secs => :lost_seconds)
            AND w.drain_time IS NULL AND w.quarantine_time IS NULL
        GROUP BY w.pool
    ), known AS (
        SELECT pool FROM waiting UNION SELECT pool FROM working UNION SELECT unnest(:configured)
        UNION SELECT pool FROM trainer.workers
        WHERE last_seen_time >= now() - make_interval(secs => :lost_seconds)
    )
    SELECT pool AS name, coalesce(queued, 0) AS queued, coalesce(running, 0) AS running,
        coalesce(paused, 0) AS paused, coalesce(live, 0) AS live_workers, coalesce(idle, 0) AS idle_workers,
        coalesce(oldest, 0)::float8 AS oldest_wait_seconds, coalesce(due, 0) AS due
    FROM known LEFT JOIN waiting USING (pool) LEFT JOIN working USING (pool)
    WHERE pool > :after AND :name IN ('', pool) ORDER BY pool LIMIT :size
    """
).bindparams(bindparam("configured", type_=ARRAY(Text)))
_OFFERS = text(
    """
    SELECT offer ->> 0 AS name, offer ->> 1 AS version, count(*) AS live
    FROM trainer.workers, jsonb_array_elements(pipelines) AS offer
    WHERE last_seen_time >= now() - make_interval(secs => :lost_seconds)
        AND drain_time IS NULL AND quarantine_time IS NULL
    GROUP BY 1, 2
    """
)


def _worker(row: Mapping[Any, Any]) -> Worker:
    return Worker(
        id=row["id"],
        pool=row["pool"],
        hostname=row["hostname"],
        capabilities=row["capabilities"],
        pipelines=tuple((name, version) for name, version in row["pipelines"]),
        software=row["software"],
        register_time=row["register_time"],
        last_seen_time=row["last_seen_time"],
        drain_time=row["drain_time"],
        drain_releases_job=row["drain_releases_job"],
        quarantine_time=row["quarantine_time"],
        quarantine_reason=row["quarantine_reason"],
        lost=bool(row.get("lost")),
        job=names.JOB.format(project=row["project"], job=row["job_id"]) if row.get("job_id") else "",
    )
