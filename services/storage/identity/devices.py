"""Log-ins of programs that have no browser (RFC 8628): their users say in one where they have logged in that
the program may."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import (
    AppError,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from services.storage.database import Caller, Database, Mutation
from services.storage.identity import throttle, users
from services.storage.identity.secret_texts import digest, mint
from services.storage.identity.sessions import Origin, Sessions, Tokens
from services.storage.identity.tables import device_log_ins
from services.storage.identity.throttle import Throttle
from services.storage.settings import AccountSettings

DEVICE_PREFIX = "ghd_"
_METHOD = "device"
# No vowels, so no words, and nothing that looks like something else; 20^8 is 2.6e10.
_ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
_USER_CODE = re.compile(f"[{_ALPHABET}]{{8}}")
# RFC 8628, 3.5.
_SLOWER_SECONDS = 5.0


@dataclass(frozen=True)
class Codes:
    """What a log-in begins with."""

    device_code: str
    user_code: str
    expire_time: datetime
    interval_seconds: float


@dataclass(frozen=True)
class Asked:
    """What is to be approved."""

    client: str
    address: str
    create_time: datetime
    expire_time: datetime


class Devices:
    """The use cases.

    Args:
        database: of the service.
        settings: how long things last.
        sessions: what a log-in begins.
        offered: whether people log in here: in mode "token".
    """

    def __init__(
        self, database: Database, settings: AccountSettings, sessions: Sessions, *, offered: bool
    ) -> None:
        self._database = database
        self._settings = settings
        self._sessions = sessions
        self._offered = offered
        self._throttle = Throttle(database, settings)

    async def begin(self, origin: Origin) -> Codes:
        """A log-in that waits for somebody to approve it.

        Raises:
            FailedPrecondition: nobody logs in here.
            ResourceExhausted: too many were begun from one address.
        """
        if not self._offered:
            raise FailedPrecondition('people log in where auth.mode is "token"', reason="NO_ACCOUNTS")
        await self._throttle.attempt("device", "", origin.address)
        user_code = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        device_code = mint(DEVICE_PREFIX)
        values = {
            "device_code_sha256": digest(device_code),
            "user_code_sha256": digest(user_code),
            "expire_time": func.now() + timedelta(seconds=self._settings.device_seconds),
            "interval_seconds": self._settings.device_interval_seconds,
            **origin.values(),
        }
        async with self._database.transaction() as connection:
            made = insert(device_log_ins).values(values).returning(device_log_ins)
            row = (await connection.execute(made)).one()
        shown = f"{user_code[:4]}-{user_code[4:]}"
        return Codes(device_code, shown, row.expire_time, row.interval_seconds)

    async def find(self, caller: Caller, user_code: str) -> Asked:
        """What somebody is about to approve.

        Raises:
            PermissionDenied: the caller has no session.
            NotFound: nothing waits under this code.
            ResourceExhausted: the caller has tried too many.
        """
        _require_session(caller.principal)
        attempt = await self._throttle.attempt("device code", caller.principal.subject, "")
        async with self._database.transaction() as connection:
            row = await _waiting(connection, user_code)
            if row is not None:
                await throttle.succeeded(connection, attempt)
        if row is None:
            raise _no_such_code()
        return Asked(row.client, row.address, row.create_time, row.expire_time)

    async def decide(self, caller: Caller, user_code: str, *, approve: bool) -> None:
        """Lets the program log in as the caller, or not.

        Raises:
            PermissionDenied: the caller has no session.
            NotFound: nothing waits under this code.
            ResourceExhausted: the caller has tried too many.
        """
        principal = caller.principal
        _require_session(principal)
        attempt = await self._throttle.attempt("device code", principal.subject, "")
        async with self._database.mutation(caller) as mutation:
            row = await _waiting(mutation.connection, user_code)
            user = await users.find(mutation.connection, principal.subject)
            if row is None or user is None:
                raise _no_such_code()
            await throttle.succeeded(mutation.connection, attempt)
            decided = update(device_log_ins).where(_same(row))
            values = {
                "user_id": user.id,
                # Those that only the caller's session has; the user's own are looked up anew.
                "groups": sorted(principal.groups.difference(user.all_groups)),
                "approved": approve,
            }
            await mutation.connection.execute(decided.values(values))
            mutation.record(user.name, outcome="OK" if approve else "CANCELLED")

    async def finish(self, caller: Caller, device_code: str, origin: Origin) -> Tokens:
        """Begins the session, once somebody has approved it.

        Raises:
            FailedPrecondition: nobody has decided yet.
            ResourceExhausted: it was asked again too soon; from now on it is to wait longer.
            PermissionDenied: it was refused, or who approved it is disabled.
            Unauthenticated: it is over, or has been answered before.
        """
        async with self._database.transaction() as connection:
            outcome = await self._look(connection, device_code)
        if isinstance(outcome, AppError):
            raise outcome
        themselves = caller.as_user(outcome)
        async with self._database.mutation(themselves) as mutation:
            tokens = await self._finish(mutation, device_code, origin)
        # Raised here, for the attempt is to be in the audit log.
        if tokens is None:
            raise PermissionDenied(f"the user {outcome!r} is disabled", reason="USER_DISABLED")
        return tokens

    async def _look(self, connection: AsyncConnection, device_code: str) -> AppError | str:
        """Why there is no session yet, or who has approved one."""
        row = await _asked(connection, device_code)
        if row is None:
            return _over()
        if row.approved is False:
            await connection.execute(delete(device_log_ins).where(_same(row)))
            return PermissionDenied("the log-in was refused", reason="ACCESS_DENIED")
        if row.approved:
            return str(row.user_id)
        pace = timedelta(seconds=row.interval_seconds)
        too_soon = row.last_poll_time is not None and row.asked_time - row.last_poll_time < pace
        seconds = row.interval_seconds + (_SLOWER_SECONDS if too_soon else 0.0)
        noted = update(device_log_ins).where(_same(row))
        await connection.execute(noted.values(last_poll_time=row.asked_time, interval_seconds=seconds))
        if too_soon:
            return ResourceExhausted("asked again too soon", reason="SLOW_DOWN", retry_after_seconds=seconds)
        return FailedPrecondition("nobody has approved it yet", reason="AUTHORIZATION_PENDING")

    async def _finish(self, mutation: Mutation, device_code: str, origin: Origin) -> Tokens | None:
        """The session; None for a user who is disabled."""
        connection = mutation.connection
        row = await _asked(connection, device_code)
        if row is None or not row.approved:
            raise _over()
        # Once: who asks again was not the program, or is too late.
        await connection.execute(delete(device_log_ins).where(_same(row)))
        user = await users.find(connection, row.user_id, lock=True)
        if user is None or user.disabled:
            mutation.record(names.USER.format(user=row.user_id), outcome="PERMISSION_DENIED")
            return None
        tokens = await self._sessions.begin(connection, user, _METHOD, origin, row.groups)
        mutation.record(tokens.session.name)
        return tokens

    async def forget(self, connection: AsyncConnection) -> None:
        """Deletes what nobody has finished in time."""
        await connection.execute(delete(device_log_ins).where(device_log_ins.c.expire_time < func.now()))


def _require_session(principal: Principal) -> None:
    """Raises PermissionDenied for who comes with an API key or another token: such a credential may have
    fewer roles than the session that would be made of it, and an end of its own.

    The gateway, which acts for a session, looks by itself.
    """
    ids = (principal.credential_id or "").split("/")
    if principal.actor is None and not (len(ids) == 4 and ids[2] == "sessions"):
        raise PermissionDenied("only somebody with a session approves log-ins", reason="NO_SESSION")


async def _waiting(connection: AsyncConnection, user_code: str) -> Any:
    """The row of a log-in that nobody has decided about, locked; None without one."""
    code = re.sub(r"[\s-]", "", user_code.upper())
    if not _USER_CODE.fullmatch(code):
        return None
    query = select(device_log_ins).where(
        device_log_ins.c.user_code_sha256 == digest(code),
        device_log_ins.c.expire_time > func.now(),
        device_log_ins.c.approved.is_(None),
    )
    return (await connection.execute(query.with_for_update())).one_or_none()


async def _asked(connection: AsyncConnection, device_code: str) -> Any:
    """The row that a program asks about, locked, with the time; None when it is over."""
    query = select(device_log_ins, func.clock_timestamp().label("asked_time")).where(
        device_log_ins.c.device_code_sha256 == digest(device_code),
        device_log_ins.c.expire_time > func.now(),
    )
    return (await connection.execute(query.with_for_update(of=device_log_ins))).one_or_none()


def _same(row: Any) -> Any:
    return device_log_ins.c.device_code_sha256 == row.device_code_sha256


def _no_such_code() -> NotFound:
    return NotFound("user_code: nothing waits under this code, or no longer", reason="NO_SUCH_CODE")


def _over() -> Unauthenticated:
    return Unauthenticated("the log-in is over; begin it again", reason="EXPIRED_TOKEN")
