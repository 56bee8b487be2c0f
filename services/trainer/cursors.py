"""What page tokens hold, and times that are compared with: checked, for anybody can make one up."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

from guidehall.core import pages
from guidehall.core.errors import InvalidArgument

# What a column of integers holds.
_INTEGERS = 2**63


def texts(token: str, count: int, *arguments: object) -> list[str] | None:
    """The texts by which a list goes on; None for its first page.

    Raises:
        InvalidArgument: not a token of ours for these arguments.
    """
    cursor = pages.cursor_of(token, *arguments)
    if cursor is None:
        return None
    if len(cursor) != count or not all(isinstance(item, str) and "\x00" not in item for item in cursor):
        raise _not_ours(token)
    return cursor


def time_and_id(token: str, *arguments: object) -> tuple[datetime, str] | None:
    """The time and the UUID by which a list goes on; None for its first page.

    Raises:
        InvalidArgument: not a token of ours for these arguments.
    """
    cursor = texts(token, 2, *arguments)
    if cursor is None:
        return None
    try:
        return moment(cursor[0]), uuid_in(cursor[1], token)
    except ValueError:
        raise _not_ours(token) from None


def moment(text: str) -> datetime:
    """A time that somebody wrote with its offset, in UTC.

    Raises:
        ValueError: no time, without an offset, or none that the database can be asked about: of no year from
            1 to 9999 in UTC.
    """
    # Before Python 3.11 no "Z" is understood.
    time = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
    if time.tzinfo is None:
        raise ValueError("a time without an offset")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("a year that UTC has not") from None


def number(token: str, *arguments: object) -> int | None:
    """The number below which a list goes on; None for its first page.

    Raises:
        InvalidArgument: not a token of ours for these arguments.
    """
    cursor = pages.cursor_of(token, *arguments)
    if cursor is None:
        return None
    if len(cursor) != 1 or type(cursor[0]) is not int or not 0 <= cursor[0] < _INTEGERS:
        raise _not_ours(token)
    return cursor[0]


def uuid_in(text: str, token: str) -> str:
    """A UUID that a token holds.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise _not_ours(token) from None


def _not_ours(token: str) -> InvalidArgument:
    return InvalidArgument.field("page_token", token, "a next_page_token of an earlier answer")
