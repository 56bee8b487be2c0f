"""Runs as users keep them: request and result as documents, under a name of the user's own."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import require_visible
from guidehall.core.auth import Principal
from guidehall.core.errors import NotFound
from guidehall.core.names import LONGEST_DISPLAY_NAME
from services.storage import fields
from services.storage.database import Caller, Database
from services.storage.documents import Document, without_large_arrays
from services.storage.lists import Field, Paging, SearchField, TextField, conditions, page
from services.storage.requests import Request
from services.storage.tables import history

_ID = re.compile(r"[0-9a-f]{24}")
_FILTERS: dict[str, Field] = {
    "display_name": SearchField(history.c.display_name),
    "job": TextField(history.c.job),
    "model_version": TextField(history.c.model_version),
}
_LISTED_BYTES = func.octet_length(cast(history.c.summary, Text)) + func.octet_length(
    cast(history.c.params, Text)
)
_LISTED = [column for column in history.c if column not in (history.c.result, history.c.summary)]


@dataclass(frozen=True)
class Entry:
    """One run; in lists `result` is without its large arrays."""

    name: str
    display_name: str
    params: Mapping[str, Any]
    result: Mapping[str, Any]
    job: str
    model_version: str
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True)
class NewEntry:
    """What a user keeps."""

    user: str
    display_name: str
    params: Document
    result: Document
    job: str
    model_version: str


class History:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, new: NewEntry, request_id: str) -> Entry:
        """Keeps a run.

        Raises:
            NotFound: for another user.
            InvalidArgument: a field is not as it may be.
        """
        parent = names.USER.format(user=new.user)
        require_visible(caller.principal, new.user, parent)
        fields.text("entry.display_name", new.display_name, LONGEST_DISPLAY_NAME)
        if new.job:
            names.JOB.parse(new.job, "entry.job")
        if new.model_version:
            names.model_version_of(names.MODEL_VERSION.parse(new.model_version, "entry.model_version"))
        content = (
            new.user,
            new.display_name,
            new.params.sha256,
            new.result.sha256,
            new.job,
            new.model_version,
        )
        request = Request(caller, request_id, *content)
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            if first := await request.first_made(connection):
                return await _read(connection, caller.principal, first)
            id = secrets.token_hex(12)
            values = {
                "user_id": new.user,
                "id": id,
                "display_name": new.display_name,
                "params": new.params.value,
                "result": new.result.value,
                "summary": without_large_arrays(new.result.value),
                "job": new.job,
                "model_version": new.model_version,
            }
            await connection.execute(insert(history).values(values))
            name = names.HISTORY_ENTRY.format(user=new.user, entry=id)
            await request.made(connection, name)
            mutation.record(name)
            return await _read(connection, caller.principal, name)

    async def get(self, principal: Principal, name: str) -> Entry:
        """One run, whole.

        Raises:
            NotFound: there is none for the caller.
        """
        async with self._database.transaction() as connection:
            return await _read(connection, principal, name)

    async def page(
        self, principal: Principal, parent: str, filter_text: str, paging: Paging
    ) -> tuple[list[Entry], str]:
        """One page of a user's runs, newest first, and the token of the next.

        Raises:
            NotFound: another user's.
        """
        user = names.USER.parse(parent, "parent")["user"]
        require_visible(principal, user, parent)
        query = select(*_LISTED, history.c.summary.label("result")).where(
            history.c.user_id == user, *conditions(filter_text, _FILTERS)
        )
        async with self._database.transaction() as connection:
            bound = ("history", parent, filter_text)
            rows, token = await page(connection, query, history.c.seq, paging, *bound, weight=_LISTED_BYTES)
        return [_entry(row._mapping) for row in rows], token

    async def rename(self, caller: Caller, name: str, display_name: str) -> Entry:
        """Gives a run another name, or none.

        Raises:
            NotFound: there is none for the caller.
        """
        fields.text("display_name", display_name, LONGEST_DISPLAY_NAME)
        user, id = _ids(caller.principal, name)
        async with self._database.mutation(caller) as mutation:
            renamed = update(history).filter_by(user_id=user, id=id)
            await mutation.connection.execute(
                renamed.values(display_name=display_name, update_time=func.now())
            )
            entry = await _read(mutation.connection, caller.principal, name)
            mutation.record(name)
        return entry

    async def delete(self, caller: Caller, name: str) -> None:
        """Forgets a run; its model stays.

        Raises:
            NotFound: there is none for the caller.
        """
        user, id = _ids(caller.principal, name)
        async with self._database.mutation(caller) as mutation:
            deleted = await mutation.connection.execute(delete(history).filter_by(user_id=user, id=id))
            if deleted.rowcount == 0:
                raise NotFound.named(name)
            mutation.record(name)


def _ids(principal: Principal, name: str) -> tuple[str, str]:
    ids = names.HISTORY_ENTRY.parse(name)
    require_visible(principal, ids["user"], name)
    if not _ID.fullmatch(ids["entry"]):
        raise NotFound.named(name)
    return ids["user"], ids["entry"]


async def _read(connection: AsyncConnection, principal: Principal, name: str) -> Entry:
    user, id = _ids(principal, name)
    row = (await connection.execute(select(history).filter_by(user_id=user, id=id))).one_or_none()
    if row is None:
        raise NotFound.named(name)
    return _entry(row._mapping)


def _entry(row: Any) -> Entry:
    return Entry(
        name=names.HISTORY_ENTRY.format(user=row["user_id"], entry=row["id"]),
        display_name=row["display_name"],
        params=row["params"],
        result=row["result"],
        job=row["job"],
        model_version=row["model_version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
