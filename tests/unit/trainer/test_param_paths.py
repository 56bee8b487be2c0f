"""Paths into parameters, and sweeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core.errors import InvalidArgument
from services.trainer.param_paths import Axis, assign, combinations

STACK = {"layers": [{"thickness": 1, "sld": [2, 3]}, {"thickness": 4, "sld": [5, 6]}], "name": "film"}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("name", lambda document: document["name"]),
        ("layers[1].thickness", lambda document: document["layers"][1]["thickness"]),
        ("layers[0].sld[1]", lambda document: document["layers"][0]["sld"][1]),
        ("layers[0]", lambda document: document["layers"][0]),
        ("fresh", lambda document: document["fresh"]),
        ("fresh.inner.most", lambda document: document["fresh"]["inner"]["most"]),
    ],
)
def test_one_value_is_set_and_all_others_stay(path: str, place: Any) -> None:
    document = copy.deepcopy(STACK)
    assign(document, path, 99, "path")
    assert place(document) == 99
    if not path.startswith("fresh"):
        assign(document, path, place(STACK), "path")
        assert document == STACK


def test_what_leads_there_comes_from_the_defaults() -> None:
    document: dict[str, Any] = {"name": "mine"}
    assign(document, "layers[1].sld[0]", 99, "path", STACK)
    assert document["name"] == "mine"
    assert document["layers"][1] == {"thickness": 4, "sld": [99, 6]}
    assert STACK["layers"][1] == {"thickness": 4, "sld": [5, 6]}


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "a..b",
        "a b",
        "[0]",
        "a[x]",
        "a[-1]",
        "layers[2].sld",
        "layers.sld",
        "name.x",
        "name[0]",
        "x[0]",
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    document = copy.deepcopy(STACK)
    with pytest.raises(InvalidArgument) as refusal:
        assign(document, path, 1, "axes[0].path")
    assert refusal.value.violations[0].field == "axes[0].path"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_sweep_has_each_combination_once_in_order(sizes: list[int]) -> None:
    axes = [Axis(f"p{number}", list(range(size))) for number, size in enumerate(sizes)]
    found = [tuple(choice.places) for choice in combinations(axes, False, 10_000)]
    assert found == sorted(set(found))
    expected = 1
    for size in sizes:
        expected *= size
    assert len(found) == expected
    with pytest.raises(InvalidArgument):
        combinations(axes, False, expected - 1)
