"""Calls that are limited in number, counted here for all gateways together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from guidehall.core.errors import InvalidArgument
from services.storage.database import Database
from services.storage.fields import text
from services.storage.identity.throttle import count

_MOST_CHARACTERS = 256
# The longest window.
MOST_SECONDS = 900.0


@dataclass(frozen=True)
class Call:
    """One of `most` calls that a caller may make in a window of time."""

    caller: str
    what: str
    most: int
    window_seconds: float

    def check(self) -> None:
        """Raises InvalidArgument when a field is not as it may be."""
        for field, value in (("caller", self.caller), ("what", self.what)):
            if not value:
                raise InvalidArgument.field(field, value, f"1 to {_MOST_CHARACTERS} characters")
            text(field, value, _MOST_CHARACTERS)
        if self.most < 1:
            raise InvalidArgument.field("most", self.most, "1 or more")
        if not 0 < self.window_seconds <= MOST_SECONDS:
            raise InvalidArgument.field(
                "window_seconds", self.window_seconds, f"above 0, at most {MOST_SECONDS:g}"
            )


class Admissions:
    """Counts calls in windows, each of which begins with its first call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def admit(self, call: Call) -> float | None:
        """Counts a call; None if it may be made, otherwise for how many seconds none may.

        Raises:
            InvalidArgument: a field is not as it may be.
        """
        call.check()
        key = hashlib.sha256(f"call\0{call.what}\0{call.caller}".encode()).digest()
        async with self._database.transaction() as connection:
            counted, left = await count(connection, key, timedelta(seconds=call.window_seconds))
        return left if counted > call.most else None
