"""The right to run a job: given, kept up, and lost. Every report of a worker passes through `hold`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import Counter, Histogram
from sqlalchemy import and_, bindparam, case, func, select, text
from sqlalchemy.dialects.postgresql import UUID

from guidehall.core import names
from guidehall.core.auth import Principal, TokenIssuer
from guidehall.core.deadlines import time_remaining
from guidehall.core.errors import Aborted, AppError, Code, NotFound
from guidehall.core.faults import fault_point
from services.trainer.checkpoints import starting_point
from services.trainer.credentials import require_credential
from services.trainer.database import Database, Unit
from services.trainer.journal import Cause, Journal, lock_job
from services.trainer.lifecycle import (
    HELD,
    Desired,
    Leased,
    LeaseExpired,
    Released,
    StaleEpoch,
    Started,
    State,
)
from services.trainer.records import Checkpoint, Job, Worker
from services.trainer.scheduler import lock_pool, next_job
from services.trainer.settings import TrainerSettings
from services.trainer.tables import attempts, jobs, worker_credentials, workers
from services.trainer.wakes import Ear, pool_topic
from services.trainer.workers import Workers

_LEASES = Counter("guidehall_leases", "Leases given", ["pool"])
_LOST = Counter("guidehall_leases_lost", "Leases whose worker was not heard of in time", ["pool"])
_WAIT = Histogram("guidehall_queue_wait_seconds", "From submission to the first lease", ["pool"])
# Left for the answer when a request for a job comes with a deadline: what a network takes.
_ANSWER_SECONDS = 0.5
# His registration is gone, or his credential was revoked.
_WRONG_ASKER = frozenset({Code.NOT_FOUND, Code.UNAUTHENTICATED})


@dataclass(frozen=True)
class Grant:
    """A lease as the worker gets it."""

    job: Job
    job_token: str
    checkpoint: Checkpoint | None
    # The job that made the checkpoint, when it is a retry's predecessor; else empty.
    checkpoint_job: str


@dataclass(frozen=True)
class OutOfService:
    """The worker that asks is drained or quarantined."""


@dataclass(frozen=True)
class Standing:
    """Where an attempt that holds its job is."""

    desired: Desired
    # Number of the worker's newest event that is stored.
    stored_number: int
    lease_seconds: float


@dataclass(frozen=True)
class Held:
    """A job, locked, as the attempt sees it that reports of it.

    Attributes:
        job: the job.
        current: whether the attempt holds it.
        finished: whether the attempt reported its end before: it may not have heard our answer.
        worker_id: whose attempt it is.
        stored_number: number, given by the worker, of the attempt's newest event that is stored.
        time: of the transaction.
    """

    job: Job
    current: bool
    finished: bool
    worker_id: str
    stored_number: int
    time: datetime


# Both rows are locked: what is read of the attempt must be as new as what is read of the job.
_ATTEMPT = (
    select(
        jobs,
        attempts.c.finished,
        attempts.c.worker_id.label("attempt_worker_id"),
        attempts.c.last_event_number,
        func.now().label("now"),
    )
    .join(attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.epoch == bindparam("epoch")))
    .join(workers, workers.c.id == attempts.c.worker_id)
    .join(worker_credentials, worker_credentials.c.id == workers.c.credential_id)
    .where(
        jobs.c.id == bindparam("job_id"),
        worker_credentials.c.id == bindparam("credential_id"),
        worker_credentials.c.revoke_time.is_(None),
    )
    .with_for_update(of=(jobs, attempts))
)


async def find_attempt(unit: Unit, principal: Principal, name: str, epoch: int) -> Held:
    """The job of an attempt of the caller's.

    Raises:
        NotFound: no such job in the caller's pool.
        StaleEpoch: no such attempt, or another worker's.
        Unauthenticated: the caller's credential was revoked.
    """
    values = {"job_id": job_id_of(name), "epoch": epoch, "credential_id": principal.credential_id}
    row = (await unit.connection.execute(_ATTEMPT, values)).mappings().first()
    if row is None:
        raise await _reason_for_none(unit, principal, name, epoch)
    job = Job.of(row)
    current = job.state in HELD and job.lease_epoch == epoch
    return Held(job, current, row["finished"], row["attempt_worker_id"], row["last_event_number"], row["now"])


async def hold(unit: Unit, principal: Principal, name: str, epoch: int) -> Held:
    """The job that the caller's attempt holds, locked.

    Raises:
        NotFound: no such job in the caller's pool.
        StaleEpoch: the attempt does not hold it (any more).
        Unauthenticated: the caller's credential was revoked.
    """
    held = await find_attempt(unit, principal, name, epoch)
    if not held.current:
        raise StaleEpoch(epoch, held.job.facts())
    return held


async def _reason_for_none(unit: Unit, principal: Principal, name: str, epoch: int) -> AppError:
    """Why there is no such attempt of the caller's."""
    await require_credential(unit.connection, principal)
    job = await lock_job(unit.connection, job_id_of(name))
    if job is None or job.pool != principal.pool:
        return NotFound.named(name)
    return StaleEpoch(epoch, job.facts())


def job_id_of(name: str, field: str = "job") -> str:
    """The id in a job's name.

    Raises:
        InvalidArgument: not the form of a job's name.
        NotFound: of that form, but no job can have it.
    """
    ids = names.JOB.parse(name, field)
    try:
        return str(uuid.UUID(ids["job"]))
    except ValueError:
        raise NotFound.named(name) from None


def given(grant: Grant) -> None:
    """A lease was given, and that is committed."""
    fault_point("trainer.lease.committed")
    job = grant.job
    _LEASES.labels(job.pool).inc()
    if job.lease_epoch == 1:
        _WAIT.labels(job.pool).observe((job.update_time - job.create_time).total_seconds())


class Offer:
    """A request for a job that waits here, as a transaction that puts jobs into its pool sees it.

    The transaction gives it the next job before it commits: that is one commit less than to wake it for that.
    """

    def __init__(self, leases: Leases, request: _Request | None) -> None:
        self._leases = leases
        self._request = request
        self._grant: Grant | None = None

    async def give(self, unit: Unit) -> Job | None:
        """Gives the next job of the pool, in its usual order, if there is who waits for one.

        Returns:
            The job that was given, as it is now.
        """
        if self._request is not None:
            self._grant = await self._leases.give_waiting(unit, self._request)
        return None if self._grant is None else self._grant.job

    def committed(self) -> None:
        """The transaction is."""
        if self._request is not None:
            self._request.answer(self._grant)


class _Request:
    """A request for a job while it waits."""

    def __init__(self, principal: Principal, worker: str) -> None:
        self.principal = principal
        self.worker = worker
        # Whether somebody still wants the answer.
        self.wanted = True
        self._answer: asyncio.Future[Grant | None] = asyncio.get_running_loop().create_future()

    def answer(self, grant: Grant | None) -> None:
        """Says what it was given; once."""
        if not self._answer.done():
            self._answer.set_result(grant)

    async def answered(self) -> Grant | None:
        """Waits for that."""
        return await asyncio.shield(self._answer)


class Leases:
    """Gives jobs to workers and keeps them theirs."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        workers_table: Workers,
        issuer: TokenIssuer,
        settings: TrainerSettings,
    ) -> None:
        self._database = database
        self._journal = journal
        self._workers = workers_table
        self._issuer = issuer
        self._trainer_settings = settings
        self._settings = settings.lease
        self._looking: dict[str, asyncio.Lock] = {}
        # Requests that wait, by pool; the longest first.
        self._waiting: dict[str, list[_Request]] = {}

    async def lease(
        self, principal: Principal, worker: str, wait_seconds: float
    ) -> Grant | OutOfService | None:
        """The next job for a worker; None when none came within the time.

        A worker that is out of service is held as long, for it may be reinstated meanwhile.

        Raises:
            NotFound: the worker has to register.
            Unauthenticated: its credential was revoked.
            Aborted: another request of the worker's was answered meanwhile.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._longest_wait(wait_seconds)
        first = True
        with self._database.wakes.listening(pool_topic(principal.pool or "")) as ear:
            while True:
                ear.clear()
                # Of those who are woken one looks at a time: the others would hold connections meanwhile.
                async with self._looking.setdefault(principal.pool or "", asyncio.Lock()):
                    grant = await self._grant(principal, worker, first)
                if isinstance(grant, Grant):
                    given(grant)
                    return grant
                first = False
                remaining = give_up - loop.time()
                if remaining <= 0 or self._database.wakes.closed:
                    return grant
                grant = await self._wait(
                    principal, worker, ear, min(remaining, self._settings.recheck_seconds)
                )
                if grant is not None:
                    given(grant)
                    return grant

    async def _wait(self, principal: Principal, worker: str, ear: Ear, seconds: float) -> Grant | None:
        """Waits to be rung, or for a job that is given meanwhile."""
        request = _Request(principal, worker)
        waiting = self._waiting.setdefault(principal.pool or "", [])
        waiting.append(request)
        answered = asyncio.ensure_future(request.answered())
        rung = asyncio.ensure_future(ear.wait())
        try:
            await asyncio.wait((answered, rung), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if request in waiting:
                return None
            # Somebody is about to give it a job.
            return await answered
        finally:
            request.wanted = False
            if request in waiting:
                waiting.remove(request)
            for task in (answered, rung):
                task.cancel()
            await asyncio.gather(answered, rung, return_exceptions=True)

    @contextmanager
    def offer(self, pool: str) -> Iterator[Offer]:
        """Takes a request that waits for a job of a pool, for the length of a transaction."""
        waiting = self._waiting.get(pool)
        request = waiting.pop(0) if waiting else None
        try:
            yield Offer(self, request)
        finally:
            if request is not None:
                # Unless it was given one.
                request.answer(None)

    async def give_waiting(self, unit: Unit, request: _Request) -> Grant | None:
        """The next job for who waits; None when he is gone or may have none."""
        try:
            asking = await self._workers.asking(unit.connection, request.principal, request.worker)
        except AppError as error:
            if error.code in _WRONG_ASKER:
                # He will hear of it himself.
                return None
            raise
        # Looked at behind the pool's lock: a worker that leaves asks what it holds behind that, too.
        if asking.holds_job or not request.wanted:
            return None
        grant = await self._give(unit, asking.worker)
        return grant if isinstance(grant, Grant) else None

    def _longest_wait(self, wait_seconds: float) -> float:
        deadline = time_remaining()
        longest = min(wait_seconds, self._settings.max_wait_seconds)
        return longest if deadline is None else min(longest, deadline - _ANSWER_SECONDS)

    async def _grant(self, principal: Principal, name: str, first: bool) -> Grant | OutOfService | None:
        async with self._database.unit() as unit:
            asking = await self._workers.asking(unit.connection, principal, name)
            if asking.holds_job:
                if not first:
                    # It hung up on this request unheard, and made another one, with which it got a job.
                    raise Aborted(f"{name} holds a job, which another request gave it")
                await self._take_back(unit, asking.worker.id)
                await lock_pool(unit.connection, asking.worker.pool)
            return await self._give(unit, asking.worker)

    async def leave(self, principal: Principal, name: str) -> None:
        """A worker stops and wants no job: what a request that it gave up was given for it, goes back.

        Raises:
            NotFound, Unauthenticated: as `lease`.
        """
        async with self._database.unit() as unit:
            worker = await self._workers.find(unit.connection, principal, name)
            # That request is committed by now, or has not chosen a job and is over.
            await lock_pool(unit.connection, worker.pool)
            await self._take_back(unit, worker.id)

    async def give_next(self, unit: Unit, held: Held) -> Grant | None:
        """The next job for the worker whose attempt at another ends in the same transaction.

        Call `given` when that is committed.
        """
        worker = await self._workers.next_in_line(unit.connection, held.worker_id)
        grant = await self._give(unit, worker)
        return grant if isinstance(grant, Grant) else None

    async def _give(self, unit: Unit, worker: Worker) -> Grant | OutOfService | None:
        """The next job for a worker that has none, in a pool that is locked."""
        unit.see(worker.id)
        if worker.out_of_service:
            return OutOfService()
        waiting = await next_job(unit.connection, worker, self._trainer_settings)
        if waiting is None:
            return None
        job = await self._journal.apply(unit, waiting, Leased(), Cause(worker_id=worker.id))
        checkpoint, made_by = await starting_point(unit.connection, job)
        checkpoint_job = ""
        if checkpoint is not None and made_by != job.id:
            checkpoint_job = names.JOB.format(project=job.project, job=made_by)
        fault_point("trainer.lease.stored")
        return Grant(job, self._job_token(job, checkpoint_job), checkpoint, checkpoint_job)

    async def _take_back(self, unit: Unit, worker_id: str) -> None:
        """A worker that asks for a job has none: what it held is free now, not when its lease runs out."""
        held = jobs.c.state.in_([state.value for state in HELD]) & (jobs.c.worker_id == worker_id)
        rows = await unit.connection.execute(select(jobs).where(held).with_for_update())
        for row in rows.mappings().all():
            job = Job.of(row)
            if job.state is State.LEASED:
                # It never heard of it: the answer got lost.
                await self._journal.apply(unit, job, Released(job.lease_epoch))
            else:
                await self.expire(unit, job)

    async def expire(self, unit: Unit, job: Job) -> None:
        """The worker of a locked job is gone."""
        _LOST.labels(job.pool).inc()
        error = {
            "code": "UNAVAILABLE",
            "reason": "LEASE_LOST",
            "message": "the worker that ran the job was not heard of any more",
        }
        await self._journal.apply(unit, job, LeaseExpired(job.lease_epoch), Cause(error=error))

    def _job_token(self, job: Job, checkpoint_job: str) -> str:
        opens = {*job.inputs.values(), checkpoint_job} - {""}
        return self._issuer.mint(
            f"jobs/{job.id}",
            "job",
            ttl_seconds=job.timeout_seconds + self._settings.job_token_margin_seconds,
            audience="storage",
            job_id=job.id,
            lease_epoch=job.lease_epoch,
            inputs=sorted(opens),
            project=job.project,
        )

    async def heartbeat(self, principal: Principal, name: str, epoch: int) -> Standing:
        """Keeps the lease for another while, by the database's clock.

        Raises:
            NotFound, StaleEpoch, Unauthenticated: as `hold`.
        """
        values = {
            "job_id": job_id_of(name),
            "epoch": epoch,
            "credential_id": principal.credential_id,
            "lease_seconds": self._settings.seconds,
        }
        # The statement commits by itself: what ends here has not kept the lease.
        fault_point("trainer.heartbeat.stored")
        async with self._database.statements() as connection:
            row = (await connection.execute(_HEARTBEAT, values)).first()
        if row is None:
            async with self._database.unit() as unit:
                await hold(unit, principal, name, epoch)
            raise Aborted(f"the lease of {name} is changing hands; ask again")
        fault_point("trainer.heartbeat.committed")
        return Standing(Desired(row.desired), row.last_event_number, self._settings.seconds)

    async def desired(self, name: str, epoch: int) -> Desired | None:
        """What is wanted of a held job; None when this attempt does not hold it any more."""
        held = (jobs.c.lease_epoch == epoch) & jobs.c.state.in_([state.value for state in HELD])
        statement = (
            select(_DESIRED)
            .join(workers, workers.c.id == jobs.c.worker_id)
            .where(held, jobs.c.id == job_id_of(name))
        )
        async with self._database.statements() as connection:
            found = (await connection.execute(statement)).scalar_one_or_none()
        return None if found is None else Desired(found)

    async def started(self, principal: Principal, name: str, epoch: int, deaf: Ear | None = None) -> None:
        """The pipeline begins; `deaf` is the ear of who says so.

        Raises:
            NotFound, StaleEpoch, Unauthenticated: as `hold`.
        """
        async with self._database.unit(deaf) as unit:
            held = await hold(unit, principal, name, epoch)
            await self._journal.apply(unit, held.job, Started(epoch))
            fault_point("trainer.start.stored")
        fault_point("trainer.start.committed")


# An operator who drains the worker may want the job to leave it: the owner still wants it to run, elsewhere.
_DESIRED = case(
    (
        and_(
            jobs.c.desired == Desired.RUN.value,
            workers.c.drain_time.is_not(None),
            workers.c.drain_releases_job,
        ),
        Desired.PAUSE.value,
    ),
    else_=jobs.c.desired,
)

# The lease, the worker's sign of life and the credential in one statement: it comes often.
_HEARTBEAT = text(
    """
    WITH held AS (
        UPDATE trainer.jobs SET lease_until = now() + make_interval(secs => :lease_seconds)
        WHERE id = :job_id AND lease_epoch = :epoch AND state IN ('LEASED', 'RUNNING')
            AND worker_id IN (
                SELECT w.id FROM trainer.workers w JOIN trainer.worker_credentials c ON c.id = w.credential_id
                WHERE c.id = :credential_id AND c.revoke_time IS NULL)
        RETURNING id, worker_id, desired
    ), seen AS (
        UPDATE trainer.workers SET last_seen_time = now() FROM held WHERE workers.id = held.worker_id
    )
    SELECT last_event_number,
        CASE WHEN desired = 'RUN' AND w.drain_time IS NOT NULL AND w.drain_releases_job THEN 'PAUSE'
            ELSE desired END AS desired
    FROM held JOIN trainer.attempts ON job_id = held.id AND epoch = :epoch
    JOIN trainer.workers w ON w.id = held.worker_id
    """
).bindparams(
    bindparam("job_id", type_=UUID(as_uuid=False)), bindparam("credential_id", type_=UUID(as_uuid=False))
)
