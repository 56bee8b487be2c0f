"""Page tokens and sizes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core.errors import InvalidArgument
from guidehall.core.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, cursor_of, next_token, page_size

CURSORS = st.lists(st.none() | st.integers() | st.text(max_size=20), max_size=4)
ARGUMENTS = st.lists(st.none() | st.booleans() | st.integers() | st.text(max_size=20), max_size=4)


@given(CURSORS, ARGUMENTS)
def test_a_token_gives_its_cursor_back(cursor: list[Any], arguments: list[Any]) -> None:
    assert cursor_of(next_token(cursor, *arguments), *arguments) == cursor


@given(CURSORS, ARGUMENTS, ARGUMENTS)
def test_a_token_holds_for_the_arguments_it_was_made_for(
    cursor: list[Any], arguments: list[Any], others: list[Any]
) -> None:
    token = next_token(cursor, *arguments)

    if json.dumps(arguments) == json.dumps(others):
        assert cursor_of(token, *others) == cursor
    else:
        with pytest.raises(InvalidArgument, match="page_token"):
            cursor_of(token, *others)


def test_no_token_is_the_first_page() -> None:
    assert cursor_of("", "a") is None


@pytest.mark.parametrize(
    "token",
    ["x", "é", "AAAA", *(base64.urlsafe_b64encode(body).decode() for body in (
        b"1", b"[]", b"{}", b'{"a": 1, "b": 2}', b'["text", "digest"]', b"[[], 7]", b"\xff", b"[" * 5000,
    ))],
)  # fmt: skip
def test_what_is_no_token_of_ours_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        cursor_of(token, "a")

    assert caught.value.violations[0].field == "page_token"


@pytest.mark.parametrize(
    ("requested", "given_"), [(0, DEFAULT_PAGE_SIZE), (1, 1), (1000, 1000), (10**9, MAX_PAGE_SIZE)]
)
def test_sizes_are_clamped(requested: int, given_: int) -> None:
    assert page_size(requested) == given_


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="page_size: got -1"):
        page_size(-1)
