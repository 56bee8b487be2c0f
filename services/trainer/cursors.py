"""What page tokens hold: checked, for anybody can make one up."""

from __future__ import annotations

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
        time = datetime.fromisoformat(cursor[0])
        in_utc = time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _not_ours(token) from None
    if time.tzinfo is None:
        raise _not_ours(token)
    return in_utc, uuid_in(cursor[1], token)


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
