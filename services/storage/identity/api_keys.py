"""API keys: random secrets of which only the hash is kept."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import may_see
from guidehall.core.auth import API_KEY_PREFIX, SCOPES, Principal, Role
from guidehall.core.errors import InvalidArgument, NotFound, PermissionDenied
from services.storage.database import Caller, Database
from services.storage.fields import text
from services.storage.identity import groups, users
from services.storage.identity.secret_texts import digest, mint
from services.storage.identity.tables import api_keys
from services.storage.lists import Paging, page

_SHOWN_CHARACTERS = 10
# A key in steady use is not written to at each of its uses.
_LAST_USE_STEP = timedelta(minutes=1)


@dataclass(frozen=True)
class ApiKey:
    """One key, without its secret."""

    id: str
    user_id: str
    display_name: str
    roles: Sequence[str]
    prefix: str
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None
    last_use_time: datetime | None
    scopes: Sequence[str]

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.API_KEY.format(user=self.user_id, key=self.id)


@dataclass(frozen=True)
class NewApiKey:
    """What is wanted; without roles it gets those of its user."""

    user: str
    display_name: str
    roles: Sequence[Role]
    expire_time: datetime | None
    scopes: Sequence[str] = ()


@dataclass(frozen=True)
class Bearer:
    """Whom a key that is good speaks for."""

    key: ApiKey
    user: users.User
    roles: Sequence[Role]

    def principal(self) -> Principal:
        """Whom its servers take it for."""
        return Principal(
            self.user.id,
            self.user.kind,
            frozenset(self.roles),
            self.user.all_groups,
            credential_id=self.key.name,
            writable_groups=self.user.writable_groups,
            scopes=frozenset(self.key.scopes),
        )


class ApiKeys:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, new: NewApiKey) -> tuple[ApiKey, str]:
        """Makes a key.

        Returns:
            The key, and its secret, which is nowhere else.

        Raises:
            NotFound: for another user, or one that does not exist.
            PermissionDenied: with a role that the user or the caller does not have.
            InvalidArgument: a field is not as it may be.
        """
        parent = names.USER.format(user=new.user)
        for scope in new.scopes:
            if scope not in SCOPES:
                raise InvalidArgument.field("api_key.scopes", scope, ", ".join(sorted(SCOPES)))
        text("api_key.display_name", new.display_name, 200)
        if new.expire_time is not None and new.expire_time <= datetime.now(UTC):
            raise InvalidArgument.field("api_key.expire_time", new.expire_time.isoformat(), "a time to come")
        secret = mint(API_KEY_PREFIX)
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            if caller.principal.kind == "user" and caller.principal.subject == new.user:
                await users.ensure(connection, caller.principal)
            user = await _require_own(connection, caller.principal, new.user, parent)
            values = {
                "id": str(uuid.uuid4()),
                "user_id": new.user,
                "display_name": new.display_name,
                "roles": sorted(_granted(caller.principal, user, new.roles)),
                "prefix": secret[:_SHOWN_CHARACTERS],
                "secret_sha256": digest(secret),
                "expire_time": new.expire_time,
                "scopes": sorted(set(new.scopes)),
            }
            row = (await connection.execute(insert(api_keys).values(values).returning(api_keys))).one()
            key = _key(row._mapping)
            mutation.record(key.name)
        return key, secret

    async def page(self, principal: Principal, parent: str, paging: Paging) -> tuple[list[ApiKey], str]:
        """One page of a user's keys, newest first, and the token of the next.

        Raises:
            NotFound: another user's.
        """
        user = names.USER.parse(parent, "parent")["user"]
        query = select(api_keys).where(api_keys.c.user_id == user)
        async with self._database.transaction() as connection:
            if not may_see(principal, user):
                await _require_own(connection, principal, user, parent)
            rows, token = await page(connection, query, api_keys.c.seq, paging, "api_keys", parent)
        return [_key(row._mapping) for row in rows], token

    async def revoke(self, caller: Caller, name: str) -> ApiKey:
        """Ends a key, for good; once more changes nothing.

        Raises:
            NotFound: there is none for the caller.
        """
        ids = names.API_KEY.parse(name)
        async with self._database.mutation(caller) as mutation:
            if not may_see(caller.principal, ids["user"]):
                await _require_own(mutation.connection, caller.principal, ids["user"], name)
            key = await _find(mutation.connection, ids["user"], ids["key"], name)
            if key.revoke_time is None:
                revoked = update(api_keys).where(api_keys.c.id == key.id).values(revoke_time=func.now())
                row = (await mutation.connection.execute(revoked.returning(api_keys))).one()
                key = _key(row._mapping)
                mutation.record(name)
        return key

    async def introspect(self, secret: str) -> Bearer | None:
        """Whom a key speaks for; None for one that is not good (any more)."""
        if not secret.startswith(API_KEY_PREFIX):
            return None
        async with self._database.transaction() as connection:
            good = (
                select(api_keys)
                .where(
                    api_keys.c.secret_sha256 == digest(secret),
                    api_keys.c.revoke_time.is_(None),
                    or_(api_keys.c.expire_time.is_(None), api_keys.c.expire_time > func.now()),
                )
                .with_for_update()
            )
            row = (await connection.execute(good)).one_or_none()
            if row is None:
                return None
            key = _key(row._mapping)
            user = await users.find(connection, key.user_id)
            if user is None or user.disabled:
                return None
            used = update(api_keys).where(
                api_keys.c.id == key.id,
                or_(
                    api_keys.c.last_use_time.is_(None), api_keys.c.last_use_time < func.now() - _LAST_USE_STEP
                ),
            )
            await connection.execute(used.values(last_use_time=func.now()))
        roles = [Role[role] for role in key.roles if Role[role] <= user.highest_role]
        return Bearer(key, user, roles)


async def _require_own(connection: AsyncConnection, principal: Principal, id: str, name: str) -> users.User:
    """A user whose keys are the principal's to make: oneself, or a service account of a group it manages.

    Raises:
        NotFound: it is another's, or there is none.
    """
    user = await users.find(connection, id, lock=True)
    if user is None or user.delete_time is not None or not await _has_keys_of(connection, principal, user):
        raise NotFound.named(name)
    return user


async def _has_keys_of(connection: AsyncConnection, principal: Principal, user: users.User) -> bool:
    if may_see(principal, user.id):
        return True
    return user.owner_group is not None and await groups.manages(connection, principal, user.owner_group)


def _granted(principal: Principal, user: users.User, wanted: Sequence[Role]) -> set[str]:
    """The roles of a new key: none above its user's, nor above those of who makes it."""
    highest = min(user.highest_role, max(principal.roles, default=0))
    too_high = [role.name for role in wanted if role > highest]
    if too_high:
        raise PermissionDenied(
            f"api_key.roles: {', '.join(too_high)} is more than may be granted", reason="ROLE_TOO_HIGH"
        )
    if wanted:
        return {role.name for role in wanted}
    return {role for role in user.roles if Role[role] <= highest}


async def _find(connection: AsyncConnection, user: str, id: str, name: str) -> ApiKey:
    row = None
    try:
        key_id = str(uuid.UUID(id))
    except ValueError:
        key_id = ""
    if key_id:
        query = select(api_keys).where(api_keys.c.user_id == user, api_keys.c.id == key_id).with_for_update()
        row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound.named(name)
    return _key(row._mapping)


def _key(row: Any) -> ApiKey:
    return ApiKey(**{field.name: row[field.name] for field in fields(ApiKey)})
