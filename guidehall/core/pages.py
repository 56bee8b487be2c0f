"""Pages of lists: sizes clamped, tokens bound to the arguments they were made for."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from guidehall.core.errors import InvalidArgument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def page_size(requested: int) -> int:
    """The number of rows to give: 50 for 0, at most 1000.

    Raises:
        InvalidArgument: negative.
    """
    if requested < 0:
        raise InvalidArgument.field("page_size", requested, f"0 to {MAX_PAGE_SIZE}")
    return min(requested, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def _digest(arguments: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]


def next_token(cursor: list[Any], *arguments: object) -> str:
    """An opaque token that starts the next page after `cursor`, valid with the same `arguments` only."""
    return base64.urlsafe_b64encode(json.dumps([cursor, _digest(arguments)]).encode()).decode("ascii")


def cursor_of(token: str, *arguments: object) -> list[Any] | None:
    """The cursor in a token; None for the first page.

    Raises:
        InvalidArgument: not a token of ours, or one for other arguments.
    """
    if not token:
        return None
    try:
        cursor, digest = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
        valid = isinstance(cursor, list)
    except (ValueError, TypeError, RecursionError):
        valid, cursor, digest = False, [], ""
    if not valid or digest != _digest(arguments):
        raise InvalidArgument.field(
            "page_token", token, "a next_page_token of a call with the same arguments"
        )
    return cursor  # type: ignore[no-any-return]
