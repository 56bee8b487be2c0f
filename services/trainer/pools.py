"""Which pool a job goes to, and whether its owner may have one more there."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.auth import Principal
from guidehall.core.devices import at_or_below, device_class
from guidehall.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Violation
from services.trainer.credentials import enrolled_pools
from services.trainer.database import Database
from services.trainer.lifecycle import State
from services.trainer.settings import PoolSettings, TrainerSettings
from services.trainer.tables import jobs
from services.trainer.workers import Workers


class Pools:
    """The pools that jobs may be submitted to."""

    def __init__(self, database: Database, workers: Workers, settings: TrainerSettings) -> None:
        self._database = database
        self._workers = workers
        self._settings = settings
        # Asked for again only when another is named.
        self._known = set(settings.named_pools)

    async def choose(self, pool: str, asked_class: str, *, gpu_only: bool) -> tuple[str, str]:
        """The pool for a job, and the device class that was asked for.

        Args:
            pool: as the submission names it; empty where it does not.
            asked_class: a device class instead; empty for none.
            gpu_only: the pipeline cannot do without a GPU.

        Raises:
            InvalidArgument: no such pool or class, or both are given.
            FailedPrecondition: no pool here is of this class or of a lower tier.
        """
        if not asked_class:
            return await self._named(pool), ""
        if pool:
            raise InvalidArgument.field("device_class", asked_class, "empty where a pool is named")
        asked = device_class(asked_class)
        async with self._database.statements() as connection:
            known = self._known | await enrolled_pools(connection)
            able = await self._workers.live_pools(connection)
        able |= {name for name in known if self._settings.pool(name).launcher.kind != "none"}
        classes = {name: self._settings.device_class(name) for name in known}
        chosen = choose_pool(at_or_below(asked, gpu_only=gpu_only), classes, able)
        if chosen is None:
            there = ", ".join(f"{name} ({kind})" for name, kind in sorted(classes.items()) if kind) or "none"
            lower = "a lower tier with a GPU" if gpu_only else "a lower tier"
            problem = f"no pool is of class {asked} or of {lower}; pools with a class: {there}"
            raise FailedPrecondition(
                f"device_class: {problem}", reason="NO_POOL", violations=[Violation("device_class", problem)]
            )
        return chosen, asked

    async def _named(self, pool: str) -> str:
        if not pool:
            return self._settings.jobs.default_pool
        if pool not in self._known:
            async with self._database.statements() as connection:
                self._known |= await enrolled_pools(connection)
        if pool not in self._known:
            # It would wait for ever.
            raise InvalidArgument.field("pool", pool, f"one of {', '.join(sorted(self._known))}")
        return pool

    async def require_room(
        self, connection: AsyncConnection, principal: Principal, owner: str, pool: str, count: int = 1
    ) -> None:
        """Refuses jobs beyond what an owner may have waiting in a pool.

        Args:
            connection: of the transaction that stores them.
            principal: who submits.
            owner: whose jobs they will be.
            pool: where they will wait.
            count: how many they are.

        Raises:
            ResourceExhausted: they would be too many.
        """
        most = most_queued(self._settings.pool(pool), principal, owner)
        if not most:
            return
        # Nobody counts while another adds to what is counted: locked a statement before the one that counts.
        await connection.execute(_LOCK_ROOM, {"place": f"{pool} {owner}"})
        waiting = (jobs.c.state == State.QUEUED.value) & (jobs.c.pool == pool) & (jobs.c.owner == owner)
        # Counted no further than it matters.
        some = select(jobs.c.id).where(waiting).limit(most).subquery()
        queued = (await connection.execute(select(func.count()).select_from(some))).scalar_one()
        if queued + count > most:
            whose = owner or "guests"
            problem = f"{whose} may have {most} jobs waiting in pool {pool}, and has {queued}"
            raise ResourceExhausted(
                f"quota: {problem}",
                reason="QUEUE_QUOTA",
                metadata={"pool": pool, "limit": str(most), "queued": str(queued)},
                violations=[Violation(f"owner:{owner}", problem)],
            )


_LOCK_ROOM = text("SELECT pg_advisory_xact_lock(hashtextextended('guidehall room ' || :place, 0))")


def choose_pool(classes: Collection[str], pools: Mapping[str, str], able: Collection[str]) -> str | None:
    """The pool of the first class that has workers, or can start them; else the first one that there is.

    Args:
        classes: acceptable ones, the best first.
        pools: class of each pool.
        able: pools with live workers or a launcher.
    """
    suitable = [name for kind in classes for name in sorted(pools) if pools[name] == kind]
    return next((name for name in suitable if name in able), suitable[0] if suitable else None)


def most_queued(pool: PoolSettings, principal: Principal, owner: str) -> int:
    """How many jobs an owner may have waiting: its own number, else that of its highest role that has one."""
    if owner in pool.max_queued:
        return pool.max_queued[owner]
    for role in sorted(principal.roles, reverse=True):
        if (key := f"role:{role.name.lower()}") in pool.max_queued:
            return pool.max_queued[key]
    return pool.max_queued_per_owner
