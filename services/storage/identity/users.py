"""Users: what the platform keeps about the people that others, or it itself, have logged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import IntEnum
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import require_visible
from guidehall.core.auth import Principal, Role
from guidehall.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.storage.database import Caller, Database
from services.storage.etags import require_etag
from services.storage.fields import text
from services.storage.identity.endings import end_sessions
from services.storage.identity.tables import memberships, users
from services.storage.lists import Paging, page

MAX_GROUPS = 256


class GroupRole(IntEnum):
    """Each role may do what the ones before it may; numbers as in identity.proto."""

    READER = 1
    MEMBER = 2
    MANAGER = 3


@dataclass(frozen=True)
class User:
    """One user; the id is the subject."""

    id: str
    display_name: str
    email: str
    roles: Sequence[str]
    groups: Sequence[str]
    disabled: bool
    revision: int
    create_time: datetime
    update_time: datetime
    kind: Literal["user", "service_account"]
    owner_group: str | None
    delete_time: datetime | None
    memberships: Mapping[str, GroupRole] = field(default_factory=dict)

    @property
    def all_groups(self) -> frozenset[str]:
        """The groups that others say and those that it is a member of here."""
        return frozenset({*self.groups, *self.memberships})

    @property
    def writable_groups(self) -> frozenset[str]:
        """Those in whose projects it may also change things."""
        return frozenset(group for group, role in self.memberships.items() if role >= GroupRole.MEMBER)

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.USER.format(user=self.id)

    @property
    def etag(self) -> str:
        """Changes whenever the user does."""
        return str(self.revision)

    @property
    def highest_role(self) -> int:
        """The role that includes the others; 0 without any."""
        return max((Role[role] for role in self.roles), default=0)


@dataclass(frozen=True)
class Profile:
    """What an administrator says about a user."""

    display_name: str
    email: str
    roles: Sequence[Role]
    groups: Sequence[str]
    disabled: bool

    def values(self) -> dict[str, Any]:
        """As columns.

        Raises:
            InvalidArgument: a field is not as it may be.
        """
        if len(self.groups) > MAX_GROUPS:
            raise InvalidArgument.field("user.groups", f"{len(self.groups)} groups", f"at most {MAX_GROUPS}")
        return {
            "display_name": text("user.display_name", self.display_name, 200),
            "email": text("user.email", self.email, 320),
            "roles": sorted({role.name for role in self.roles}),
            "groups": sorted({text("user.groups", group, 200) for group in self.groups}),
            "disabled": self.disabled,
        }


class Users:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, id: str, profile: Profile) -> User:
        """Adds a user.

        Raises:
            AlreadyExists: the id is taken.
            InvalidArgument: a field is not as it may be.
        """
        name = names.USER.format(user=id)
        names.USER.parse(name, "user_id")
        values = {"id": id, **profile.values()}
        async with self._database.mutation(caller) as mutation:
            statement = insert(users).values(values).on_conflict_do_nothing().returning(users)
            row = (await mutation.connection.execute(statement)).one_or_none()
            if row is None:
                raise AlreadyExists(f"{name} exists", metadata={"resource": name})
            user = read_user(row._mapping)
            mutation.record(name, etag_after=user.etag)
        return user

    async def get(self, principal: Principal, name: str) -> User:
        """One user.

        Raises:
            NotFound: there is none for the caller.
        """
        id = names.USER.parse(name)["user"]
        require_visible(principal, id, name)
        async with self._database.transaction() as connection:
            user = await find(connection, id)
        if user is None:
            raise NotFound.named(name)
        return user

    async def resolve(self, caller: Caller, id: str) -> User:
        """A user whom a service has made sure of; one who is seen for the first time becomes a scientist.

        Groups that others say somebody is in are not kept: who leaves one would stay in it here.

        Raises:
            InvalidArgument: no user can have this id.
        """
        name = names.USER.format(user=id)
        names.USER.parse(name, "user_id")
        async with self._database.transaction() as connection:
            user = await find(connection, id)
        if user is None:
            async with self._database.mutation(caller) as mutation:
                if await ensure(mutation.connection, Principal(id, "user", frozenset({Role.SCIENTIST}))):
                    mutation.record(name)
                user = await find(mutation.connection, id)
        if user is None:
            raise NotFound.named(name)
        require_person(user)
        return user

    async def page(self, paging: Paging) -> tuple[list[User], str]:
        """One page, newest first, and the token of the next."""
        async with self._database.transaction() as connection:
            rows, token = await page(connection, select(users), users.c.seq, paging, "users")
        return [read_user(row._mapping) for row in rows], token

    async def update(self, caller: Caller, name: str, profile: Profile, etag: str) -> User:
        """Replaces what is kept about a user.

        Raises:
            NotFound: there is none.
            Aborted: it has changed since.
            InvalidArgument: a field is not as it may be.
        """
        id = names.USER.parse(name, "user.name")["user"]
        values = profile.values()
        async with self._database.mutation(caller) as mutation:
            before = await find(mutation.connection, id, lock=True)
            if before is None:
                raise NotFound.named(name)
            require_person(before)
            require_etag(etag, before.etag)
            changed = update(users).where(users.c.id == id).returning(users)
            times = {"revision": users.c.revision + 1, "update_time": func.now()}
            row = (await mutation.connection.execute(changed.values(**values, **times))).one()
            user = replace(read_user(row._mapping), memberships=before.memberships)
            if user.disabled:
                # For good: who is let in again logs in again.
                await end_sessions(mutation.connection, id)
            mutation.record(name, before.etag, user.etag)
        return user


async def find(connection: AsyncConnection, id: str, lock: bool = False) -> User | None:
    """A user by id."""
    query = select(users).where(users.c.id == id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        return None
    given = select(memberships.c.group_id, memberships.c.role).where(memberships.c.user_id == id)
    roles = {group: GroupRole(role) for group, role in (await connection.execute(given)).tuples()}
    return replace(read_user(row._mapping), memberships=roles)


def require_person(user: User) -> None:
    """Raises FailedPrecondition for a service account, which comes by its keys alone."""
    if user.kind != "user":
        raise FailedPrecondition(
            f"{user.name} is a service account: its group changes it, and it has no password",
            reason="SERVICE_ACCOUNT",
        )


async def ensure(connection: AsyncConnection, principal: Principal) -> bool:
    """Makes a user of somebody whom another authority has logged in, as it says; whether there was none."""
    values = {
        "id": principal.subject,
        "display_name": "",
        "email": "",
        "roles": sorted(role.name for role in principal.roles),
        "groups": sorted(principal.groups),
    }
    made = await connection.execute(insert(users).values(values).on_conflict_do_nothing())
    return made.rowcount == 1


def require_own(principal: Principal, user: str, name: str) -> None:
    """Raises NotFound unless it is the caller, or the caller an administrator.

    Operators see much of others, but not where these log in, nor all that is kept about them.
    """
    if principal.subject != user and not principal.has(Role.ADMIN):
        raise NotFound.named(name)


def read_user(row: Any) -> User:
    """The user in a row, without memberships."""
    return User(**{item.name: row[item.name] for item in fields(User) if item.name != "memberships"})
