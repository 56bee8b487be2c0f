"""Sessions: what begins when somebody has proven who they are, in whatever way, and goes on by refreshes.

A session's holder has an access token, which every server verifies by itself until it expires, and a refresh
token, which is good for one refresh. A refresh token that was used and comes again was copied: then the
session ends, whoever has it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal, Role, TokenIssuer
from guidehall.core.errors import FailedPrecondition, NotFound, Unauthenticated
from services.storage.database import Caller, Database, Mutation
from services.storage.fields import readable
from services.storage.identity import users
from services.storage.identity.endings import end_session, end_sessions
from services.storage.identity.secret_texts import digest, mint
from services.storage.identity.tables import refresh_tokens, sessions
from services.storage.identity.users import User
from services.storage.lists import Paging, page
from services.storage.settings import AccountSettings

REFRESH_PREFIX = "ghr_"
_REFRESH_TOKEN = re.compile(REFRESH_PREFIX + r"[A-Za-z0-9_-]{43}")
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Origin:
    """What the program calls itself that somebody logs in with, and where it calls from."""

    client: str
    address: str

    def values(self) -> dict[str, str]:
        """As columns: words of strangers, so only what people can read, and not too much of it."""
        return {
            "client": readable(self.client, _SHOWN_CHARACTERS),
            "address": readable(self.address, _SHOWN_CHARACTERS),
        }


@dataclass(frozen=True)
class Session:
    """One session."""

    id: str
    user_id: str
    method: str
    groups: Sequence[str]
    client: str
    address: str
    create_time: datetime
    last_use_time: datetime
    expire_time: datetime
    revoke_time: datetime | None

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.SESSION.format(user=self.user_id, session=self.id)


@dataclass(frozen=True)
class Tokens:
    """What its holder gets.

    Attributes:
        refresh_token: empty where a refresh was repeated at once.
    """

    session: Session
    user: User
    access_token: str
    access_expire_time: datetime
    refresh_token: str


class Sessions:
    """The use cases.

    Args:
        database: of the service.
        settings: how long things last.
        issuer: signs access tokens; None where storage has no key.
    """

    def __init__(self, database: Database, settings: AccountSettings, issuer: TokenIssuer | None) -> None:
        self._database = database
        self._settings = settings
        self._issuer = issuer

    async def begin(
        self,
        connection: AsyncConnection,
        user: User,
        method: str,
        origin: Origin,
        groups: Sequence[str] = (),
    ) -> Tokens:
        """A new session of a user who has been proven, such as by "password".

        Args:
            connection: of the transaction that proved it.
            user: as stored.
            method: of the proof.
            origin: where the user calls from.
            groups: count in this session besides the user's own.

        Raises:
            FailedPrecondition: storage has no key to sign with.
        """
        now = await _now(connection)
        values = {
            "id": str(uuid.uuid4()),
            "user_id": user.id,
            "method": method,
            "groups": sorted(set(groups)),
            "expire_time": self._expiry(now, now),
            **origin.values(),
        }
        row = (await connection.execute(insert(sessions).values(values).returning(sessions))).one()
        session = _session(row._mapping)
        return self._tokens(session, user, now, await _new_token(connection, session))

    async def refresh(self, caller: Caller, secret: str, origin: Origin) -> Tokens:
        """The next tokens of a session.

        Raises:
            Unauthenticated: the token is none, the session has ended, or its user is disabled. One that was
                used before ends the session.
        """
        refusal = "the session has ended; log in again"
        async with self._database.mutation(caller) as mutation:
            tokens = await self._refresh(mutation, secret, origin)
        # Raised here, for what was found out is to be committed.
        if tokens is None:
            raise Unauthenticated(refusal, reason="SESSION_ENDED")
        return tokens

    async def _refresh(self, mutation: Mutation, secret: str, origin: Origin) -> Tokens | None:
        connection = mutation.connection
        found = await _find_by_token(connection, secret)
        if found is None:
            return None
        session, used = found
        now = await _now(connection)
        if session.revoke_time is not None or session.expire_time <= now:
            return None
        user = await users.find(connection, session.user_id)
        if user is None or user.disabled:
            await end_session(connection, session.id)
            return None
        if used is None:
            await connection.execute(
                update(refresh_tokens)
                .where(refresh_tokens.c.secret_sha256 == digest(secret))
                .values(use_time=now)
            )
            changed = update(sessions).where(sessions.c.id == session.id).returning(sessions)
            values = {
                "last_use_time": now,
                "expire_time": self._expiry(session.create_time, now),
                **origin.values(),
            }
            session = _session((await connection.execute(changed.values(values))).one()._mapping)
            return self._tokens(session, user, now, await _new_token(connection, session))
        if now - used <= timedelta(seconds=self._settings.refresh_grace_seconds):
            # Without a refresh token: a thief who was that quick gets no session out of it.
            return self._tokens(session, user, now, "")
        await end_session(connection, session.id)
        mutation.record(session.name, outcome="UNAUTHENTICATED")
        return None

    async def log_out(self, caller: Caller, secret: str) -> None:
        """Ends the session of a refresh token; nothing happens when there is none."""
        async with self._database.mutation(caller) as mutation:
            found = await _find_by_token(mutation.connection, secret)
            if found is not None and found[0].revoke_time is None:
                await end_session(mutation.connection, found[0].id)
                mutation.record(found[0].name)

    async def page(self, principal: Principal, parent: str, paging: Paging) -> tuple[list[Session], str]:
        """One page of a user's sessions, newest first, and the token of the next.

        Raises:
            NotFound: another user's, for anybody but an administrator.
        """
        user = names.USER.parse(parent, "parent")["user"]
        users.require_own(principal, user, parent)
        query = select(sessions).where(sessions.c.user_id == user)
        async with self._database.transaction() as connection:
            rows, token = await page(connection, query, sessions.c.seq, paging, "sessions", parent)
        return [_session(row._mapping) for row in rows], token

    async def revoke(self, caller: Caller, name: str) -> Session:
        """Ends a session; once more changes nothing.

        Raises:
            NotFound: there is none for the caller.
        """
        ids = names.SESSION.parse(name)
        users.require_own(caller.principal, ids["user"], name)
        try:
            session_id = str(uuid.UUID(ids["session"]))
        except ValueError:
            raise NotFound.named(name) from None
        query = select(sessions).where(sessions.c.id == session_id, sessions.c.user_id == ids["user"])
        async with self._database.mutation(caller) as mutation:
            row = (await mutation.connection.execute(query.with_for_update())).one_or_none()
            if row is None:
                raise NotFound.named(name)
            if row.revoke_time is None:
                await end_session(mutation.connection, session_id)
                mutation.record(name)
            row = (await mutation.connection.execute(query)).one()
        return _session(row._mapping)

    async def revoke_all(self, caller: Caller, parent: str) -> int:
        """Ends every session of a user; how many there were.

        Raises:
            NotFound: another user's, for anybody but an administrator, or one that does not exist.
        """
        user = names.USER.parse(parent, "parent")["user"]
        users.require_own(caller.principal, user, parent)
        async with self._database.mutation(caller) as mutation:
            if await users.find(mutation.connection, user) is None:
                raise NotFound.named(parent)
            ended = await end_sessions(mutation.connection, user)
            mutation.record(parent)
        return ended

    async def forget(self, connection: AsyncConnection) -> None:
        """Deletes sessions that ended long ago, with all their tokens."""
        kept = timedelta(seconds=self._settings.ended_keep_seconds)
        ended = func.least(sessions.c.expire_time, sessions.c.revoke_time)
        await connection.execute(delete(sessions).where(ended < func.now() - kept))

    def _expiry(self, begun: datetime, now: datetime) -> datetime:
        last = begun + timedelta(seconds=self._settings.session_seconds)
        return min(last, now + timedelta(seconds=self._settings.idle_seconds))

    def _tokens(self, session: Session, user: User, now: datetime, refresh_token: str) -> Tokens:
        if self._issuer is None:
            raise FailedPrecondition(
                "auth.service_key_file is not set: no token can be signed", reason="NO_SIGNING_KEY"
            )
        seconds = min(self._settings.access_seconds, (session.expire_time - now).total_seconds())
        token = self._issuer.mint(
            user.id,
            "user",
            ttl_seconds=seconds,
            roles=[Role[role] for role in user.roles],
            groups=sorted({*user.all_groups, *session.groups}),
            writable_groups=sorted(user.writable_groups),
            jti=session.name,
        )
        return Tokens(session, user, token, datetime.now(UTC) + timedelta(seconds=seconds), refresh_token)


async def _new_token(connection: AsyncConnection, session: Session) -> str:
    secret = mint(REFRESH_PREFIX)
    values = {"secret_sha256": digest(secret), "session_id": session.id}
    await connection.execute(insert(refresh_tokens).values(values))
    return secret


async def _find_by_token(connection: AsyncConnection, secret: str) -> tuple[Session, datetime | None] | None:
    """The session of a refresh token, locked, and when the token was used."""
    if not _REFRESH_TOKEN.fullmatch(secret):
        return None
    token = select(refresh_tokens).where(refresh_tokens.c.secret_sha256 == digest(secret))
    known = (await connection.execute(token)).one_or_none()
    if known is None:
        return None
    locked = select(sessions).where(sessions.c.id == known.session_id).with_for_update()
    row = (await connection.execute(locked)).one_or_none()
    if row is None:
        return None
    # Looked at again behind the lock: another refresh may have come first.
    return _session(row._mapping), (await connection.execute(token)).one().use_time


async def _now(connection: AsyncConnection) -> datetime:
    """The database's clock, which all times here are measured by."""
    now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return now


def _session(row: Any) -> Session:
    return Session(**{field.name: row[field.name] for field in fields(Session)})
