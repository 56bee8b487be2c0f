"""Which job comes next.

A job's place in its pool is `queue_rank`, the time of its submission moved back by `ageing_seconds` for each
step of priority. So a job of higher priority goes first among those of about its age, and one of lower
priority that has waited longer by `ageing_seconds` goes before it: nothing waits for ever. A job that goes
back into the queue keeps its place.

Between owners, a job stands back by `share_seconds` for each job that its owner, or somebody else of its
group, already runs in the pool: who has little goes first, and who has waited long enough goes anyway. The
jobs of one owner keep their own order. Whoever runs as many as the pool allows, an owner or a group, gets no
further one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ARRAY, Text, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer.records import Job, Worker
from services.trainer.settings import PoolSettings, TrainerSettings
from services.trainer.tables import jobs

# Numbers of JobPriority.
NORMAL_PRIORITY, HIGHEST_PRIORITY = 2, 3
GROUP_PREFIX = "group:"


def head_start(priority: int, ageing_seconds: float) -> timedelta:
    """How far a job's place is moved back from the time of its submission."""
    return timedelta(seconds=(priority - NORMAL_PRIORITY) * ageing_seconds)


def moved_rank(job: Job, priority: int, ageing_seconds: float) -> datetime:
    """The place of a job that waits when its priority is changed: as if it had had it from the start."""
    gained = head_start(priority, ageing_seconds) - head_start(job.priority, ageing_seconds)
    return job.queue_rank - gained


async def next_job(connection: AsyncConnection, worker: Worker, settings: TrainerSettings) -> Job | None:
    """The first job that `worker` can run and whose owner may have one more, locked.

    The pool must be locked. A job that something else has locked, such as a cancel, is passed over.
    """
    pool = settings.pool(worker.pool)
    memory = worker.capabilities.get("device_memory_bytes") or worker.capabilities.get("memory_bytes") or 0
    values = {
        "pool": worker.pool,
        "offers": [f"{name} {version}" for name, version in worker.pipelines],
        "memory": memory,
        "share_seconds": settings.jobs.share_seconds,
        "owner_cap": pool.max_running_per_owner,
        "group_cap": pool.max_running_per_group,
        "caps": pool.max_running,
    }
    row = (await connection.execute(NEXT_JOB, values)).mappings().first()
    return None if row is None else Job.of(row)


async def lock_pool(connection: AsyncConnection, pool: str) -> None:
    """Makes leases of one pool wait for each other: two could both take the last job that an owner may have.

    A statement before the one that chooses, which must see what the lease before has committed. Comes after
    locks on jobs that are held.
    """
    await connection.execute(_LOCK, {"pool": pool})


LOCK_POOL = "pg_advisory_xact_lock(hashtextextended('guidehall lease ' || {pool}, 0))"
_LOCK = text(f"SELECT {LOCK_POOL.format(pool=':pool')}")
# Owners are found by skipping from one to the next in jobs_owner_queue_idx, and of each only its first jobs
# are looked at: however many wait, few rows are read. Two of each, for the first may be locked by a cancel.
# CASE hides from the planner how few it would expect to meet the conditions: it would rather read all of an
# owner's jobs and sort them.
NEXT_JOB = (
    text(
        """
    WITH RECURSIVE held AS MATERIALIZED (
        SELECT owner, group_name FROM trainer.jobs
        WHERE pool = :pool AND state IN ('LEASED', 'RUNNING') AND end_reason IS NULL
    ), full_groups AS MATERIALIZED (
        SELECT group_name,
            coalesce((CAST(:caps AS jsonb) ->> ('group:' || group_name))::int, :group_cap) AS cap
        FROM held WHERE group_name <> '' GROUP BY group_name
        HAVING count(*) >= coalesce((CAST(:caps AS jsonb) ->> ('group:' || group_name))::int, :group_cap)
    ), owners AS (
        (SELECT owner FROM trainer.jobs WHERE state = 'QUEUED' AND pool = :pool ORDER BY owner LIMIT 1)
        UNION ALL
        SELECT (
            SELECT j.owner FROM trainer.jobs j
            WHERE j.state = 'QUEUED' AND j.pool = :pool AND j.owner > o.owner ORDER BY j.owner LIMIT 1
        ) FROM owners o WHERE o.owner IS NOT NULL
    ), shares AS MATERIALIZED (
        SELECT owner, coalesce((CAST(:caps AS jsonb) ->> owner)::int, :owner_cap) AS cap,
            (SELECT count(*) FROM held WHERE held.owner = owners.owner) AS running
        FROM owners WHERE owner IS NOT NULL
    ), candidates AS MATERIALIZED (
        SELECT first.id, first.queue_rank + make_interval(secs => CAST(:share_seconds AS float8) * (
            shares.running + (
                SELECT count(*) FROM held
                WHERE held.group_name = first.group_name AND first.group_name <> ''
                    AND held.owner <> shares.owner
            )
        )) AS place
        FROM shares CROSS JOIN LATERAL (
            SELECT j.id, j.queue_rank, j.group_name FROM trainer.jobs j
            WHERE j.state = 'QUEUED' AND j.pool = :pool AND j.owner = shares.owner AND CASE
                WHEN (j.not_before IS NULL OR j.not_before <= now())
                    AND (CAST(:memory AS bigint) = 0 OR j.memory_hint_bytes <= CAST(:memory AS bigint))
                    AND j.pipeline || ' ' || j.pipeline_version = ANY(:offers)
                    AND j.group_name <> ALL(ARRAY(SELECT group_name FROM full_groups WHERE cap > 0))
                THEN true ELSE false END
            ORDER BY j.queue_rank, j.id LIMIT 2
        ) AS first
        WHERE shares.cap = 0 OR shares.running < shares.cap
    )
    SELECT j.* FROM candidates JOIN trainer.jobs j ON j.id = candidates.id
    WHERE j.state = 'QUEUED'
    ORDER BY candidates.place, j.queue_rank, j.id LIMIT 1
    FOR UPDATE OF j SKIP LOCKED
    """
    )
    .bindparams(bindparam("offers", type_=ARRAY(Text)), bindparam("caps", type_=JSONB))
    .columns(**{column.name: column.type for column in jobs.c})
)


@dataclass(frozen=True)
class Claim:
    """What decides a queued job's turn."""

    id: str
    owner: str
    group: str
    queue_rank: datetime


# Sorts as leases will go; smaller is sooner.
Turn = tuple[bool, float, float, str]


class Order:
    """The order in which the jobs of a pool will be leased if all that run now go on running.

    Each lease counts against its owner's share and cap for those that follow. That of a group counts as it is
    now. Jobs beyond a cap come after all others.

    Args:
        queued: all that wait in the pool.
        held: (owner, group) of each job that a worker holds.
    """

    def __init__(
        self,
        queued: Iterable[Claim],
        held: Sequence[tuple[str, str]],
        pool: PoolSettings,
        share_seconds: float,
    ) -> None:
        self._pool = pool
        self._share_seconds = share_seconds
        self._owners = Counter(owner for owner, _ in held)
        self._groups = Counter(group for _, group in held if group)
        self._both = Counter(held)
        self.ranks: dict[str, list[float]] = {}
        turns = []
        for claim in sorted(queued, key=lambda claim: (claim.queue_rank, claim.id)):
            own = self.ranks.setdefault(claim.owner, [])
            turns.append(self.turn(claim, len(own)))
            own.append(claim.queue_rank.timestamp())
        self.turns = sorted(turns)

    def turn(self, claim: Claim, before: int) -> Turn:
        """Where a job comes that has `before` jobs of its owner before it."""
        taken = self._owners[claim.owner] + before
        others = self._groups[claim.group] - self._both[claim.owner, claim.group] if claim.group else 0
        rank = claim.queue_rank.timestamp()
        return self._beyond_cap(claim, taken), rank + self._share_seconds * (taken + others), rank, claim.id

    def _beyond_cap(self, claim: Claim, taken: int) -> bool:
        pool = self._pool
        owner_cap = pool.max_running.get(claim.owner, pool.max_running_per_owner)
        group_cap = pool.max_running.get(GROUP_PREFIX + claim.group, pool.max_running_per_group)
        full = claim.group and group_cap and self._groups[claim.group] >= group_cap
        return bool(full or (owner_cap and taken >= owner_cap))
