"""Who is who in the audit log: what is sealed names a person by a pseudonym, whose row an erasure deletes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Mapping

from sqlalchemy import ColumnElement, delete, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.storage.audit.tables import people

# No name that anybody registers begins so.
_PREFIX = "~"
_OF_USER = re.compile(r"users/([^/]+)(.*)", re.DOTALL)


def person_in(resource: str) -> str | None:
    """The user that a resource belongs to, by its name."""
    match = _OF_USER.fullmatch(resource)
    return None if match is None or match[1] == "-" else match[1]


def renamed(resource: str, names: Mapping[str, str]) -> str:
    """A resource with another name of the user that it belongs to."""
    match = _OF_USER.fullmatch(resource)
    if match is None or match[1] not in names:
        return resource
    return f"users/{names[match[1]]}{match[2]}"


async def of(connection: AsyncConnection, users: Collection[str]) -> dict[str, str]:
    """The pseudonyms of users, made where there are none yet; a pseudonym has none of its own."""
    users = [user for user in users if not user.startswith(_PREFIX)]
    if not users:
        return {}
    known = await _known(connection, users)
    missing = [user for user in users if user not in known]
    if not missing:
        return known
    rows = [{"pseudonym": _PREFIX + secrets.token_hex(8), "user_id": user} for user in missing]
    await connection.execute(insert(people).values(rows).on_conflict_do_nothing())
    return await _known(connection, users)


async def _known(connection: AsyncConnection, users: Collection[str]) -> dict[str, str]:
    rows = await connection.execute(select(people).where(people.c.user_id.in_(users)))
    return {row.user_id: row.pseudonym for row in rows}


async def names_of(connection: AsyncConnection, pseudonyms: Iterable[str]) -> dict[str, str]:
    """The users of pseudonyms, but for those who were erased."""
    wanted = {one for one in pseudonyms if one.startswith(_PREFIX)}
    if not wanted:
        return {}
    rows = await connection.execute(select(people).where(people.c.pseudonym.in_(wanted)))
    return {row.pseudonym: row.user_id for row in rows}


async def forget(connection: AsyncConnection, user: str) -> None:
    """Makes a pseudonym nobody's."""
    await connection.execute(delete(people).where(people.c.user_id == user))


def is_person(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Whether a subject is this user, service or pseudonym."""
    return or_(
        column == name, column == select(people.c.pseudonym).where(people.c.user_id == name).scalar_subquery()
    )


def is_resource(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Whether a resource has this name, be it with the name of its user."""
    match = _OF_USER.fullmatch(name)
    if match is None:
        return column == name
    pseudonym = select(people.c.pseudonym).where(people.c.user_id == match[1]).scalar_subquery()
    return or_(column == name, column == literal("users/") + pseudonym + literal(match[2]))


def is_about(column: ColumnElement[str], user: str) -> ColumnElement[bool]:
    """Whether a resource is a user, or belongs to them."""
    pseudonym = select(people.c.pseudonym).where(people.c.user_id == user).scalar_subquery()
    whole = literal("users/") + pseudonym
    return or_(column == whole, column.startswith(whole + literal("/")))
