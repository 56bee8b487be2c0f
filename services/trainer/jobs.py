"""Jobs as their owners see them: looked up, listed, cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import filters, pages
from guidehall.core.access import require_visible, sees_everything
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from services.trainer import cursors
from services.trainer.audit import audit
from services.trainer.database import Database
from services.trainer.journal import Journal, lock_job
from services.trainer.leases import job_id_of
from services.trainer.lifecycle import CancelRequested, State
from services.trainer.records import Job
from services.trainer.scheduler import queue_position, queue_positions
from services.trainer.tables import jobs

_FILTERS: Mapping[str, tuple[str, ...]] = {
    "state": ("=", "!="),
    "pipeline": ("=", "!="),
    "owner": ("=", "!="),
    "pool": ("=", "!="),
    "display_name": ("=", "!=", ":"),
    "labels.*": ("=", "!="),
}
_ORDERS = {
    "create_time desc": (jobs.c.create_time, True),
    "create_time": (jobs.c.create_time, False),
    "update_time desc": (jobs.c.update_time, True),
    "update_time": (jobs.c.update_time, False),
}
# Jobs carry their parameters: a page of them has to fit into a message.
MOST_LISTED = 200
_USUAL_ORDER = "create_time desc"


@dataclass(frozen=True)
class Seen:
    """A job and its place in the queue; -1 when it is not queued."""

    job: Job
    queue_position: int


@dataclass(frozen=True)
class Page:
    """Some jobs of a list; an empty token ends it."""

    jobs: list[Seen]
    next_token: str


async def find(connection: AsyncConnection, principal: Principal, name: str) -> Job:
    """A job that the caller may see.

    Raises:
        NotFound: there is none.
        InvalidArgument: not the form of a name.
    """
    statement = select(jobs).where(jobs.c.id == job_id_of(name, "name"))
    row = (await connection.execute(statement)).mappings().first()
    return _visible(principal, None if row is None else Job.of(row), name)


def _visible(principal: Principal, job: Job | None, name: str) -> Job:
    if job is None or job.name != name:
        job = None
    require_visible(principal, None if job is None else job.owner, name)
    assert job is not None  # noqa: S101 (require_visible raises without one)
    return job


class Jobs:
    """The table of jobs, for owners and operators."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal

    async def get(self, principal: Principal, name: str) -> Seen:
        """One job.

        Raises:
            NotFound: the caller sees none of this name.
        """
        async with self._database.statements() as connection:
            job = await find(connection, principal, name)
            return Seen(job, await queue_position(connection, job))

    async def cancel(self, principal: Principal, name: str) -> Seen:
        """Asks for the end of a job; harmless to repeat, and after its end.

        Raises:
            NotFound: the caller sees none of this name.
        """
        async with self._database.unit() as unit:
            job = _visible(principal, await lock_job(unit.connection, job_id_of(name, "name")), name)
            after = await self._journal.apply(unit, job, CancelRequested())
            if after is not job:
                audit(unit, principal, "CancelJob", name, etag_before=job.etag, etag_after=after.etag)
            return Seen(after, await queue_position(unit.connection, after))

    async def page(
        self, principal: Principal, project: str, filter_text: str, order_by: str, size: int, token: str
    ) -> Page:
        """Some jobs of a project that the caller may see.

        Raises:
            InvalidArgument: the filter, the order or the token is wrong.
        """
        order_by = order_by or _USUAL_ORDER
        if order_by not in _ORDERS:
            raise InvalidArgument.field("order_by", order_by, f"one of {', '.join(_ORDERS)}")
        column, descending = _ORDERS[order_by]
        arguments = (principal.subject, project, filter_text, order_by)
        cursor = cursors.time_and_id(token, *arguments)
        size = min(pages.page_size(size), MOST_LISTED)

        statement = select(jobs).where(jobs.c.project == project)
        if not sees_everything(principal):
            statement = statement.where(jobs.c.owner == principal.subject, jobs.c.owner != "")
        for term in filters.parse(filter_text, _FILTERS):
            statement = statement.where(_condition(term))
        place = tuple_(column, jobs.c.id)
        if cursor is not None:
            after = tuple_(*cursor, types=(column.type, jobs.c.id.type))
            statement = statement.where(place < after if descending else place > after)
        ordered = (column.desc(), jobs.c.id.desc()) if descending else (column, jobs.c.id)

        async with self._database.statements() as connection:
            # One more than wanted tells whether there is another page.
            rows = (await connection.execute(statement.order_by(*ordered).limit(size + 1))).mappings().all()
            found = [Job.of(row) for row in rows[:size]]
            positions = await queue_positions(connection, found)
        next_token = ""
        if len(rows) > size:
            last = found[-1]
            time = last.create_time if column is jobs.c.create_time else last.update_time
            next_token = pages.next_token([time.isoformat(), last.id], *arguments)
        return Page([Seen(job, positions.get(job.id, -1)) for job in found], next_token)


def _condition(term: filters.Term) -> ColumnElement[bool]:
    if "\x00" in term.value:
        raise InvalidArgument.field("filter", term.value, "text without NUL characters")
    if term.field == "state" and term.value not in State.__members__:
        raise InvalidArgument.field("filter", term.value, f"state is one of {', '.join(State.__members__)}")
    if term.field.startswith("labels."):
        has: ColumnElement[bool] = jobs.c.labels.contains({term.field.removeprefix("labels."): term.value})
        return has if term.operator == "=" else ~has
    column = jobs.c[term.field]
    match term.operator:
        case "=":
            return column == term.value
        case "!=":
            return column != term.value
        case _:
            return column.icontains(term.value, autoescape=True)
