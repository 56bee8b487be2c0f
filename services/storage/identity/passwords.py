"""Passwords: what they have to be, their hashes (argon2id, RFC 9106), and the time that checking takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import InvalidArgument, ResourceExhausted, Violation
from services.storage.identity.tables import passwords

Result = TypeVar("Result")

MAX_CHARACTERS = 1024
# Each hash takes a tenth of a second and 64 MiB; more at a time would take these from everything else.
_PARALLEL = 2
_MAX_WAITING = 64


class Passwords:
    """Makes and checks hashes, in threads, few at a time."""

    def __init__(self, min_characters: int) -> None:
        self._min_characters = min_characters
        self._hasher = PasswordHasher()
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._waiting = 0
        # Of a password that nobody has: to check one against takes as long as against any other.
        self._nobodys = self._hasher.hash("")

    def require_good(self, field: str, password: str, user_id: str) -> None:
        """Raises InvalidArgument, which never shows it, unless a user may have this password."""
        if not self._min_characters <= len(password) <= MAX_CHARACTERS:
            problem = f"got {len(password)} characters; allowed: {self._min_characters} to {MAX_CHARACTERS}"
        elif password.casefold() == user_id.casefold():
            problem = "it is the name of the user"
        else:
            return
        raise InvalidArgument(f"{field}: {problem}", violations=[Violation(field, problem)])

    async def hash(self, password: str) -> str:
        """A new hash.

        Raises:
            ResourceExhausted: too many are being made.
        """
        return await self._in_thread(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether a password is the one; without a hash it is not, which takes as long to find out.

        Raises:
            ResourceExhausted: too many are being checked.
        """
        holds = await self._in_thread(lambda: self._holds(stored or self._nobodys, password))
        return holds and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _holds(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password[: MAX_CHARACTERS + 1])
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        if self._waiting >= _MAX_WAITING:
            raise ResourceExhausted(
                "too many passwords are being checked", reason="TOO_MANY_LOG_INS", retry_after_seconds=2.0
            )
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


async def stored_hash(connection: AsyncConnection, user_id: str) -> str | None:
    """The hash of a user's password; None for one who has none."""
    found: str | None = await connection.scalar(
        select(passwords.c.hash).where(passwords.c.user_id == user_id)
    )
    return found


async def store_hash(connection: AsyncConnection, user_id: str, new: str) -> None:
    """Gives a user a password in the place of the one before."""
    statement = insert(passwords).values(user_id=user_id, hash=new)
    replaced = {"hash": statement.excluded.hash, "change_time": func.now()}
    await connection.execute(
        statement.on_conflict_do_update(index_elements=[passwords.c.user_id], set_=replaced)
    )
