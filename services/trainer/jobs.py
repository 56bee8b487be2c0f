"""Jobs as their owners see them: looked up, listed, with their attempts."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import filters, names, pages
from guidehall.core.access import (
    GROUP_PROJECT,
    owns,
    reader_names,
    reads_all,
    require_changeable,
    require_readable,
)
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from services.trainer import cursors
from services.trainer.database import Database, Unit
from services.trainer.documents import Document
from services.trainer.journal import lock_job
from services.trainer.leases import job_id_of
from services.trainer.lifecycle import EndReason, State
from services.trainer.queues import Queues, Seen
from services.trainer.records import Job, worker_name
from services.trainer.tables import attempts, jobs, workers

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TIMES = ("create_time", "update_time", "end_time")
_FILTERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("state", "end_reason", "pipeline", "owner", "group", "pool", "batch", "retried_from"), ("=", "!=")
    ),
    "display_name": ("=", "!=", ":"),
    "labels.*": ("=", "!="),
    **dict.fromkeys(_TIMES, tuple(_COMPARE)),
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
class Page:
    """Some jobs of a list; an empty token ends it."""

    jobs: list[Seen]
    next_token: str


async def find(connection: AsyncConnection, principal: Principal, name: str, field: str = "name") -> Job:
    """A job that the caller may read.

    Raises:
        NotFound: there is none.
        InvalidArgument: not the form of a name.
    """
    statement = select(jobs).where(jobs.c.id == job_id_of(name, field))
    row = (await connection.execute(statement)).mappings().first()
    job = _named(None if row is None else Job.of(row), name)
    require_readable(principal, job, name)
    assert job is not None  # noqa: S101 (require_readable raises without one)
    return job


async def lock_changeable(unit: Unit, principal: Principal, name: str) -> Job:
    """A job that the caller may change, held against other writers until the transaction ends.

    Raises:
        NotFound, InvalidArgument: as `find`.
        PermissionDenied: the caller may only read it.
    """
    job = _named(await lock_job(unit.connection, job_id_of(name, "name")), name)
    require_changeable(principal, job, name)
    assert job is not None  # noqa: S101 (require_changeable raises without one)
    return job


def _named(job: Job | None, name: str) -> Job | None:
    return job if job is not None and job.name == name else None


def _visible(principal: Principal, project: str) -> list[ColumnElement[bool]]:
    """`access.may_read` as SQL conditions, for jobs of one project or of any."""
    in_project = [] if project == names.ANY_PROJECT else [jobs.c.project == project]
    if reads_all(principal, project):
        return in_project
    named = reader_names(principal)
    seen = [jobs.c.readers.overlap(cast(named, ARRAY(Text)))]
    if named:
        # Things are their owners' but in the projects of groups.
        of_groups = [f"{GROUP_PROJECT}{group}" for group in sorted(principal.groups)]
        personal = ~jobs.c.project.startswith(GROUP_PROJECT, autoescape=True)
        seen += [jobs.c.project.in_(of_groups), and_(personal, jobs.c.owner == principal.subject)]
    return [*in_project, or_(*seen)]


@dataclass(frozen=True)
class Attempt:
    """One lease of a job."""

    epoch: int
    number: int
    worker: str
    lease_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    end_reason: EndReason | None
    error: Document | None
    checkpoint_ordinal: int | None
    checkpoint_step: int | None


class Jobs:
    """The table of jobs, for owners and operators."""

    def __init__(self, database: Database, queues: Queues) -> None:
        self._database = database
        self._queues = queues

    async def get(self, principal: Principal, name: str) -> Seen:
        """One job.

        Raises:
            NotFound: the caller sees none of this name.
        """
        async with self._database.statements() as connection:
            return await self._queues.see(connection, await find(connection, principal, name))

    async def attempts(
        self, principal: Principal, parent: str, size: int, token: str
    ) -> tuple[list[Attempt], str]:
        """Some leases of a job, newest first, and the token of the next page.

        Raises:
            NotFound: the caller sees no such job.
            InvalidArgument: the token is wrong.
        """
        size = pages.page_size(size)
        before = cursors.number(token, parent)
        async with self._database.statements() as connection:
            job = await find(connection, principal, parent, "parent")
            statement = (
                select(attempts, workers.c.pool)
                .join(workers, workers.c.id == attempts.c.worker_id)
                .where(attempts.c.job_id == job.id)
                .order_by(attempts.c.epoch.desc())
                .limit(size + 1)
            )
            if before is not None:
                statement = statement.where(attempts.c.epoch < before)
            rows = (await connection.execute(statement)).all()
        found = [_attempt(row) for row in rows[:size]]
        return found, pages.next_token([found[-1].epoch], parent) if len(rows) > size else ""

    async def count(self, principal: Principal) -> dict[State, int]:
        """How many jobs the caller owns in each state, in all projects; a guest owns none."""
        if not owns(principal, principal.subject):
            return {}
        of_states = select(jobs.c.state, func.count()).where(jobs.c.owner == principal.subject)
        async with self._database.statements() as connection:
            rows = (await connection.execute(of_states.group_by(jobs.c.state))).all()
        return {State(state): count for state, count in rows}

    async def page(
        self, principal: Principal, project: str, filter_text: str, order_by: str, size: int, token: str
    ) -> Page:
        """Some jobs of a project, or of any, that the caller may see.

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

        statement = select(jobs).where(*_visible(principal, project), *conditions(filter_text))
        place = tuple_(column, jobs.c.id)
        if cursor is not None:
            after = tuple_(*cursor, types=(column.type, jobs.c.id.type))
            statement = statement.where(place < after if descending else place > after)
        ordered = (column.desc(), jobs.c.id.desc()) if descending else (column, jobs.c.id)

        async with self._database.statements() as connection:
            # One more than wanted tells whether there is another page.
            rows = (await connection.execute(statement.order_by(*ordered).limit(size + 1))).mappings().all()
            found = [Job.of(row) for row in rows[:size]]
            seen = await self._queues.see_all(connection, found)
        next_token = ""
        if len(rows) > size:
            last = found[-1]
            time = last.create_time if column is jobs.c.create_time else last.update_time
            next_token = pages.next_token([time.isoformat(), last.id], *arguments)
        return Page(seen, next_token)


def _attempt(row: Any) -> Attempt:
    return Attempt(
        row.epoch,
        row.number,
        worker_name(row.pool, row.worker_id),
        row.lease_time,
        row.start_time,
        row.end_time,
        EndReason(row.end_reason) if row.end_reason else None,
        row.error,
        row.checkpoint_ordinal,
        row.checkpoint_step,
    )


def conditions(filter_text: str) -> list[ColumnElement[bool]]:
    """What a filter asks of jobs.

    Raises:
        InvalidArgument: it is none, or asks for what no job can have.
    """
    return [_condition(term) for term in filters.parse(filter_text, _FILTERS)]


_CHOICES: Mapping[str, Collection[str]] = {
    "state": State.__members__,
    "end_reason": EndReason.__members__,
}
_NAMES = {"batch": (names.BATCH, "batch"), "retried_from": (names.JOB, "job")}
_COLUMNS = {"group": "group_name"}


def _condition(term: filters.Term) -> ColumnElement[bool]:
    if "\x00" in term.value:
        raise InvalidArgument.field("filter", term.value, "text without NUL characters")
    choices = _CHOICES.get(term.field)
    if choices is not None and term.value not in choices:
        raise InvalidArgument.field("filter", term.value, f"{term.field} is one of {', '.join(choices)}")
    if term.field.startswith("labels."):
        has: ColumnElement[bool] = jobs.c.labels.contains({term.field.removeprefix("labels."): term.value})
        return has if term.operator == "=" else ~has
    column = jobs.c[_COLUMNS.get(term.field, term.field)]
    if term.field in _TIMES:
        # False where there is none, as in the end of what has not ended.
        later: ColumnElement[bool] = _COMPARE[term.operator](column, _time_in(term))
        return later
    value = _id_in(term) if term.field in _NAMES else term.value
    match term.operator:
        case "=":
            return column == value
        case "!=":
            # Without a value it is another one.
            return column.is_distinct_from(value)
        case _:
            return column.icontains(value, autoescape=True)


def _time_in(term: filters.Term) -> datetime:
    allowed = f'{term.field} with a time and its offset, such as "2030-01-31T12:00:00Z"'
    try:
        return cursors.moment(term.value)
    except ValueError:
        raise InvalidArgument.field("filter", term.value, allowed) from None


def _id_in(term: filters.Term) -> str:
    """The id in the name that a term compares with."""
    pattern, part = _NAMES[term.field]
    try:
        return str(uuid.UUID(pattern.parse(term.value, "filter")[part]))
    except ValueError:
        allowed = f"{term.field} is a name of the form {pattern.template}"
        raise InvalidArgument.field("filter", term.value, allowed) from None
