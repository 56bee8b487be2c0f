"""Lists: filters as SQL conditions, pages by key, newest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Row, Select
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import pages
from guidehall.core.errors import InvalidArgument
from guidehall.core.filters import Term, parse

# Above this a page ends before it has as many rows as were asked for, so that an answer stays one message.
MAX_PAGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Paging:
    """Which page is wanted, as the request put it."""

    size: int
    token: str


class Field(Protocol):
    """Something that a filter can ask for."""

    @property
    def operators(self) -> tuple[str, ...]:
        """Those that it takes."""
        ...

    def condition(self, term: Term) -> ColumnElement[bool]:
        """The term as SQL."""
        ...


@dataclass(frozen=True)
class TextField:
    """A text column, compared as a whole."""

    column: ColumnElement[str]
    operators: tuple[str, ...] = ("=", "!=")

    def condition(self, term: Term) -> ColumnElement[bool]:
        """Equal, or not."""
        return self.column == term.value if term.operator == "=" else self.column != term.value


@dataclass(frozen=True)
class SearchField:
    """A text column, searched for a part whatever its case."""

    column: ColumnElement[str]
    operators: tuple[str, ...] = (":",)

    def condition(self, term: Term) -> ColumnElement[bool]:
        """Contains the text."""
        return self.column.icontains(term.value, autoescape=True)


@dataclass(frozen=True)
class LabelField:
    """A column of labels; the filter's field is "labels.*"."""

    column: ColumnElement[Any]
    operators: tuple[str, ...] = ("=",)

    def condition(self, term: Term) -> ColumnElement[bool]:
        """Has that label with that value."""
        condition: ColumnElement[bool] = self.column.contains({term.field.partition(".")[2]: term.value})
        return condition


def conditions(filter_text: str, fields: Mapping[str, Field]) -> list[ColumnElement[bool]]:
    """The filter as SQL conditions.

    Raises:
        InvalidArgument: it is malformed, or asks for what is not offered.
    """
    terms = parse(filter_text, {name: field.operators for name, field in fields.items()})
    return [_field_of(term, fields).condition(term) for term in terms]


def _field_of(term: Term, fields: Mapping[str, Field]) -> Field:
    return fields.get(term.field) or fields[term.field.partition(".")[0] + ".*"]


async def page(
    connection: AsyncConnection,
    query: Select[Any],
    key: ColumnElement[int],
    paging: Paging,
    *arguments: object,
    weight: ColumnElement[int] | None = None,
) -> tuple[Sequence[Row[Any]], str]:
    """One page of a query in falling order of `key`, and the token of the next.

    Args:
        connection: of the transaction.
        query: without order and limit; it selects `key`.
        key: a unique integer.
        paging: which page.
        arguments: what else makes up the question; a token is good for the same ones only.
        weight: the bytes of a row, where rows may be large.

    Raises:
        InvalidArgument: a negative size, or a token of another question.
    """
    size = pages.page_size(paging.size)
    cursor = pages.cursor_of(paging.token, *arguments)
    if cursor is not None:
        query = query.where(key < position(cursor, paging.token))
    query = query.order_by(key.desc())
    if weight is not None:
        weights = query.limit(size).with_only_columns(weight, maintain_column_froms=True)
        size = _fitting((await connection.scalars(weights)).all())
    rows = (await connection.execute(query.limit(size + 1))).all()
    if len(rows) <= size:
        return rows, ""
    return rows[:size], pages.next_token([rows[size - 1]._mapping[key]], *arguments)


def _fitting(weights: Sequence[int]) -> int:
    """How many rows fit into one page; one always does."""
    total = 0
    for count, weight in enumerate(weights):
        total += weight
        if count and total > MAX_PAGE_BYTES:
            return count
    return max(1, len(weights))


def position(cursor: list[Any], token: str) -> int:
    """The integer key in a cursor.

    Raises:
        InvalidArgument: it is none.
    """
    match cursor:
        case [int(position)] if 0 <= position < 2**63:
            return position
    raise InvalidArgument.field("page_token", token, "a next_page_token of an earlier answer")
