"""Lists that the server hands out page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guidehall.client._config import Config
from guidehall.client._steps import Call, Emit, Operation, Rpc
from guidehall.core.errors import InvalidArgument

_PAGE_SIZE = 100


def items(
    config: Config, rpc: Rpc, request: Any, field: str, decode: Callable[[Any], Any], limit: int | None = None
) -> Operation[None]:
    """Emits what is in `field` of each page, decoded, until `limit` of them or the end.

    Raises:
        InvalidArgument: a negative limit.
    """
    if limit is not None and limit < 0:
        raise InvalidArgument.field("limit", limit, "0 or more")
    left = limit
    while left != 0:
        request.page_size = _PAGE_SIZE if left is None else min(left, _PAGE_SIZE)
        page = yield Call(rpc, request, config.timeouts.call_seconds)
        # A server may answer with more than it was asked for.
        for message in getattr(page, field)[:left]:
            yield Emit(decode(message))
            if left is not None:
                left -= 1
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
