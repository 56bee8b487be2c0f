"""Trying again: which failures pass, and how long to wait before the next try."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from guidehall.core.errors import AppError, Code, DeadlineExceeded, from_rpc_error

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# The other side is away, starting, overloaded or broken for the moment.
_PASSING = frozenset(
    {
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.CANCELLED,
    }
)


class Pauses:
    """Growing pauses between tries, with jitter so that many workers do not come back in step."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first = first_seconds
        self._longest = longest_seconds

    def __iter__(self) -> Iterator[float]:
        pause = self._first
        while True:
            yield pause * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
            pause = min(2 * pause, self._longest)


@asynccontextmanager
async def calling(timeout_seconds: float) -> AsyncIterator[None]:
    """Around a call to another service: bounds it and turns its failures into `AppError`."""
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except TimeoutError as error:
        raise DeadlineExceeded(f"no answer within {timeout_seconds:g} s") from error


def passes(error: AppError) -> bool:
    """Whether another try may succeed. A limit that will be as full later does not say when to come again."""
    if error.code is Code.RESOURCE_EXHAUSTED:
        return error.retry_after_seconds is not None
    return error.code in _PASSING


async def until_answered(
    call: Callable[[], Awaitable[Answer]],
    pauses: Pauses,
    what: str,
    passing: Callable[[AppError], bool] = passes,
) -> Answer:
    """Repeats `call` for as long as its failures are `passing` ones; the caller bounds the whole.

    Raises:
        AppError: a failure that another try would meet again.
    """
    failures = 0
    for pause in pauses:
        try:
            answer = await call()
        except AppError as error:
            if not passing(error):
                raise
            failures += 1
            pause = max(pause, error.retry_after_seconds or 0.0)
            if failures == 1:
                logger.warning("%s: %s; trying again until it is answered", what, error.code.name)
        else:
            if failures:
                logger.info("%s: answered after %d failures", what, failures)
            return answer
        await asyncio.sleep(pause)
    raise AssertionError("pauses never end")
