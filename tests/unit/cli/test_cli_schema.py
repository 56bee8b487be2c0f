"""Flags from a JSON Schema: what is found in it, what a value may be, and where it goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.cli import _schema
from guidehall.cli._schema import MISSING, Field, Kind

LAYER = {
    "type": "object",
    "title": "Layer",
    "properties": {
        "thickness": {
            "type": "number",
            "title": "Thickness",
            "unit": "angstrom",
            "minimum": 0,
            "maximum": 5000,
        },
        "sld": {"$ref": "#/$defs/Range", "title": "SLD", "unit": "1e-6/angstrom^2", "default": {"min": 1.5}},
    },
    "required": ["thickness"],
}
RANGE = {
    "type": "object",
    "title": "Range",
    "properties": {
        "min": {"type": "number", "title": "Lowest"},
        "max": {"type": "number", "title": "Highest", "default": 9.0},
    },
}
SCHEMA = {
    "$defs": {"Layer": LAYER, "Range": RANGE},
    "type": "object",
    "properties": {
        "epochs": {"type": "integer", "title": "Epochs", "default": 30, "minimum": 1, "maximum": 100},
        "rate": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "Learning rate.",
        },
        "augment": {"type": "boolean", "default": False},
        "mode": {"enum": ["fast", "good"], "default": "fast"},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "either": {"anyOf": [{"type": "string"}, {"type": "object"}]},
        "layers": {"type": "array", "items": {"$ref": "#/$defs/Layer"}, "title": "Layers", "minItems": 1},
        "film": {"allOf": [{"$ref": "#/$defs/Layer"}], "title": "Film"},
    },
    "required": ["layers"],
}
FIELDS = _schema.fields(SCHEMA)


def field(dotted: str) -> Field:
    found = _schema.find(FIELDS, dotted.split("."))
    assert found is not None, dotted
    return found


@pytest.mark.parametrize(
    ("dotted", "kind"),
    [
        ("epochs", Kind.INTEGER),
        ("rate", Kind.NUMBER),
        ("augment", Kind.BOOLEAN),
        ("mode", Kind.CHOICE),
        ("sizes", Kind.LIST),
        ("note", Kind.TEXT),
        ("either", Kind.JSON),
        ("layers", Kind.JSON),
        ("layers.3", Kind.JSON),
        ("layers.3.thickness", Kind.NUMBER),
        ("film.sld.max", Kind.NUMBER),
    ],
)
def test_every_kind_of_field_is_found(dotted: str, kind: Kind) -> None:
    assert field(dotted).kind is kind


@pytest.mark.parametrize("dotted", ["epoch", "layers.x", "layers.thickness", "layers.0.0", "epochs.0", ""])
def test_what_is_not_there_is_not_found(dotted: str) -> None:
    assert _schema.find(FIELDS, dotted.split(".")) is None


def test_defaults_come_from_the_nearest_place() -> None:
    assert field("film.sld.min").default == 1.5
    assert field("film.sld.max").default == 9.0
    assert field("film.thickness").default is MISSING


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("epochs", "Epochs. [from 1 to 100; default 30]"),
        ("rate", "Learning rate. [above 0 below 1]"),
        ("sizes", "[1 to 3 entries]"),
        ("mode", "[fast|good; default fast]"),
        ("layers", "Layers. [1 or more entries; required]"),
        ("layers.0.thickness", "Thickness. [angstrom; from 0 to 5000; required]"),
        ("film.sld.min", "SLD, lowest. [1e-6/angstrom^2; default 1.5]"),
    ],
)
def test_help_says_unit_range_and_default(dotted: str, said: str) -> None:
    assert _schema.describe(field(dotted)) == said


@pytest.mark.parametrize(
    ("dotted", "text", "value"),
    [
        ("epochs", "5", 5),
        ("rate", "1e-3", 0.001),
        ("mode", "good", "good"),
        ("sizes", "1,2, 3", [1, 2, 3]),
        ("sizes", "[1, 2]", [1, 2]),
        ("note", "5", "5"),
        ("note", "null", None),
        ("either", '{"a": 1}', {"a": 1}),
        ("film.sld", "2.5", 2.5),
        ("layers", '[{"thickness": 1}]', [{"thickness": 1}]),
    ],
)
def test_text_becomes_the_value_that_it_means(dotted: str, text: str, value: Any) -> None:
    assert _schema.parse(field(dotted), text) == value


@pytest.mark.parametrize(
    ("dotted", "text", "said"),
    [
        ("epochs", "5.5", "not an integer"),
        ("epochs", "0", "not from 1 to 100"),
        ("epochs", "101", "not from 1 to 100"),
        ("rate", "0", "not above 0 below 1"),
        ("rate", "1", "not above 0 below 1"),
        ("rate", "nan", "not above 0 below 1"),
        ("rate", "fast", "not a number"),
        ("mode", "best", "not one of fast, good"),
        ("film", "{thickness: 1}", "not JSON"),
    ],
)
def test_text_that_means_nothing_is_refused_with_what_is_allowed(dotted: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _schema.parse(field(dotted), text)


def test_values_go_where_their_path_leads() -> None:
    document: dict[str, Any] = {"layers": [{"thickness": 1.0}], "epochs": 3}

    for path, value in (
        ("layers.0.thickness", 2.0),
        ("layers.1.sld.min", 4.0),
        ("epochs", 5),
        ("film.sld.max", 1),
    ):
        _schema.assign(document, path.split("."), value)

    assert document == {
        "layers": [{"thickness": 2.0}, {"sld": {"min": 4.0}}],
        "epochs": 5,
        "film": {"sld": {"max": 1}},
    }


@pytest.mark.parametrize("path", ["layers.2.thickness", "layers.x", "epochs.min", "layers.0.thickness.min"])
def test_value_without_a_place_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"entries|no parts"):
        _schema.assign({"layers": [{"thickness": 1.0}], "epochs": 3}, path.split("."), 1)


def test_fields_come_in_the_order_that_the_schema_names() -> None:
    schema = {
        "properties": {name: {"type": "string"} for name in "abcd"},
        "propertyOrder": ["d", "b", "gone", "a"],
    }

    assert [found.dotted for found in _schema.fields(schema)] == ["d", "b", "a", "c"]


@pytest.mark.parametrize(
    "schema", [{}, {"$ref": "#/$defs/Loop", "$defs": {"Loop": {"$ref": "#/$defs/Loop"}}}]
)
def test_schema_without_fields_has_none(schema: dict[str, Any]) -> None:
    assert _schema.fields(schema) == []


def test_schema_that_contains_itself_ends() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}}

    assert 0 < len(_schema.fields({"$defs": {"Tree": tree}, **tree})) < 100


_keys = st.text("abc", min_size=1, max_size=2)
_documents = st.recursive(
    st.integers(), lambda inner: st.lists(inner, min_size=1) | st.dictionaries(_keys, inner, min_size=1)
).filter(lambda document: isinstance(document, dict))


def _leaves(document: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(document, dict):
        return [leaf for key, item in document.items() for leaf in _leaves(item, (*path, key))]
    if isinstance(document, list):
        return [leaf for index, item in enumerate(document) for leaf in _leaves(item, (*path, str(index)))]
    return [(path, document)]


@given(_documents)
def test_any_document_can_be_said_leaf_by_leaf(document: dict[str, Any]) -> None:
    built: dict[str, Any] = {}
    for path, value in _leaves(document):
        _schema.assign(built, path, value)

    assert json.dumps(built) == json.dumps(document)
