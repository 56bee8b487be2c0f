"""A result document as its pipeline's schema declares that it is shown.

A list of objects may say `show` in its JSON Schema: "table" (an object is a line), "columns" (an object is a
column, and one alone is not worth a table) or "sections" (each object is shown like a document of its own). A
single object may say "sections", too, or "pairs" (the names and values in it). What says nothing and is
neither a number nor a word is for `--json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from guidehall.cli._output import Cell, clean, number, pairs, table
from guidehall.cli._schema import Reader, without_null

# Objects that stand side by side in a table of columns.
_MOST_COLUMNS = 6


def show(document: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Prints what people read of a result; without a schema, its numbers and words."""
    left = dict.fromkeys(_show(document, Reader(schema).resolve(schema), Reader(schema)))
    if left:
        click.echo(f"also in the document (--json shows it): {', '.join(map(clean, left))}")


def _show(document: Mapping[str, Any], schema: Mapping[str, Any], reader: Reader) -> Iterator[str]:
    """Prints a document and gives the names of what was left out."""
    fields = {name: reader.resolve(field) for name, field in reader.properties(schema).items()}
    names = [
        *(name for name in fields if name in document),
        *(name for name in document if name not in fields),
    ]
    titles = {name: str(fields.get(name, {}).get("title", name)) for name in names}
    pairs({titles[name]: document[name] for name in names if isinstance(document[name], str | int | float)})
    for name in names:
        value, how = document[name], fields.get(name, {}).get("show")
        if isinstance(value, dict) and how in ("sections", "pairs"):
            if value:
                click.echo(f"\n{titles[name]}")
            yield from _show_object(value, without_null(fields[name], reader)[0], reader, how)
        elif how and _is_list_of_objects(value):
            items = reader.resolve(fields[name].get("items", {}))
            yield from _show_list(titles[name], value, items, reader, how)
        elif isinstance(value, list | dict):
            yield name


def _show_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], reader: Reader, how: str
) -> Iterator[str]:
    if how == "sections":
        yield from _show(value, schema, reader)
    else:
        pairs(dict(_cells(value, schema, reader)))


def _show_list(
    title: str, items: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], reader: Reader, how: str
) -> Iterator[str]:
    if how == "sections":
        for place, item in enumerate(items, start=1):
            click.echo(f"\n{title} {place} of {len(items)}")
            yield from _show(item, schema, reader)
    elif how == "columns":
        _columns(title, items, schema, reader)
    elif items:
        click.echo(f"\n{title}")
        _table(items, schema, reader)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _table(items: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], reader: Reader) -> None:
    rows = [dict(_cells(item, schema, reader)) for item in items]
    headings = [name for name in dict.fromkeys(name for row in rows for name in row) if _known(name, rows)]
    table([name.upper() for name in headings], [[row.get(name) for name in headings] for row in rows])


def _columns(
    title: str, items: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], reader: Reader
) -> None:
    if len(items) < 2:
        return
    shown = [dict(_cells(item, schema, reader)) for item in items[:_MOST_COLUMNS]]
    more = f", {len(items) - len(shown)} more with --json" if len(items) > len(shown) else ""
    click.echo(f"\n{title}: {len(items)}{more}")
    rows = [[name, *(column.get(name) for column in shown)] for name in shown[0] if _known(name, shown)]
    table(["", *map(str, range(1, len(shown) + 1))], rows)


def _known(name: str, rows: Sequence[Mapping[str, Cell]]) -> bool:
    return any(row.get(name) not in ("", None) for row in rows)


def _cells(item: Mapping[str, Any], schema: Mapping[str, Any], reader: Reader) -> Iterator[tuple[str, Cell]]:
    """Titles and values of an object's fields; what an object in it holds, by its own names."""
    fields = {name: reader.resolve(field) for name, field in reader.properties(schema).items()}
    for name in [*(name for name in fields if name in item), *(name for name in item if name not in fields)]:
        value = item[name]
        if isinstance(value, dict):
            yield from ((inner, _cell(entry)) for inner, entry in value.items())
        else:
            yield str(fields.get(name, {}).get("title", name)), _cell(value)


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        words = [number(entry) if isinstance(entry, int | float) else str(entry) for entry in value]
        # Two numbers are an interval.
        between = " to " if len(value) == 2 else ", "
        return between.join(words)
    return value if isinstance(value, str | int | float) else None
