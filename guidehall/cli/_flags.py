"""Flags that several commands have, and refusals that name flags in the place of a request's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from guidehall.core.errors import AppError


class _Duration(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.3
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from guidehall.core.durations import ALLOWED, seconds_in
        from guidehall.core.errors import InvalidArgument

        try:
            return seconds_in(value, self.name)
        except InvalidArgument:
            self.fail(f"{value!r} is not {ALLOWED}.", param, ctx)


# Seconds, or such as "30m": in seconds.
DURATION = _Duration()


def renamed(error: AppError, name: Callable[[str], str]) -> AppError:
    """`error` with `name(field)` for each field, in its violations and in its message."""
    from guidehall.core.errors import Violation

    violations, message = [], error.message
    for item in error.violations:
        violations.append(Violation(name(item.field), item.description))
        # The message of a refusal is made of its violations.
        message = message.replace(
            f"{item.field}: {item.description}", f"{name(item.field)}: {item.description}"
        )
    return type(error)(
        message,
        reason=error.reason,
        metadata=error.metadata,
        violations=violations,
        retry_after_seconds=error.retry_after_seconds,
    )


@contextmanager
def in_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Raises what comes out of the block with a flag for each field that `flags` knows."""
    from guidehall.core.errors import AppError

    try:
        yield
    except AppError as error:
        raise renamed(error, lambda field: flags.get(field, field)) from error
