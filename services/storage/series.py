"""Named series of immutable versions: what datasets and models have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, Text, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.access import (
    changed_readers,
    group_of,
    reader_names,
    reads_all,
    require_changeable,
    require_readable,
)
from guidehall.core.auth import Principal
from guidehall.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from guidehall.core.names import Pattern
from services.storage import fields
from services.storage.database import Mutation
from services.storage.etags import require_etag
from services.storage.lists import Field, LabelField, Paging, SearchField, TextField, conditions, page


@dataclass(frozen=True)
class Series:
    """One series. `latest_version` is 0 while there is none."""

    project: str
    id: str
    display_name: str
    description: str
    owner: str
    readers: Sequence[str]
    labels: Mapping[str, str]
    latest_version: int
    revision: int
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    # Numbers of versions by tag; only models have any.
    tags: Mapping[str, int] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        """Changes whenever the series does."""
        return str(self.revision)


class SeriesTable:
    """The series of one kind.

    Args:
        table: where they are.
        pattern: of their names.
        part: the last part of the pattern, such as "dataset".
        extra: further fields that a filter may ask for.
    """

    def __init__(self, table: Table, pattern: Pattern, part: str, extra: Mapping[str, Field]) -> None:
        self._table = table
        self._pattern = pattern
        self._part = part
        columns = table.c
        self._filters: dict[str, Field] = {
            "owner": TextField(columns.owner),
            "display_name": SearchField(columns.display_name),
            "labels.*": LabelField(columns.labels),
            **extra,
        }

    def name(self, series: Series) -> str:
        """Its resource name."""
        return self._pattern.format(**{"project": series.project, self._part: series.id})

    async def find(self, connection: AsyncConnection, principal: Principal, project: str, id: str) -> Series:
        """A series that the caller may read, deleted or not.

        Raises:
            NotFound: there is none for the caller.
        """
        series = await self._read(connection, project, id, lock=False)
        require_readable(principal, series, self._pattern.format(**{"project": project, self._part: id}))
        assert series is not None  # noqa: S101 (require_readable raises without one)
        return series

    async def lock(self, mutation: Mutation, project: str, id: str) -> Series:
        """A series that the caller may change, deleted or not, locked.

        Raises:
            NotFound: there is none for the caller.
            PermissionDenied: the caller may only read it.
        """
        series = await self._read(mutation.connection, project, id, lock=True)
        name = self._pattern.format(**{"project": project, self._part: id})
        require_changeable(mutation.caller.principal, series, name)
        assert series is not None  # noqa: S101 (require_changeable raises without one)
        return series

    async def find_living(
        self, connection: AsyncConnection, principal: Principal, project: str, id: str
    ) -> Series:
        """A series that the caller may see and that is not deleted.

        Raises:
            NotFound: there is none, it is deleted, or it is somebody else's.
        """
        series = await self.find(connection, principal, project, id)
        self._require_living(series)
        return series

    def _require_living(self, series: Series) -> None:
        if series.delete_time is not None:
            name = self.name(series)
            raise NotFound(f"{name} was deleted", reason="DELETED", metadata={"resource": name})

    async def page(
        self,
        connection: AsyncConnection,
        principal: Principal,
        project: str,
        filter_text: str,
        show_deleted: bool,
        paging: Paging,
    ) -> tuple[list[Series], str]:
        """One page of what the caller may see, newest first, and the token of the next."""
        columns = self._table.c
        query = select(self._table).where(columns.project == project, *conditions(filter_text, self._filters))
        query = query.where(*visible(principal, project, self._table))
        if not show_deleted:
            query = query.where(columns.delete_time.is_(None))
        bound = (self._table.name, project, filter_text, show_deleted, principal.subject)
        rows, token = await page(connection, query, columns.seq, paging, *bound)
        return [_series(row._mapping) for row in rows], token

    async def create(self, connection: AsyncConnection, values: Mapping[str, Any]) -> Series:
        """Adds a series.

        Args:
            connection: of the transaction.
            values: project, id, display_name, description, owner and labels.

        Raises:
            AlreadyExists: the name is taken, perhaps by somebody else.
        """
        statement = insert(self._table).values(**values).on_conflict_do_nothing().returning(self._table)
        row = (await connection.execute(statement)).one_or_none()
        if row is None:
            raise self._taken(values["project"], values["id"])
        return _series(row._mapping)

    async def open(
        self, connection: AsyncConnection, project: str, id: str, owner: str, *, of_others: bool
    ) -> Series:
        """The series to add a version to, created for `owner` when it is not there; locked.

        Args:
            connection: of the transaction.
            project: its project.
            id: the last part of its name.
            owner: for whom the version is.
            of_others: whether somebody else's series will do too.

        Raises:
            AlreadyExists: the name is somebody else's.
            FailedPrecondition: it is deleted.
        """
        values = {
            "project": project,
            "id": id,
            "display_name": "",
            "description": "",
            "owner": owner,
            "labels": {},
        }
        await connection.execute(insert(self._table).values(**values).on_conflict_do_nothing())
        query = select(self._table).filter_by(project=project, id=id).with_for_update()
        series = _series((await connection.execute(query)).one()._mapping)
        if series.owner != owner and not of_others:
            raise self._taken(project, id)
        if series.delete_time is not None:
            raise FailedPrecondition(f"{self.name(series)} was deleted", reason="DELETED")
        return series

    async def advance(self, connection: AsyncConnection, series: Series) -> int:
        """The number of the next version of a series that is locked; a rollback leaves no gap."""
        version = series.latest_version + 1
        await self._change(connection, series, latest_version=version)
        return version

    async def set_deleted(
        self, mutation: Mutation, project: str, id: str, deleted: bool, etag: str = ""
    ) -> tuple[Series, bool]:
        """Hides a series or brings it back.

        Returns:
            The series, and whether that changed anything.

        Raises:
            NotFound: there is none, or it is somebody else's.
            Aborted: it is not the one that the caller has seen.
        """
        series = await self.lock(mutation, project, id)
        require_etag(etag, series.etag)
        if (series.delete_time is not None) == deleted:
            return series, False
        changed = await self._change(mutation.connection, series, delete_time=func.now() if deleted else None)
        mutation.record(self.name(series), series.etag, changed.etag)
        return changed, True

    async def share(
        self, mutation: Mutation, project: str, id: str, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[Series, bool]:
        """Changes who else may read a series.

        Returns:
            The series, and whether that changed anything.

        Raises:
            NotFound: there is none for the caller.
            PermissionDenied: the caller may only read it.
            InvalidArgument: not how readers are named, or too many.
        """
        series = await self.lock(mutation, project, id)
        readers = changed_readers(series.readers, add, remove)
        if readers == list(series.readers):
            return series, False
        changed = await self._change(mutation.connection, series, readers=readers)
        mutation.record(self.name(series), series.etag, changed.etag)
        return changed, True

    async def lock_living(self, mutation: Mutation, project: str, id: str, etag: str = "") -> Series:
        """A series that the caller may change and that is not deleted, locked.

        Raises:
            NotFound: there is none for the caller, or it is deleted.
            PermissionDenied: the caller may only read it.
            Aborted: it is not the one that the caller has seen.
        """
        series = await self.lock(mutation, project, id)
        self._require_living(series)
        require_etag(etag, series.etag)
        return series

    async def change(self, mutation: Mutation, series: Series, **values: Any) -> Series:
        """Changes columns of a series that is locked."""
        changed = await self._change(mutation.connection, series, **values)
        mutation.record(self.name(series), series.etag, changed.etag)
        return changed

    async def update(
        self, mutation: Mutation, project: str, id: str, values: Mapping[str, Any], etag: str
    ) -> Series:
        """Changes what is said about a series.

        Raises:
            NotFound: there is none for the caller, or it is deleted.
            PermissionDenied: the caller may only read it.
            Aborted: it is not the one that the caller has seen.
        """
        series = await self.lock_living(mutation, project, id, etag)
        return await self.change(mutation, series, **values)

    async def _read(self, connection: AsyncConnection, project: str, id: str, lock: bool) -> Series | None:
        query = select(self._table).filter_by(project=project, id=id)
        row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
        return None if row is None else _series(row._mapping)

    async def _change(self, connection: AsyncConnection, series: Series, **values: Any) -> Series:
        columns = self._table.c
        statement = (
            update(self._table)
            .filter_by(project=series.project, id=series.id)
            .values(revision=columns.revision + 1, update_time=func.now(), **values)
            .returning(self._table)
        )
        return _series((await connection.execute(statement)).one()._mapping)

    def _taken(self, project: str, id: str) -> AlreadyExists:
        name = self._pattern.format(**{"project": project, self._part: id})
        return AlreadyExists(f"the name {name} is taken", metadata={"resource": name})


def changes(
    part: str, paths: Sequence[str], display_name: str, description: str | None, labels: Mapping[str, str]
) -> dict[str, Any]:
    """What is to change of a series, as columns.

    Args:
        part: the field that holds the series, such as "dataset".
        paths: of the update mask.
        display_name: the new one, if the mask names it, as are the others.
        description: None where there is none of the kind.
        labels: all of them.

    Raises:
        InvalidArgument: the mask is empty or names something else, or a field is not as it may be.
    """
    checked: dict[str, Callable[[], Any]] = {
        "display_name": lambda: fields.text(f"{part}.display_name", display_name, 200),
        "labels": lambda: fields.labels(f"{part}.labels", labels),
    }
    if description is not None:
        checked["description"] = lambda: fields.text(f"{part}.description", description, 10_000)
    unknown = [path for path in paths if path not in checked]
    if unknown or not paths:
        shown = unknown[0] if unknown else ""
        raise InvalidArgument.field("update_mask", shown, f"one or more of {', '.join(checked)}")
    return {path: checked[path]() for path in paths}


def visible(principal: Principal, project: str, table: Table) -> list[ColumnElement[bool]]:
    """`access.may_read` as SQL conditions on a table with the columns `owner` and `readers`."""
    if reads_all(principal, project):
        return []
    named = reader_names(principal)
    shared = table.c.readers.overlap(cast(named, ARRAY(Text)))
    if not named or group_of(project):
        return [shared]
    return [or_(table.c.owner == principal.subject, shared)]


def _series(row: Any) -> Series:
    return Series(**{each.name: row[each.name] for each in fields_of(Series) if each.name in row})
