"""Conversions take long in proportion to their size: a small one is done at once, a large one in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Takes about a millisecond to convert value by value; a thread costs a tenth of that.
LARGE_BYTES = 64 << 10


async def by_size(size_bytes: int, convert: Callable[[], T]) -> T:
    """What `convert` returns, without keeping the event loop from everybody else if it is given much."""
    return convert() if size_bytes <= LARGE_BYTES else await asyncio.to_thread(convert)
