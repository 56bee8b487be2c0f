"""Documents survive the way through a Struct, and what would not is refused by its path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.client.errors import InvalidArgument
from guidehall.core.structs import LARGEST_INTEGER, from_struct, to_struct

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INTEGER + 1, LARGEST_INTEGER - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
_documents = st.dictionaries(
    st.text(), st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)


@given(_documents)
def test_document_comes_back_equal(document: dict[str, Any]) -> None:
    assert from_struct(to_struct(document, "params")) == document


def test_whole_numbers_come_back_as_integers() -> None:
    back = from_struct(to_struct({"epochs": 5, "rate": 0.5}, "params"))

    assert (type(back["epochs"]), type(back["rate"])) == (int, float)


def test_numpy_values_are_documents_too() -> None:
    document = {"grid": np.arange(3), "step": np.float32(0.5), "on": np.bool_(True)}

    assert from_struct(to_struct(document, "params")) == {"grid": [0, 1, 2], "step": 0.5, "on": True}


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"a": {"b": [1.0, math.nan]}}, "params.a.b[1]"),
        ({"a": math.inf}, "params.a"),
        ({"a": 2**53}, "params.a"),
        ({"a": -(2**53)}, "params.a"),
        ({"a": b"bytes"}, "params.a"),
        ({"a": object()}, "params.a"),
        ({"a": {1: "one"}}, "params.a"),
        ({"a": [{"b": np.array([np.nan])}]}, "params.a[0].b[0]"),
    ],
)
def test_what_a_struct_would_change_is_refused_by_its_path(document: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_struct(document, "params")

    assert [violation.field for violation in caught.value.violations] == [path]
