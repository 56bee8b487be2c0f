"""Results: what a job that succeeded left, one document and its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import changed_readers, require_changeable, require_readable
from guidehall.core.auth import Principal
from guidehall.core.errors import NotFound
from services.storage.database import Caller, Database
from services.storage.downloads import Content
from services.storage.lists import Field, Paging, TextField, conditions, page
from services.storage.series import visible
from services.storage.tables import artifacts, objects, results

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILTERS: dict[str, Field] = {"pipeline": TextField(results.c.pipeline), "owner": TextField(results.c.owner)}
_WITHOUT_DOCUMENT = [column for column in results.c if column is not results.c.document]
# What one counts for in a page, where each result may have a thousand: rather for the time that it takes than
# for its bytes.
_ARTIFACT_BYTES = 4096
_LISTED_BYTES = (
    select(_ARTIFACT_BYTES * func.count())
    .where(artifacts.c.project == results.c.project, artifacts.c.result == results.c.id)
    .scalar_subquery()
)


@dataclass(frozen=True)
class Artifact:
    """One file."""

    name: str
    content: Content


@dataclass(frozen=True)
class Result:
    """One result; `document` is None in lists."""

    name: str
    job: str
    pipeline: str
    document: Mapping[str, Any] | None
    artifacts: Sequence[Artifact]
    model_versions: Sequence[str]
    owner: str
    readers: Sequence[str]
    create_time: datetime


class Results:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, principal: Principal, name: str) -> Result:
        """One result, document and all.

        Raises:
            NotFound: there is none for the caller.
        """
        ids = names.RESULT.parse(name)
        async with self._database.transaction() as connection:
            row = await _find(connection, principal, ids, name)
            files = await _artifacts(connection, ids["project"], [row["id"]])
        return _result(row, files.get(row["id"], []))

    async def page(
        self, principal: Principal, project: str, filter_text: str, paging: Paging
    ) -> tuple[list[Result], str]:
        """One page, newest first, without documents; and the token of the next."""
        query = select(*_WITHOUT_DOCUMENT).where(
            results.c.project == project,
            *visible(principal, project, results),
            *conditions(filter_text, _FILTERS),
        )
        async with self._database.transaction() as connection:
            bound = ("results", project, filter_text, principal.subject)
            rows, token = await page(connection, query, results.c.seq, paging, *bound, weight=_LISTED_BYTES)
            files = await _artifacts(connection, project, [row.id for row in rows])
        return [_result(row._mapping, files.get(row.id, [])) for row in rows], token

    async def artifact(self, principal: Principal, name: str) -> Content:
        """One file of a result.

        Raises:
            NotFound: there is none for the caller.
        """
        ids = names.ARTIFACT.parse(name)
        async with self._database.transaction() as connection:
            row = await _find(connection, principal, ids, name)
            files = await _artifacts(connection, ids["project"], [row["id"]])
        for file in files.get(row["id"], []):
            if file.name == name:
                return file.content
        raise NotFound.named(name)

    async def share(self, caller: Caller, name: str, add: Sequence[str], remove: Sequence[str]) -> Result:
        """Changes who else may read a result and its files; once more changes nothing.

        Raises:
            NotFound: there is none for the caller.
            PermissionDenied: the caller may only read it.
            InvalidArgument: not how readers are named, or too many.
        """
        ids = names.RESULT.parse(name)
        async with self._database.mutation(caller) as mutation:
            row = await _read(mutation.connection, ids, lock=True)
            require_changeable(caller.principal, row, name)
            assert row is not None  # noqa: S101 (require_changeable raises without one)
            readers = changed_readers(row.readers, add, remove)
            if readers != list(row.readers):
                changed = update(results).filter_by(project=row.project, id=row.id).values(readers=readers)
                await mutation.connection.execute(changed)
                mutation.record(name)
        return await self.get(caller.principal, name)


async def _find(connection: AsyncConnection, principal: Principal, ids: Mapping[str, str], name: str) -> Any:
    row = await _read(connection, ids)
    require_readable(principal, row, name)
    assert row is not None  # noqa: S101 (require_readable raises without one)
    return row._mapping


async def _read(
    connection: AsyncConnection, ids: Mapping[str, str], *, lock: bool = False
) -> Row[Any] | None:
    # The column takes nothing else, so nothing else is there.
    if _UUID.fullmatch(ids["result"]):
        query = select(results).where(results.c.project == ids["project"], results.c.id == ids["result"])
        return (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None


async def _artifacts(
    connection: AsyncConnection, project: str, ids: Sequence[str]
) -> dict[str, list[Artifact]]:
    """The files of some results, by result id, in order of their names."""
    query = (
        select(artifacts, objects.c.size_bytes, objects.c.sha256, objects.c.media_type)
        .join(objects)
        .where(artifacts.c.project == project, artifacts.c.result.in_(ids))
        .order_by(artifacts.c.id)
    )
    found: dict[str, list[Artifact]] = {}
    for row in await connection.execute(query):
        name = names.ARTIFACT.format(project=project, result=row.result, artifact=row.id)
        content = Content(row.object_key, row.size_bytes, row.sha256, row.media_type, row.id)
        found.setdefault(row.result, []).append(Artifact(name, content))
    return found


def _result(row: Any, files: Sequence[Artifact]) -> Result:
    return Result(
        name=names.RESULT.format(project=row["project"], result=row["id"]),
        job=names.JOB.format(project=row["project"], job=row["id"]),
        pipeline=row["pipeline"],
        document=row.get("document"),
        artifacts=files,
        model_versions=row["model_versions"],
        owner=row["owner"],
        readers=row["readers"],
        create_time=row["create_time"],
    )
