"""Groups: who works on the same things, and the accounts of their programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names, pages
from guidehall.core.access import sees_everything
from guidehall.core.auth import Principal, Role
from guidehall.core.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from services.storage.database import Caller, Database
from services.storage.etags import require_etag
from services.storage.fields import identifier, text
from services.storage.identity import users
from services.storage.identity.tables import api_keys, groups, memberships
from services.storage.identity.tables import users as users_table
from services.storage.identity.users import GroupRole, User
from services.storage.lists import Paging, page

_MAX_ROLE = Role.SCIENTIST


@dataclass(frozen=True)
class Group:
    """One group; `role` is the caller's own in it."""

    id: str
    display_name: str
    description: str
    revision: int
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    role: GroupRole | None

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.GROUP.format(group=self.id)

    @property
    def etag(self) -> str:
        """Changes whenever the group does."""
        return str(self.revision)


@dataclass(frozen=True)
class Member:
    """One user or service account in a group."""

    user: str
    role: GroupRole


class Groups:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, id: str, display_name: str, description: str) -> Group:
        """Adds a group, empty.

        Raises:
            AlreadyExists: the name is taken, perhaps by one that was deleted.
            InvalidArgument: a field is not as it may be.
        """
        values = {"id": identifier("group_id", id), **_texts(display_name, description)}
        async with self._database.mutation(caller) as mutation:
            statement = upsert(groups).values(values).on_conflict_do_nothing().returning(groups)
            row = (await mutation.connection.execute(statement)).one_or_none()
            if row is None:
                name = names.GROUP.format(group=id)
                raise AlreadyExists(f"the name {name} is taken", metadata={"resource": name})
            group = _group(row._mapping, None)
            mutation.record(group.name, etag_after=group.etag)
        return group

    async def get(self, principal: Principal, name: str) -> Group:
        """One group.

        Raises:
            NotFound: there is none of which the caller is a member.
        """
        async with self._database.transaction() as connection:
            return await _find(connection, principal, name, "name")

    async def page(self, principal: Principal, paging: Paging) -> tuple[list[Group], str]:
        """One page of the caller's groups, for operators of all, newest first, and the token of the next."""
        query = (
            select(groups, memberships.c.role)
            .outerjoin(memberships, _membership_of(principal))
            .where(groups.c.delete_time.is_(None))
        )
        if not sees_everything(principal):
            query = query.where(or_(memberships.c.role.is_not(None), groups.c.id.in_(principal.groups)))
        async with self._database.transaction() as connection:
            rows, token = await page(
                connection, query, groups.c.seq, paging, "groups", principal.kind, principal.subject
            )
        return [_group(row._mapping, row.role) for row in rows], token

    async def update(
        self, caller: Caller, name: str, display_name: str, description: str, etag: str
    ) -> Group:
        """Replaces what people read about a group.

        Raises:
            NotFound: there is none for the caller.
            PermissionDenied: the caller does not manage it.
            Aborted: it has changed since.
            InvalidArgument: a field is not as it may be.
        """
        values = _texts(display_name, description)
        async with self._database.mutation(caller) as mutation:
            before = await _managed(mutation.connection, caller.principal, name, "group.name")
            require_etag(etag, before.etag)
            changed = (
                update(groups)
                .where(groups.c.id == before.id)
                .values(**values, revision=groups.c.revision + 1, update_time=func.now())
                .returning(groups)
            )
            row = (await mutation.connection.execute(changed)).one()
            group = _group(row._mapping, before.role)
            mutation.record(name, before.etag, group.etag)
        return group

    async def delete(self, caller: Caller, name: str) -> None:
        """Ends a group: nobody is in it any more, and the keys of its service accounts are revoked.

        Raises:
            NotFound: there is none.
        """
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            group = await _find(connection, caller.principal, name, "name", lock=True)
            await connection.execute(delete(memberships).where(memberships.c.group_id == group.id))
            # Also those who are in it because of what others have said: it must not be theirs again.
            named = users_table.c.groups.contains([group.id])
            await connection.execute(
                update(users_table)
                .where(named)
                .values(groups=func.array_remove(users_table.c.groups, group.id))
            )
            accounts = await connection.scalars(
                select(users_table.c.id).where(users_table.c.owner_group == group.id)
            )
            for account in accounts.all():
                await _end_account(connection, account)
            ended = update(groups).where(groups.c.id == group.id)
            await connection.execute(
                ended.values(delete_time=func.now(), revision=groups.c.revision + 1, update_time=func.now())
            )
            mutation.record(name, group.etag)

    async def members(
        self, principal: Principal, parent: str, size: int, token: str
    ) -> tuple[list[Member], str]:
        """One page of a group's members, by name, and the token of the next.

        Raises:
            NotFound: there is none of which the caller is a member.
        """
        size = pages.page_size(size)
        cursor = pages.cursor_of(token, "members", parent)
        async with self._database.transaction() as connection:
            group = await _find(connection, principal, parent, "parent")
            query = select(memberships).where(memberships.c.group_id == group.id)
            if cursor is not None:
                query = query.where(memberships.c.user_id > _place(cursor, token))
            query = query.order_by(memberships.c.user_id).limit(size + 1)
            rows = (await connection.execute(query)).all()
        found = [Member(row.user_id, GroupRole(row.role)) for row in rows[:size]]
        more = len(rows) > size
        return found, pages.next_token([found[-1].user], "members", parent) if more else ""

    async def set_member(self, caller: Caller, parent: str, member: Member) -> Member:
        """Adds somebody to a group, or gives another role in it; once more changes nothing.

        Raises:
            NotFound: there is no such group for the caller, or no such user.
            PermissionDenied: the caller does not manage it.
            InvalidArgument: a service account shall manage.
        """
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            group = await _managed(connection, caller.principal, parent, "parent")
            user = await users.find(connection, member.user, lock=True)
            if user is None or user.delete_time is not None:
                name = names.USER.format(user=member.user)
                raise NotFound.named(name)
            if user.kind != "user" and member.role is GroupRole.MANAGER:
                raise InvalidArgument.field(
                    "member.role", "MANAGER", "READER or MEMBER for a service account"
                )
            if user.memberships.get(group.id) is not member.role:
                if len(user.all_groups | {group.id}) > users.MAX_GROUPS:
                    raise InvalidArgument.field(
                        "member.user", user.id, f"a user in fewer than {users.MAX_GROUPS} groups"
                    )
                row = {"group_id": group.id, "user_id": user.id, "role": member.role.value}
                await connection.execute(
                    upsert(memberships)
                    .values(row)
                    .on_conflict_do_update(index_elements=["group_id", "user_id"], set_={"role": row["role"]})
                )
                mutation.record(parent)
        return member

    async def remove_member(self, caller: Caller, parent: str, user: str) -> None:
        """Takes somebody out of a group; nothing happens when nobody is there.

        Raises:
            NotFound: there is no such group for the caller.
            PermissionDenied: the caller does not manage it.
        """
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            group = await _managed(connection, caller.principal, parent, "parent")
            gone = delete(memberships).where(
                memberships.c.group_id == group.id, memberships.c.user_id == user
            )
            left = (await connection.execute(gone)).rowcount
            named = (users_table.c.id == user) & users_table.c.groups.contains([group.id])
            without = func.array_remove(users_table.c.groups, group.id)
            left += (
                await connection.execute(update(users_table).where(named).values(groups=without))
            ).rowcount
            if left:
                mutation.record(parent)

    async def create_account(
        self, caller: Caller, parent: str, id: str, display_name: str, roles: Sequence[Role]
    ) -> User:
        """Adds a service account to a group, as a member of it.

        Raises:
            NotFound: there is no such group for the caller.
            PermissionDenied: the caller does not manage it, or has not the roles that are wanted.
            AlreadyExists: the name is taken, by a user or by an account.
            InvalidArgument: a field is not as it may be.
        """
        name = names.USER.format(user=id)
        principal = caller.principal
        wanted = set(roles) or {Role.SCIENTIST}
        if max(wanted) > min(_MAX_ROLE, max(principal.roles, default=0)):
            raise PermissionDenied(
                f"roles: {', '.join(sorted(role.name for role in wanted))} is more than may be granted",
                reason="ROLE_TOO_HIGH",
            )
        values = {
            "id": identifier("user_id", id),
            "display_name": text("display_name", display_name, 200),
            "email": "",
            "roles": sorted(role.name for role in wanted),
            "groups": [],
            "kind": "service_account",
        }
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            group = await _managed(connection, principal, parent, "parent")
            made = upsert(users_table).values(**values, owner_group=group.id).on_conflict_do_nothing()
            if (await connection.execute(made.returning(users_table.c.id))).one_or_none() is None:
                raise AlreadyExists(f"{name} exists", metadata={"resource": name})
            row = {"group_id": group.id, "user_id": id, "role": GroupRole.MEMBER.value}
            await connection.execute(insert(memberships).values(row))
            account = await users.find(connection, id)
            assert account is not None  # noqa: S101 (just made)
            mutation.record(name, etag_after=account.etag)
        return account

    async def accounts(self, principal: Principal, parent: str, paging: Paging) -> tuple[list[User], str]:
        """One page of a group's service accounts, newest first, and the token of the next.

        Raises:
            NotFound: there is none of which the caller is a member.
        """
        async with self._database.transaction() as connection:
            group = await _find(connection, principal, parent, "parent")
            query = select(users_table).where(
                users_table.c.owner_group == group.id, users_table.c.delete_time.is_(None)
            )
            rows, token = await page(connection, query, users_table.c.seq, paging, "accounts", parent)
        return [users.read_user(row._mapping) for row in rows], token

    async def set_disabled(self, caller: Caller, name: str, disabled: bool) -> User:
        """Keeps a service account out, or lets it in again.

        Raises:
            NotFound: there is none of a group that the caller manages.
        """
        async with self._database.mutation(caller) as mutation:
            before = await _account(mutation.connection, caller.principal, name)
            if before.disabled == disabled:
                return before
            changed = update(users_table).where(users_table.c.id == before.id)
            await mutation.connection.execute(
                changed.values(disabled=disabled, revision=users_table.c.revision + 1, update_time=func.now())
            )
            account = await users.find(mutation.connection, before.id)
            assert account is not None  # noqa: S101 (it is locked)
            mutation.record(name, before.etag, account.etag)
        return account

    async def delete_account(self, caller: Caller, name: str) -> None:
        """Ends a service account for good, with its keys. What it owns stays, and so does its name.

        Raises:
            NotFound: there is none of a group that the caller manages.
        """
        async with self._database.mutation(caller) as mutation:
            account = await _account(mutation.connection, caller.principal, name)
            await _end_account(mutation.connection, account.id)
            mutation.record(name, account.etag)


async def manages(connection: AsyncConnection, principal: Principal, group: str) -> bool:
    """Whether somebody says who is in a group: an administrator, or a manager as it is now.

    Not as the caller's token says: it may be older than the end of that role.
    """
    if principal.kind != "user":
        return False
    if principal.has(Role.ADMIN):
        return True
    query = select(memberships.c.role).where(
        memberships.c.group_id == group, memberships.c.user_id == principal.subject
    )
    return await connection.scalar(query) == GroupRole.MANAGER


async def _find(
    connection: AsyncConnection, principal: Principal, name: str, field: str, *, lock: bool = False
) -> Group:
    """A group that the caller is in, or any for operators."""
    id = names.GROUP.parse(name, field)["group"]
    query = select(groups).where(groups.c.id == id, groups.c.delete_time.is_(None))
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    own = select(memberships.c.role).where(
        memberships.c.group_id == id, memberships.c.user_id == _subject(principal)
    )
    role = await connection.scalar(own)
    if row is None or (role is None and id not in principal.groups and not sees_everything(principal)):
        raise NotFound.named(name)
    return _group(row._mapping, role)


async def _managed(connection: AsyncConnection, principal: Principal, name: str, field: str) -> Group:
    """A group that the caller manages, locked."""
    group = await _find(connection, principal, name, field, lock=True)
    if not await manages(connection, principal, group.id):
        raise PermissionDenied(f"only managers of {name} may do this", reason="NOT_A_MANAGER")
    return group


async def _account(connection: AsyncConnection, principal: Principal, name: str) -> User:
    """A service account of a group that the caller manages, locked."""
    id = names.USER.parse(name)["user"]
    account = await users.find(connection, id, lock=True)
    if account is None or account.owner_group is None or account.delete_time is not None:
        raise NotFound.named(name)
    if not await manages(connection, principal, account.owner_group):
        raise NotFound.named(name)
    return account


async def _end_account(connection: AsyncConnection, id: str) -> None:
    await connection.execute(delete(memberships).where(memberships.c.user_id == id))
    await connection.execute(
        update(api_keys)
        .where(api_keys.c.user_id == id, api_keys.c.revoke_time.is_(None))
        .values(revoke_time=func.now())
    )
    ended = update(users_table).where(users_table.c.id == id, users_table.c.delete_time.is_(None))
    await connection.execute(
        ended.values(
            disabled=True,
            delete_time=func.now(),
            revision=users_table.c.revision + 1,
            update_time=func.now(),
        )
    )


def _subject(principal: Principal) -> str:
    """In the table of members; a service may have a user's name."""
    return principal.subject if principal.kind in ("user", "service_account") else ""


def _membership_of(principal: Principal) -> ColumnElement[bool]:
    return (memberships.c.group_id == groups.c.id) & (memberships.c.user_id == _subject(principal))


def _texts(display_name: str, description: str) -> dict[str, str]:
    return {
        "display_name": text("group.display_name", display_name, 200),
        "description": text("group.description", description, 10_000),
    }


def _place(cursor: list[Any], token: str) -> str:
    match cursor:
        case [str(user)]:
            return user
    raise InvalidArgument.field("page_token", token, "a next_page_token of an earlier answer")


def _group(row: Any, role: int | None) -> Group:
    values = {item.name: row[item.name] for item in fields(Group) if item.name != "role"}
    return Group(**values, role=None if role is None else GroupRole(role))
