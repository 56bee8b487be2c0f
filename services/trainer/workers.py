"""Workers and their credentials: who may ask for jobs of a pool, and who does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, insert, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal, TokenIssuer
from guidehall.core.errors import InvalidArgument, NotFound, Unauthenticated
from services.trainer.database import Database
from services.trainer.documents import Document
from services.trainer.journal import seconds
from services.trainer.lifecycle import HELD
from services.trainer.records import Worker
from services.trainer.settings import LeaseSettings
from services.trainer.tables import jobs, worker_credentials, workers

_HELD = jobs.c.state.in_([state.value for state in HELD])


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


@dataclass(frozen=True)
class Credential:
    """What workers of a pool prove themselves with."""

    id: str
    token: str


async def enrol(
    database: Database, issuer: TokenIssuer, pool: str, ttl_seconds: float, note: str
) -> Credential:
    """Makes a credential for workers of a pool; only its id is kept."""
    credential_id = str(uuid.uuid4())
    row = {
        "id": credential_id,
        "pool": pool,
        "note": note,
        "expire_time": func.now() + seconds(ttl_seconds),
    }
    async with database.unit() as unit:
        await unit.connection.execute(insert(worker_credentials).values(row))
    token = issuer.mint(f"pools/{pool}", "worker", ttl_seconds=ttl_seconds, pool=pool, jti=credential_id)
    return Credential(credential_id, token)


async def revoke(database: Database, credential_id: str) -> None:
    """Ends a credential; harmless to repeat.

    Raises:
        NotFound: there is none of this id.
    """
    try:
        known = worker_credentials.c.id == str(uuid.UUID(credential_id))
    except ValueError:
        raise InvalidArgument.field("credential", credential_id, "the id of a credential") from None
    ended = func.coalesce(worker_credentials.c.revoke_time, func.now())
    async with database.unit() as unit:
        found = await unit.connection.execute(
            update(worker_credentials).where(known).values(revoke_time=ended)
        )
    if not found.rowcount:
        raise NotFound(f"there is no credential {credential_id}")


async def enrolled_pools(connection: AsyncConnection) -> set[str]:
    """Pools for whose workers there is a credential."""
    statement = select(worker_credentials.c.pool).distinct().where(worker_credentials.c.revoke_time.is_(None))
    return set((await connection.execute(statement)).scalars())


async def require_credential(connection: AsyncConnection, principal: Principal) -> None:
    """Refuses a worker whose credential was revoked, or is none of ours.

    Raises:
        Unauthenticated: it was.
    """
    statement = select(worker_credentials.c.id).where(
        worker_credentials.c.id == principal.credential_id,
        worker_credentials.c.pool == principal.pool,
        worker_credentials.c.revoke_time.is_(None),
    )
    if (await connection.execute(statement)).first() is None:
        raise Unauthenticated("the worker's credential does not hold any more", reason="CREDENTIAL_REVOKED")


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
                statement = update(workers).where(self._own(principal, earlier)).values(values)
                row = (await unit.connection.execute(statement.returning(*workers.c))).mappings().first()
            if row is None:
                new = insert(workers).values(values | {"id": str(uuid.uuid4())}).returning(*workers.c)
                row = (await unit.connection.execute(new)).mappings().one()
        return _worker(row)

    async def get(self, connection: AsyncConnection, worker_id: str) -> Worker:
        """A worker that is known to be there."""
        return _worker((await connection.execute(_BY_ID, {"worker_id": worker_id})).mappings().one())

    async def find(self, connection: AsyncConnection, principal: Principal, name: str) -> Worker:
        """The caller's own worker.

        Raises:
            Unauthenticated: the credential was revoked.
            NotFound: the worker has to register.
        """
        holds = (worker_credentials.c.id == workers.c.credential_id) & worker_credentials.c.revoke_time.is_(
            None
        )
        statement = select(workers).join(worker_credentials, holds).where(self._own(principal, name))
        row = (await connection.execute(statement)).mappings().first()
        if row is None:
            await require_credential(connection, principal)
            raise NotFound(f"{name} is not registered", reason="WORKER_UNKNOWN", metadata={"resource": name})
        return _worker(row)

    @staticmethod
    def _own(principal: Principal, name: str) -> Any:
        ids = names.WORKER.parse(name, "worker")
        try:
            worker_id = str(uuid.UUID(ids["worker"]))
        except ValueError:
            raise InvalidArgument.field("worker", name, "a name that Register gave") from None
        return (
            (workers.c.id == worker_id)
            & (workers.c.pool == ids["pool"])
            & (workers.c.credential_id == principal.credential_id)
        )

    async def page(self, pool: str, after: Sequence[str] | None, size: int) -> list[Worker]:
        """Workers heard of lately, by pool and id, beginning after (pool, id)."""
        statement = (
            select(workers, self._lost.label("lost"), jobs.c.project, jobs.c.id.label("job_id"))
            .outerjoin(jobs, (jobs.c.worker_id == workers.c.id) & _HELD)
            .where(workers.c.last_seen_time > func.now() - seconds(self._settings.forget_seconds))
            .order_by(workers.c.pool, workers.c.id)
            .limit(size)
        )
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

    async def pools(self, after: str, size: int) -> list[Pool]:
        """Pools that have jobs to do or workers, by name, beginning after `after`."""
        values = {"lost_seconds": self._settings.seconds, "after": after, "size": size}
        async with self._database.statements() as connection:
            rows = await connection.execute(_POOLS, values)
            return [Pool(**row) for row in rows.mappings()]

    async def live_by_pipeline(self) -> Mapping[tuple[str, str], int]:
        """How many live workers offer each (name, version) of a pipeline."""
        async with self._database.statements() as connection:
            rows = await connection.execute(_OFFERS, {"lost_seconds": self._settings.seconds})
            return {(row.name, row.version): row.live for row in rows}


_BY_ID = select(workers).where(workers.c.id == bindparam("worker_id"))
_POOLS = text(
    """
    WITH waiting AS (
        SELECT pool,
            count(*) FILTER (WHERE state = 'QUEUED') AS queued,
            count(*) FILTER (WHERE state IN ('LEASED', 'RUNNING')) AS running,
            count(*) FILTER (WHERE state = 'PAUSED') AS paused,
            extract(epoch FROM now() - min(create_time) FILTER (WHERE state = 'QUEUED')) AS oldest
        FROM trainer.jobs WHERE end_reason IS NULL GROUP BY pool
    ), working AS (
        SELECT w.pool, count(*) AS live, count(*) FILTER (WHERE j.id IS NULL) AS idle
        FROM trainer.workers w
        LEFT JOIN trainer.jobs j ON j.worker_id = w.id AND j.state IN ('LEASED', 'RUNNING')
        WHERE w.last_seen_time >= now() - make_interval(secs => :lost_seconds) GROUP BY w.pool
    )
    SELECT pool AS name, coalesce(queued, 0) AS queued, coalesce(running, 0) AS running,
        coalesce(paused, 0) AS paused, coalesce(live, 0) AS live_workers, coalesce(idle, 0) AS idle_workers,
        coalesce(oldest, 0)::float8 AS oldest_wait_seconds
    FROM waiting FULL JOIN working USING (pool)
    WHERE pool > :after ORDER BY pool LIMIT :size
    """
)
_OFFERS = text(
    """
    SELECT offer ->> 0 AS name, offer ->> 1 AS version, count(*) AS live
    FROM trainer.workers, jsonb_array_elements(pipelines) AS offer
    WHERE last_seen_time >= now() - make_interval(secs => :lost_seconds) GROUP BY 1, 2
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
