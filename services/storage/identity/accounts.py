"""Local accounts: people who prove themselves by a password that is kept here."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Role
from guidehall.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from services.storage.database import Caller, Database
from services.storage.fields import identifier, text
from services.storage.identity import admissions, throttle, users
from services.storage.identity.endings import end_sessions
from services.storage.identity.passwords import Passwords, store_hash, stored_hash
from services.storage.identity.secret_texts import digest, mint
from services.storage.identity.sessions import Origin, Sessions, Tokens
from services.storage.identity.tables import attempts, invitations
from services.storage.identity.tables import users as users_table
from services.storage.identity.throttle import Throttle, TooManyAttempts
from services.storage.identity.users import User
from services.storage.lists import Paging, page
from services.storage.settings import AccountSettings

INVITATION_PREFIX = "ghi_"
_PASSWORD = "password"  # noqa: S105 (the name of a way to log in)
# Whoever had one of these names would own what the platform's parts, or one machine's user, have made.
RESERVED = frozenset({"local", "guest", "storage", "trainer", "inference", "gateway", "worker", "admin"})
_NAME = re.compile(r"[^\x00-\x1f]{1,128}")


@dataclass(frozen=True)
class Registration:
    """What somebody says who wants an account."""

    user_id: str
    password: str
    display_name: str
    email: str
    invitation: str


@dataclass(frozen=True)
class Invitation:
    """One invitation, without its secret."""

    id: str
    note: str
    roles: Sequence[str]
    groups: Sequence[str]
    create_time: datetime
    expire_time: datetime

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.INVITATION.format(invitation=self.id)


@dataclass(frozen=True)
class NewInvitation:
    """What is wanted of one; without a time it holds for as long as the settings say."""

    note: str
    roles: Sequence[Role]
    groups: Sequence[str]
    expire_time: datetime | None


class Accounts:
    """The use cases.

    Args:
        database: of the service.
        settings: what is allowed.
        sessions: what a log-in begins.
        offered: whether local accounts may log in here: in mode "token".
    """

    def __init__(
        self, database: Database, settings: AccountSettings, sessions: Sessions, *, offered: bool
    ) -> None:
        self._database = database
        self._settings = settings
        self._sessions = sessions
        self._offered = offered
        self._passwords = Passwords(settings.min_password_characters)
        self._throttle = Throttle(database, settings)

    def options(self) -> tuple[list[str], str]:
        """Ways to log in, and whether people may register."""
        return ([_PASSWORD], self._settings.registration) if self._offered else ([], "off")

    async def log_in(self, caller: Caller, user_id: str, password: str, origin: Origin) -> Tokens:
        """Begins a session of who has the password.

        Raises:
            Unauthenticated: there is no such user, it is not the password, or the user is disabled: all the
                same to who asks, and after the same time.
            ResourceExhausted: too many attempts have failed.
        """
        self._require_offered()
        attempt = await self._attempt(caller, _PASSWORD, user_id, origin)
        async with self._database.transaction() as connection:
            name = user_id if _NAME.fullmatch(user_id) else ""
            user = await users.find(connection, name)
            stored = await stored_hash(connection, name)
        if user is None or user.disabled:
            stored = None
        holds = await self._passwords.verify(stored, password)
        if user is None or stored is None or not holds:
            await self._write_down(caller, user_id, "UNAUTHENTICATED")
            raise Unauthenticated("the name or the password is wrong", reason="BAD_LOG_IN")
        fresh = await self._passwords.hash(password) if self._passwords.is_outdated(stored) else stored
        themselves = caller.as_user(user.id)
        async with self._database.mutation(themselves) as mutation:
            # As it is now: in the meantime the password was changed, or the user disabled.
            user = await users.find(mutation.connection, user.id, lock=True)
            current = None if user is None else await stored_hash(mutation.connection, user.id)
            if user is None or user.disabled or current != stored:
                raise Unauthenticated("the name or the password is wrong", reason="BAD_LOG_IN")
            if fresh != stored:
                await store_hash(mutation.connection, user.id, fresh)
            await throttle.succeeded(mutation.connection, attempt)
            tokens = await self._sessions.begin(mutation.connection, user, _PASSWORD, origin)
            mutation.record(tokens.session.name)
        return tokens

    async def change_password(self, caller: Caller, current: str, new: str, origin: Origin) -> Tokens:
        """Gives the caller another password; all sessions end and a new one begins.

        Raises:
            PermissionDenied: `current` is not the password.
            FailedPrecondition: the caller logs in in another way.
            InvalidArgument: the new one is not as it may be.
            ResourceExhausted: too many attempts have failed.
        """
        self._require_offered()
        user_id = caller.principal.subject
        self._passwords.require_good("new_password", new, user_id)
        attempt = await self._attempt(caller, _PASSWORD, user_id, origin)
        async with self._database.transaction() as connection:
            stored = await stored_hash(connection, user_id)
        if stored is None:
            raise FailedPrecondition("this user has no password here", reason="NO_PASSWORD")
        if not await self._passwords.verify(stored, current):
            await self._write_down(caller, user_id, "PERMISSION_DENIED")
            raise PermissionDenied("current_password: it is not the password", reason="WRONG_PASSWORD")
        fresh = await self._passwords.hash(new)
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            user = await users.find(connection, user_id, lock=True)
            if user is None or user.disabled or await stored_hash(connection, user_id) != stored:
                raise PermissionDenied("current_password: it is not the password", reason="WRONG_PASSWORD")
            await store_hash(connection, user_id, fresh)
            await throttle.succeeded(connection, attempt)
            await end_sessions(connection, user_id)
            tokens = await self._sessions.begin(connection, user, _PASSWORD, origin)
            mutation.record(user.name)
        return tokens

    async def set_password(self, caller: Caller, name: str, password: str) -> None:
        """Gives a user a password, the first or another; all sessions end.

        Raises:
            NotFound: there is no such user.
            InvalidArgument: it is not as it may be.
        """
        self._require_offered()
        user_id = names.USER.parse(name)["user"]
        self._passwords.require_good("password", password, user_id)
        fresh = await self._passwords.hash(password)
        async with self._database.mutation(caller) as mutation:
            user = await users.find(mutation.connection, user_id, lock=True)
            if user is None:
                raise NotFound.named(name)
            users.require_person(user)
            await store_hash(mutation.connection, user_id, fresh)
            await end_sessions(mutation.connection, user_id)
            mutation.record(name)

    async def register(self, caller: Caller, wanted: Registration, origin: Origin) -> User:
        """Makes an account for who asks; its roles are those of the invitation, or the usual one.

        Raises:
            PermissionDenied: nobody registers here, or not without an invitation that holds.
            AlreadyExists: the name is taken.
            InvalidArgument: a field is not as it may be.
            ResourceExhausted: too many attempts have failed.
        """
        self._require_offered()
        if self._settings.registration == "off":
            raise PermissionDenied("nobody registers here; ask an administrator", reason="REGISTRATION_OFF")
        user_id = identifier("user_id", wanted.user_id)
        if user_id in RESERVED:
            raise InvalidArgument.field("user_id", user_id, "a name that the platform does not use itself")
        self._passwords.require_good("password", wanted.password, user_id)
        values = {
            "id": user_id,
            "display_name": text("display_name", wanted.display_name, 200),
            "email": text("email", wanted.email, 320),
        }
        attempt = await self._attempt(caller, "register", "", origin)
        fresh = await self._passwords.hash(wanted.password)
        themselves = caller.as_user(user_id)
        async with self._database.mutation(themselves) as mutation:
            connection = mutation.connection
            values |= await self._invited(connection, wanted.invitation)
            made = upsert(users_table).values(values).on_conflict_do_nothing().returning(users_table.c.id)
            if (await connection.execute(made)).one_or_none() is None:
                name = names.USER.format(user=user_id)
                raise AlreadyExists(f"{name} exists", metadata={"resource": name})
            user = await users.find(connection, user_id)
            assert user is not None  # noqa: S101 (just made)
            await store_hash(connection, user_id, fresh)
            await throttle.succeeded(connection, attempt)
            mutation.record(user.name, etag_after=user.etag)
        return user

    async def _invited(self, connection: AsyncConnection, secret: str) -> dict[str, Any]:
        """What somebody gets who registers; an invitation is used up by it."""
        usual = {"roles": [self._settings.new_user_role], "groups": []}
        if not secret and self._settings.registration == "on":
            return usual
        used = delete(invitations).where(
            invitations.c.secret_sha256 == digest(secret), invitations.c.expire_time > func.now()
        )
        row = (await connection.execute(used.returning(invitations))).one_or_none()
        if row is None:
            raise PermissionDenied("invitation: none that holds", reason="BAD_INVITATION")
        return {"roles": row.roles or usual["roles"], "groups": row.groups}

    async def invite(self, caller: Caller, new: NewInvitation) -> tuple[Invitation, str]:
        """Makes an invitation.

        Returns:
            The invitation, and its secret, which is nowhere else.

        Raises:
            FailedPrecondition: nobody registers here.
            PermissionDenied: with a role that the caller does not have.
            InvalidArgument: a field is not as it may be.
        """
        self._require_offered()
        if self._settings.registration == "off":
            raise FailedPrecondition("accounts.registration is off", reason="REGISTRATION_OFF")
        too_high = [role.name for role in new.roles if not caller.principal.has(role)]
        if too_high:
            raise PermissionDenied(
                f"invitation.roles: {', '.join(too_high)} is more than may be granted", reason="ROLE_TOO_HIGH"
            )
        now = datetime.now(UTC)
        if new.expire_time is not None and new.expire_time <= now:
            raise InvalidArgument.field(
                "invitation.expire_time", new.expire_time.isoformat(), "a time to come"
            )
        usual = now + timedelta(seconds=self._settings.invitation_seconds)
        if len(new.groups) > users.MAX_GROUPS:
            raise InvalidArgument.field(
                "invitation.groups", f"{len(new.groups)} groups", f"at most {users.MAX_GROUPS}"
            )
        secret = mint(INVITATION_PREFIX)
        values = {
            "id": str(uuid.uuid4()),
            "note": text("invitation.note", new.note, 200),
            "roles": sorted({role.name for role in new.roles}),
            "groups": sorted({text("invitation.groups", group, 200) for group in new.groups}),
            "secret_sha256": digest(secret),
            "expire_time": new.expire_time or usual,
        }
        async with self._database.mutation(caller) as mutation:
            made = insert(invitations).values(values).returning(invitations)
            row = (await mutation.connection.execute(made)).one()._mapping
            invitation = _invitation(row)
            mutation.record(invitation.name)
        return invitation, secret

    async def invitations(self, paging: Paging) -> tuple[list[Invitation], str]:
        """One page of those that nobody has used yet, newest first, and the token of the next."""
        query = select(invitations).where(invitations.c.expire_time > func.now())
        async with self._database.transaction() as connection:
            rows, token = await page(connection, query, invitations.c.seq, paging, "invitations")
        return [_invitation(row._mapping) for row in rows], token

    async def withdraw(self, caller: Caller, name: str) -> None:
        """Deletes an invitation.

        Raises:
            NotFound: there is none, or somebody has used it.
        """
        text_id = names.INVITATION.parse(name)["invitation"]
        missing = NotFound.named(name)
        try:
            gone = delete(invitations).where(invitations.c.id == str(uuid.UUID(text_id)))
        except ValueError:
            raise missing from None
        async with self._database.mutation(caller) as mutation:
            if (await mutation.connection.execute(gone)).rowcount == 0:
                raise missing
            mutation.record(name)

    async def forget(self, connection: AsyncConnection) -> None:
        """Deletes what counts no longer: attempts, invitations."""
        # Calls that are limited in number are counted in the same table.
        longest = max(self._settings.attempt_seconds, admissions.MOST_SECONDS)
        over = func.now() - timedelta(seconds=longest)
        await connection.execute(delete(attempts).where(attempts.c.since < over))
        await connection.execute(delete(invitations).where(invitations.c.expire_time < func.now()))

    def _require_offered(self) -> None:
        if not self._offered:
            raise FailedPrecondition(
                'local accounts are for auth.mode "token", and storage needs its key', reason="NO_ACCOUNTS"
            )

    async def _attempt(self, caller: Caller, what: str, account: str, origin: Origin) -> throttle.Attempt:
        """Counts an attempt; the first one too many is written down."""
        try:
            return await self._throttle.attempt(what, account, origin.address)
        except TooManyAttempts as refusal:
            if refusal.first:
                await self._write_down(caller, account, "RESOURCE_EXHAUSTED")
            raise

    async def _write_down(self, caller: Caller, account: str, outcome: str) -> None:
        async with self._database.mutation(caller) as mutation:
            known = _NAME.fullmatch(account) and await users.find(mutation.connection, account)
            # What nobody is called may be a password in the wrong place.
            resource = names.USER.format(user=account) if known else "users/-"
            mutation.record(resource, outcome=outcome)


def _invitation(row: Mapping[Any, Any]) -> Invitation:
    return Invitation(**{name: row[name] for name in Invitation.__dataclass_fields__})
