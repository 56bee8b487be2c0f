"""Attempts to log in, counted for each account and each address before a password is looked at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import case, delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import ResourceExhausted
from services.storage.database import Database
from services.storage.identity.tables import attempts
from services.storage.settings import AccountSettings


class TooManyAttempts(ResourceExhausted):
    """Too many have failed.

    Attributes:
        first: this is the first one too many, which is worth writing down.
    """

    def __init__(self, wait_seconds: float, *, first: bool) -> None:
        super().__init__(
            "too many attempts have failed", reason="TOO_MANY_ATTEMPTS", retry_after_seconds=wait_seconds
        )
        self.first = first


@dataclass(frozen=True)
class Attempt:
    """One that was let through."""

    account: bytes
    address: bytes


class Throttle:
    """Lets so many attempts through in a while. Names that nobody has are counted like those of accounts."""

    def __init__(self, database: Database, settings: AccountSettings) -> None:
        self._database = database
        self._settings = settings
        self._span = timedelta(seconds=settings.attempt_seconds)

    async def attempt(self, what: str, account: str, address: str) -> Attempt:
        """Counts an attempt as a failure, which `succeeded` takes back.

        Args:
            what: is tried, such as "password".
            account: its name, as it was typed; empty where there is none yet.
            address: of who tries; empty where it is not known.

        Raises:
            TooManyAttempts: it says for how long to wait.
        """
        counted = Attempt(_key(what, "account", account), _key(what, "address", address))
        limits = (
            (counted.account, account, self._settings.max_account_attempts),
            (counted.address, address, self._settings.max_address_attempts),
        )
        wait, first = 0.0, False
        # Committed before anything is looked at: who comes many times at once is counted so many times.
        async with self._database.transaction() as connection:
            for key, known, most in limits:
                if not known:
                    continue
                counts, left = await count(connection, key, self._span)
                if counts > most:
                    wait, first = max(wait, left), first or counts == most + 1
        if wait > 0:
            raise TooManyAttempts(wait, first=first)
        return counted


async def count(connection: AsyncConnection, key: bytes, span: timedelta) -> tuple[int, float]:
    """Counts one; how many there are since the first, and for how many seconds they count."""
    over = attempts.c.since < func.now() - span
    counted = (
        insert(attempts)
        .values(key=key, count=1)
        .on_conflict_do_update(
            index_elements=[attempts.c.key],
            set_={
                "count": case((over, 1), else_=attempts.c.count + 1),
                "since": case((over, func.now()), else_=attempts.c.since),
            },
        )
    )
    row = (await connection.execute(counted.returning(attempts))).one()
    left = (row._mapping["since"] + span - datetime.now(UTC)).total_seconds()
    return row._mapping["count"], max(1.0, left)


async def succeeded(connection: AsyncConnection, attempt: Attempt) -> None:
    """Forgets the failures of an account; those of an address are others' too, so only this one."""
    await connection.execute(delete(attempts).where(attempts.c.key == attempt.account))
    one_less = update(attempts).where(attempts.c.key == attempt.address, attempts.c.count > 0)
    await connection.execute(one_less.values(count=attempts.c.count - 1))


def _key(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()
