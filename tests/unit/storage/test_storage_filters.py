"""The filter language of the list calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core.errors import InvalidArgument
from guidehall.core.filters import MAX_FILTER_CHARACTERS, Term, parse

FIELDS = {"state": ("=", "!="), "name": (":",), "labels.*": ("=",), "create_time": ("<", ">=")}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("   ", []),
        ('state = "RUNNING"', [Term("state", "=", "RUNNING")]),
        ("state=RUNNING", [Term("state", "=", "RUNNING")]),
        ('state != "A B"  AND  name:"x"', [Term("state", "!=", "A B"), Term("name", ":", "x")]),
        ('labels.film-1 = "a"', [Term("labels.film-1", "=", "a")]),
        ('create_time >= "2026-01-01T00:00:00Z" ', [Term("create_time", ">=", "2026-01-01T00:00:00Z")]),
        (r'state = "say \"AND\" \\"', [Term("state", "=", 'say "AND" \\')]),
        ('state = ""', [Term("state", "=", "")]),
    ],
)
def test_a_filter_becomes_terms(text: str, terms: list[Term]) -> None:
    assert parse(text, FIELDS) == terms


@pytest.mark.parametrize(
    "text",
    [
        "state",
        "state =",
        "= RUNNING",
        "state = RUNNING state = X",
        "state = RUNNING AND",
        "state = RUNNING OR state = X",
        "state = RUNNING ANDstate = X",
        'state = "open',
        'state = "a\x00b"',
        'state = "bad \\n escape"',
        "owner = x",
        "state : x",
        "labels.a.b = x",
        "labels = x",
        "state = a;DROP TABLE jobs",
        "state = x AND " * 400 + "state = x",
        'state = "' + "x" * MAX_FILTER_CHARACTERS + '"',
        " AND ".join(["state = x"] * 21),
    ],
)
def test_anything_else_is_refused_and_the_filter_blamed(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(text, FIELDS)

    assert refused.value.violations[0].field == "filter"


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=200))
def test_any_value_survives_quoting(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')

    assert parse(f'state = "{quoted}"', FIELDS) == [Term("state", "=", value)]


@given(st.text(max_size=100))
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    try:
        parse(text, FIELDS)
    except InvalidArgument:
        return
