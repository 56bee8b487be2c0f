"""People whom a provider has proven, such as a facility: who they are here, and as what they log in.

The gateway asks the provider and vouches for what it said. That is all it vouches for: who may log in, and
with which role and groups, is decided here.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from services.storage.database import Caller, Database, Mutation
from services.storage.fields import readable, text
from services.storage.identity import users
from services.storage.identity.accounts import RESERVED
from services.storage.identity.endings import end_sessions
from services.storage.identity.sessions import Origin, Sessions, Tokens
from services.storage.identity.tables import identities
from services.storage.identity.tables import users as users_table
from services.storage.identity.users import User
from services.storage.lists import Paging, page
from services.storage.settings import ProviderSettings

_DISABLED = "USER_DISABLED"
_MAX_NAME_CHARACTERS = 40
_MAX_SUBJECT_CHARACTERS = 255
_MAX_GROUP_CHARACTERS = 200


@dataclass(frozen=True)
class Proof:
    """What a provider said about somebody."""

    provider: str
    subject: str
    username: str
    display_name: str
    verified_email: str
    groups: Sequence[str]


@dataclass(frozen=True)
class Identity:
    """A user's account at a provider."""

    id: str
    user_id: str
    provider: str
    subject: str
    create_time: datetime
    last_use_time: datetime | None

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.IDENTITY.format(user=self.user_id, identity=self.id)


class Providers:
    """The use cases.

    Args:
        database: of the service.
        settings: whom each provider may log in.
        sessions: what a log-in begins.
        offered: whether providers count here: in mode "token".
    """

    def __init__(
        self, database: Database, settings: dict[str, ProviderSettings], sessions: Sessions, *, offered: bool
    ) -> None:
        self._database = database
        self._settings = settings if offered else {}
        self._sessions = sessions

    async def log_in(self, caller: Caller, proof: Proof, origin: Origin) -> Tokens:
        """Begins a session of who the provider says it is; somebody new becomes a user, if that is allowed.

        Raises:
            PermissionDenied: they may not log in here, or are disabled.
            FailedPrecondition: the provider counts not here.
            InvalidArgument: the provider said something that nobody can be called.
            Aborted: the same person logs in for the first time elsewhere, at this moment.
        """
        try:
            return await self._log_in(caller, proof, origin)
        except PermissionDenied as refusal:
            # Of one who is disabled the name is known, and the attempt written down as theirs.
            if refusal.reason != _DISABLED:
                async with self._database.mutation(caller) as mutation:
                    mutation.record("users/-", outcome="PERMISSION_DENIED")
            raise

    async def _log_in(self, caller: Caller, proof: Proof, origin: Origin) -> Tokens:
        allowed = self._provider(proof.provider)
        if not proof.subject:
            raise InvalidArgument.field("subject", proof.subject, "what the provider calls the account")
        text("subject", proof.subject, _MAX_SUBJECT_CHARACTERS)
        _require_allowed(allowed, proof)
        groups = _groups(allowed, proof.groups)
        async with self._database.mutation(caller) as mutation:
            user_id = await self._user_id(mutation, allowed, proof)
        themselves = caller.as_user(user_id)
        async with self._database.mutation(themselves) as mutation:
            user = await users.find(mutation.connection, user_id, lock=True)
            tokens = None
            if user is None or user.disabled:
                mutation.record(names.USER.format(user=user_id), outcome="PERMISSION_DENIED")
            else:
                tokens = await self._sessions.begin(mutation.connection, user, proof.provider, origin, groups)
                mutation.record(tokens.session.name)
        # Raised here, for the attempt is to be in the audit log.
        if tokens is None:
            raise PermissionDenied(f"the user {user_id!r} is disabled", reason=_DISABLED)
        return tokens

    async def _user_id(self, mutation: Mutation, allowed: ProviderSettings, proof: Proof) -> str:
        """Of the user whose identity this is, made if there is none."""
        connection = mutation.connection
        mine = (identities.c.provider == proof.provider, identities.c.subject == proof.subject)
        used = update(identities).where(*mine).values(last_use_time=func.now()).returning(identities)
        known = (await connection.execute(used)).one_or_none()
        if known is not None:
            return str(known.user_id)
        if not allowed.provisioning:
            raise PermissionDenied(
                f"nobody here is {proof.subject!r} of {proof.provider!r}; ask an administrator to link it",
                reason="IDENTITY_NOT_LINKED",
            )
        user = await _new_user(connection, allowed, proof)
        values = {
            "id": str(uuid.uuid4()),
            "user_id": user.id,
            "provider": proof.provider,
            "subject": proof.subject,
            "last_use_time": func.now(),
        }
        made = upsert(identities).values(values).on_conflict_do_nothing().returning(identities)
        row = (await connection.execute(made)).one_or_none()
        if row is None:
            raise Aborted("the same person has just logged in for the first time; try again")
        mutation.record(_identity(row._mapping).name)
        mutation.record(user.name, etag_after=user.etag)
        return user.id

    async def link(self, caller: Caller, parent: str, provider: str, subject: str) -> Identity:
        """Lets an account at a provider log in as a user.

        Raises:
            NotFound: there is no such user.
            AlreadyExists: the account is somebody's.
            FailedPrecondition: the provider counts not here.
            InvalidArgument: a field is not as it may be.
        """
        user_id = names.USER.parse(parent, "parent")["user"]
        self._provider(provider)
        if not subject:
            raise InvalidArgument.field("subject", subject, "what the provider calls the account")
        values = {
            "id": str(uuid.uuid4()),
            "user_id": user_id,
            "provider": provider,
            "subject": text("subject", subject, _MAX_SUBJECT_CHARACTERS),
        }
        async with self._database.mutation(caller) as mutation:
            if await users.find(mutation.connection, user_id) is None:
                raise NotFound.named(parent)
            made = upsert(identities).values(values).on_conflict_do_nothing().returning(identities)
            row = (await mutation.connection.execute(made)).one_or_none()
            if row is None:
                raise AlreadyExists(f"{subject!r} of {provider!r} is linked with a user")
            identity = _identity(row._mapping)
            mutation.record(identity.name)
        return identity

    async def page(self, principal: Principal, parent: str, paging: Paging) -> tuple[list[Identity], str]:
        """One page of a user's identities, newest first, and the token of the next.

        Raises:
            NotFound: another user's, for anybody but an administrator.
        """
        user = names.USER.parse(parent, "parent")["user"]
        users.require_own(principal, user, parent)
        query = select(identities).where(identities.c.user_id == user)
        async with self._database.transaction() as connection:
            rows, token = await page(connection, query, identities.c.seq, paging, "identities", parent)
        return [_identity(row._mapping) for row in rows], token

    async def unlink(self, caller: Caller, name: str) -> None:
        """Deletes an identity, and ends the user's sessions.

        Raises:
            NotFound: there is none.
        """
        ids = names.IDENTITY.parse(name)
        try:
            identity_id = str(uuid.UUID(ids["identity"]))
        except ValueError:
            raise NotFound.named(name) from None
        gone = delete(identities).where(identities.c.id == identity_id, identities.c.user_id == ids["user"])
        async with self._database.mutation(caller) as mutation:
            if (await mutation.connection.execute(gone)).rowcount == 0:
                raise NotFound.named(name)
            await end_sessions(mutation.connection, ids["user"])
            mutation.record(name)

    def _provider(self, provider: str) -> ProviderSettings:
        try:
            return self._settings[provider]
        except KeyError:
            raise FailedPrecondition(
                f"provider: got {provider!r}; allowed are those of "
                f"accounts.providers: {', '.join(self._settings) or 'none'}",
                reason="UNKNOWN_PROVIDER",
            ) from None


def _require_allowed(allowed: ProviderSettings, proof: Proof) -> None:
    if allowed.allowed_groups and not set(allowed.allowed_groups).intersection(proof.groups):
        raise PermissionDenied(
            f"at {proof.provider!r} you are in no group that may log in here", reason="GROUP_NOT_ALLOWED"
        )
    domain = proof.verified_email.rpartition("@")[2].lower()
    if allowed.allowed_domains and domain not in {item.lower() for item in allowed.allowed_domains}:
        raise PermissionDenied(
            f"{proof.provider!r} vouches for no e-mail address of a domain that may log in here",
            reason="DOMAIN_NOT_ALLOWED",
        )


def _groups(allowed: ProviderSettings, told: Sequence[str]) -> list[str]:
    """The provider's groups, as they are called here; who may name a group there is nobody here."""
    found = set()
    for group in told:
        if group in allowed.groups:
            found.add(allowed.groups[group])
        elif allowed.all_groups and group.isprintable() and 0 < len(group) <= _MAX_GROUP_CHARACTERS:
            found.add(group)
    if len(found) > users.MAX_GROUPS:
        raise FailedPrecondition(
            f"the user is in {len(found)} groups, more than {users.MAX_GROUPS}", reason="TOO_MANY_GROUPS"
        )
    return sorted(found)


async def _new_user(connection: AsyncConnection, allowed: ProviderSettings, proof: Proof) -> User:
    """A user by a name that is still free: never one who is there already, whatever they are called."""
    wanted = re.sub(r"[^a-z0-9._-]+", "-", proof.username.lower()).strip("-._")[:_MAX_NAME_CHARACTERS]
    wanted = wanted or proof.provider
    values = {
        "display_name": readable(proof.display_name, 200),
        "email": readable(proof.verified_email, 320),
        "roles": [allowed.role],
        "groups": [],
    }
    for name in (wanted, f"{wanted}-{proof.provider}"[:54], f"{wanted}-{secrets.token_hex(4)}"):
        if name in RESERVED:
            continue
        made = upsert(users_table).values({"id": name, **values}).on_conflict_do_nothing()
        if (await connection.execute(made)).rowcount == 1:
            user = await users.find(connection, name)
            assert user is not None  # noqa: S101 (just made)
            return user
    raise Aborted("no name was free; try again")


def _identity(row: Any) -> Identity:
    return Identity(**{field.name: row[field.name] for field in fields(Identity)})
