"""All that storage keeps about a person, table by table, without any secret."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

from sqlalchemy import Select, Table, and_, func, literal_column, select

from guidehall.core import names
from guidehall.core.auth import Principal
from services.storage.audit import log
from services.storage.database import Database
from services.storage.identity.tables import api_keys, identities, memberships, passwords, sessions, users
from services.storage.identity.users import GroupRole, require_own
from services.storage.lists import Paging, page
from services.storage.tables import (
    artifacts,
    dataset_versions,
    datasets,
    history,
    job_logs,
    model_versions,
    models,
    objects,
    results,
    upload_roles,
)

# A hash opens nothing, but nobody needs it who wants to know what is kept; nor where and in which order.
_LEFT_OUT = frozenset({"secret_sha256", "hash", "seq", "object_key"})
_ROWS_TOGETHER = 100
_OBJECT = (objects.c.size_bytes, objects.c.sha256, objects.c.media_type)


async def export(database: Database, principal: Principal, name: str) -> AsyncIterator[list[str]]:
    """Lines about a user, some at a time; each is a JSON object with its `type`.

    Read table by table in small transactions: what is made or deleted meanwhile may or may not be in it.

    Raises:
        NotFound: another user, for anybody but an administrator.
    """
    user = names.USER.parse(name)["user"]
    require_own(principal, user, name)
    async with database.transaction() as connection:
        account = (await connection.execute(select(users).where(users.c.id == user))).mappings().one_or_none()
        changed = await connection.scalar(select(passwords.c.change_time).where(passwords.c.user_id == user))
        roles = select(upload_roles).where(upload_roles.c.user_id == user)
        uploads = (await connection.execute(roles)).mappings().one_or_none()
        member = select(memberships).where(memberships.c.user_id == user).order_by(memberships.c.group_id)
        groups = [
            {"group": row.group_id, "role": GroupRole(row.role).name}
            for row in await connection.execute(member)
        ]
    told = {"id": user} if account is None else dict(account)
    lines = [_line("account", told | {"password_change_time": changed})]
    if uploads is not None:
        lines.append(_line("upload_roles", uploads))
    lines += [_line("membership", group) for group in groups]
    yield lines
    for kind, query, key in _queries(user):
        token = ""
        while True:
            async with database.transaction() as connection:
                rows, token = await page(connection, query, key, Paging(_ROWS_TOGETHER, token), kind, user)
            if rows:
                yield [_line(kind, row._mapping) for row in rows]
            if not token:
                break
    async with database.transaction() as connection:
        kept = (await connection.execute(_logs(user))).mappings().all()
    if kept:
        yield [_line("job_log", row) for row in kept]
    token = ""
    themselves = Principal(user, "user")
    while True:
        async with database.transaction() as connection:
            found, token = await log.entries(
                connection, themselves, "", "sequence", Paging(_ROWS_TOGETHER, token)
            )
        if found:
            yield [
                _line("audit_event", {**vars(item.entry), "sequence": item.sequence, "seal": item.seal})
                for item in found
            ]
        if not token:
            return


def _logs(user: str) -> Select[Any]:
    """Of jobs without a result; they are kept for some time only."""
    return (
        select(job_logs, *_OBJECT)
        .join(objects, objects.c.key == job_logs.c.object_key)
        .where(job_logs.c.owner == user)
        .order_by(job_logs.c.create_time)
    )


def _queries(user: str) -> list[tuple[str, Select[Any], Any]]:
    """What to read of each table, and the key that it is read by."""
    versions = _together(
        (*(dataset_versions.c[name] for name in ("version", "filename", "content_info", "labels")),),
        dataset_versions,
        and_(datasets.c.project == dataset_versions.c.project, datasets.c.id == dataset_versions.c.dataset),
    )
    files = _together(
        (artifacts.c.id,),
        artifacts,
        and_(results.c.project == artifacts.c.project, results.c.id == artifacts.c.result),
    )
    of_model = and_(models.c.project == model_versions.c.project, models.c.id == model_versions.c.model)
    return [
        ("session", select(sessions).where(sessions.c.user_id == user), sessions.c.seq),
        ("identity", select(identities).where(identities.c.user_id == user), identities.c.seq),
        ("api_key", select(api_keys).where(api_keys.c.user_id == user), api_keys.c.seq),
        (
            "dataset",
            select(datasets, versions.label("versions")).where(datasets.c.owner == user),
            datasets.c.seq,
        ),
        ("model", select(models).where(models.c.owner == user), models.c.seq),
        (
            "model_version",
            select(model_versions, *_OBJECT)
            .join(models, of_model)
            .join(objects, objects.c.key == model_versions.c.object_key)
            .where(models.c.owner == user),
            model_versions.c.seq,
        ),
        (
            "result",
            select(results, files.label("artifacts")).where(results.c.owner == user),
            results.c.seq,
        ),
        ("history_entry", select(history).where(history.c.user_id == user), history.c.seq),
    ]


def _together(columns: Sequence[Any], table: Table, belongs: Any) -> Any:
    """The rows of a table that belong to one of another, with what their objects are, as one JSON array."""
    pairs: list[tuple[Any, Any]] = [
        (literal_column(f"'{column.name}'"), column) for column in (*columns, *_OBJECT)
    ]
    rows = func.json_agg(func.json_build_object(*chain.from_iterable(pairs)))
    here = objects.c.key == table.c.object_key
    return select(rows).select_from(table.join(objects, here)).where(belongs).scalar_subquery()


def _line(kind: str, row: Mapping[Any, Any]) -> str:
    shown = {str(name): value for name, value in row.items() if str(name) not in _LEFT_OUT}
    return json.dumps({"type": kind, **shown}, default=_plain)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
