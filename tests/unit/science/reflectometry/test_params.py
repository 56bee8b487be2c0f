from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from guidehall.cli import _schema
from guidehall.science import registry
from guidehall.science.pipeline import field_errors
from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.infer_params import Instrument
from guidehall.science.reflectometry.params import (
    NrSldParams,
    Probe,
    Range,
    SimulateParams,
    StackPrior,
    Tie,
    sigma_of,
)
from tests.fixtures.reflectometry import SMALL_TRAINING


def changed(path: str, value: Any) -> dict[str, Any]:
    document: Any = copy.deepcopy(SMALL_TRAINING)
    target, parts = document, path.split(".")
    for part in parts[:-1]:
        target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
    target[parts[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("stack.layers", [], "stack.layers"),
        ("stack.layers.0.thickness", {"min": 5, "max": 3}, "stack.layers[0].thickness.max"),
        ("stack.layers.0.thickness", {"min": -1, "max": 3}, "stack.layers[0].thickness.min"),
        ("stack.layers.0.sld", {"min": 0, "max": 500}, "stack.layers[0].sld.max"),
        ("stack.layers.0.roughness", 300, "stack.layers[0].roughness.min"),
        ("stack.layers.0.sld", True, "stack.layers[0].sld"),
        ("stack.layers.0.name", "air", "stack.layers[0].name"),
        ("stack.layers.0.colour", "red", "stack.layers[0].colour"),
        ("stack.backing.name", "air", "stack.backing.name"),
        ("stack.beam", "above", "stack.beam"),
        ("stack.fronting.sld", float("nan"), "stack.fronting.sld.min"),
        ("probe.q_max", 0.015, "probe.q_max"),
        ("probe.background", {"min": 0, "max": 1e-5}, "probe.background.min"),
        ("probe.resolution", 0.5, "probe.resolution.min"),
        ("probe.q_offset", {"min": -0.006, "max": 0}, "probe.q_offset.min"),
        ("probe.scale", {"min": 0.9, "max": 20}, "probe.scale.max"),
        ("noise.counts", 1, "noise.counts.min"),
        ("training.epochs", 0, "training.epochs"),
        ("training.fixed_curves", 10**9, "training.fixed_curves"),
        ("model_name", "Has Spaces", "model_name"),
    ],
)
def test_refuses_naming_the_field(path: str, value: Any, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        NrSldParams.model_validate(changed(path, value))
    assert field in [path for path, _ in field_errors(caught.value)]


FILM = "stack.layers.0"


@pytest.mark.parametrize(
    ("path", "value", "field", "reason"),
    [
        (f"{FILM}.roughness", "film.thicknes / 3", "roughness.expression", "film.thickness"),
        (f"{FILM}.roughness", "film.roughness / 3", "roughness.expression", "needs itself"),
        (f"{FILM}.roughness", "film.thickness / ", "roughness.expression", "cannot be read"),
        (f"{FILM}.roughness", "2 + film.thickness / 0", "roughness.expression", "divides by"),
        (f"{FILM}.roughness", "-film.thickness", "roughness.expression", "never 0 to 200"),
        (f"{FILM}.roughness", {"expression": "film.sld", "max": 300}, "roughness.max", "between 0 and 200"),
        (f"{FILM}.roughness", {"expression": "film.sld", "min": 9, "max": 8}, "roughness.max", "below min"),
        (f"{FILM}.roughness", {"expression": "film.sld", "maximum": 8}, "roughness.maximum", "not permitted"),
        (f"{FILM}.roughness", {"expression": 3}, "roughness.expression", "string"),
        ("probe.scale", "2 * film.sld", "probe.scale", "valid"),
    ],
)
def test_refuses_wrong_expressions(path: str, value: Any, field: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        NrSldParams.model_validate(changed(path, value))
    where = field if field.startswith("probe") else f"stack.layers[0].{field}"
    assert [found for found, said in field_errors(caught.value) if reason in said] == [where]


def test_a_circle_of_expressions_is_named_though_it_leaves_nothing_free() -> None:
    film = {
        "name": "film",
        "sld": 2.0,
        "thickness": "10 * film.roughness",
        "roughness": "film.thickness / 10",
    }
    stack = {"fronting": {"name": "air", "sld": 0}, "layers": [film], "backing": {"name": "si", "sld": 2.07}}
    with pytest.raises(ValidationError) as caught:
        StackPrior.model_validate(stack)
    ((field, said),) = field_errors(caught.value)
    assert field == "layers[0].thickness.expression"
    assert "needs itself: film.thickness -> film.roughness -> film.thickness" in said
    with pytest.raises(ValidationError, match="at least one parameter must have min below max"):
        StackPrior.model_validate({**stack, "layers": [{**film, "thickness": 100}]})


@pytest.mark.parametrize(
    ("parameters", "field", "reason"),
    [
        ({"phi": {"min": 0, "max": 1}}, "phi", "must be in an expression"),
        ({"scale": {"min": 0, "max": 1}}, "scale", "taken"),
        ({"lambda": 3}, "lambda", "taken"),
        ({"phi": {"min": 0, "max": 1e9}}, "phi.max", "between -1e+06 and 1e+06"),
        ({"1": 3}, "1", "pattern"),
    ],
)
def test_refuses_wrong_further_parameters(parameters: Any, field: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        NrSldParams.model_validate(changed("stack.parameters", parameters))
    found, said = field_errors(caught.value)[0]
    assert found.startswith(f"stack.parameters.{field}")
    assert reason in said


def test_expressions_need_names_that_they_can_tell_apart() -> None:
    document = changed("stack.layers.0.roughness", "film_1.thickness / 9")
    film = document["stack"]["layers"][0]
    document["stack"]["layers"] = [film | {"name": "film 1"}, film | {"name": "film_1"}]
    with pytest.raises(ValidationError, match="cannot tell it from another"):
        NrSldParams.model_validate(document)


def test_expressions_are_said_plainly_or_in_an_object_and_round_trip() -> None:
    for value in ("film.thickness / 9", {"expression": "film.thickness / 9"}):
        params = NrSldParams.model_validate(changed("stack.layers.0.roughness", value))
        assert NrSldParams.model_validate_json(params.model_dump_json()) == params
        assert params.stack.layers[0].roughness == Tie(expression="film.thickness / 9", min=0, max=200)


@pytest.mark.parametrize(
    ("repeats", "field", "reason"),
    [
        ([{"first": "a", "last": "d", "times": 2}], "[0].last", "name of one layer"),
        ([{"first": "b", "last": "a", "times": 2}], "[0].last", "in front of"),
        ([{"first": "a", "last": "b", "times": 1}], "[0].times", "greater than"),
        ([{"first": "a", "last": "c", "times": 200}], "", "at most 400 layers"),
        ([{"first": n, "last": "b", "times": 2} for n in "ab"], "[1].first", "overlap"),
    ],
)
def test_refuses_groups_that_cannot_be(repeats: Any, field: str, reason: str) -> None:
    layers = [{"name": name, "thickness": 10, "sld": {"min": 1, "max": 2}} for name in "abc"]
    prior = changed("stack.layers", layers)
    prior["stack"]["repeats"] = repeats
    known = {**prior["stack"], "layers": [layer | {"sld": 1} for layer in layers], "backing": {"sld": 2}}
    for model, document in ((NrSldParams, prior), (SimulateParams, {"stack": known})):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(document)
        found, said = field_errors(caught.value)[0]
        assert found == f"stack.repeats{field}"
        assert reason in said


def test_simulated_layers_of_one_name_cannot_be_repeated() -> None:
    layer = {"thickness": 10, "sld": 1}
    stack = {"fronting": {"sld": 0}, "layers": [layer, layer], "backing": {"sld": 6}}
    assert len(SimulateParams.model_validate({"stack": stack}).stack.all_layers) == 2
    stack["repeats"] = [{"first": "layer", "last": "layer", "times": 2}]
    with pytest.raises(ValidationError, match="must be the name of one layer only"):
        SimulateParams.model_validate({"stack": stack})


def test_repeated_groups_keep_their_places() -> None:
    layers = [{"name": name, "thickness": place, "sld": 1} for place, name in enumerate("abcd", 1)]
    repeats = [{"first": "d", "last": "d", "times": 2}, {"first": "a", "last": "b", "times": 3}]
    stack = {"fronting": {"sld": 0}, "layers": layers, "backing": {"sld": 6}, "repeats": repeats}
    found = SimulateParams.model_validate({"stack": stack}).stack.all_layers
    assert "".join(layer.name for layer in found) == "abababcdd"


def test_a_multilayer_can_be_written_out() -> None:
    layers = [{"thickness": 10, "sld": 1}] * 400
    stack = {"fronting": {"sld": 0}, "layers": layers, "backing": {"sld": 6}}
    assert len(SimulateParams.model_validate({"stack": stack}).stack.all_layers) == 400


def test_repeated_layers_count_in_what_is_calculated_at_once() -> None:
    document = changed("stack.repeats", [{"first": "film", "last": "film", "times": 400}])
    document["training"]["batch_size"] = 1000
    with pytest.raises(ValidationError, match="interfaces"):
        NrSldParams.model_validate(document)


@pytest.mark.parametrize(
    ("layer", "field", "reason"),
    [
        ({"sld": 1}, "thickness", "required"),
        ({"molecules": {"b": 1, "volume": 100}}, "molecules.area", "required"),
        ({"molecules": {"b": 1, "volume": 100, "area": 0}}, "molecules.area.min", "between 1 and"),
        (
            {"molecules": {"b": 1, "volume": 100, "area": 50}, "solvent": {"min": 0, "max": 1}},
            "thickness.expression",
            "divides by what may be 0",
        ),
        ({"sld": 1, "thickness": 9, "solvent": 1.5}, "solvent.min", "between 0 and 1"),
        (
            {
                "molecules": {"b": 1, "volume": 100, "area": {"min": 5, "max": 9}},
                "thickness": 9,
                "solvent": 0,
            },
            "molecules.area",
            "must be in an expression",
        ),
    ],
)
def test_refuses_wrong_molecules_and_solvents(layer: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        NrSldParams.model_validate(changed("stack.layers", [{"name": "film", **layer}]))
    found, said = field_errors(caught.value)[0]
    assert found == f"stack.layers[0].{field}"
    assert reason in said


@pytest.mark.parametrize("name", ["batch_size", "validation_curves"])
def test_limits_what_is_calculated_at_once(name: str) -> None:
    document = changed("probe.points", 1024)
    document["training"][name] = 8192
    with pytest.raises(ValidationError) as caught:
        NrSldParams.model_validate(document)
    assert field_errors(caught.value)[0][0] == f"training.{name}"


def test_something_must_be_free() -> None:
    document = changed("stack.layers", [{"name": "film", "thickness": 100, "sld": 4}])
    with pytest.raises(ValidationError, match="at least one parameter"):
        NrSldParams.model_validate(document)


def test_a_plain_number_fixes_a_range() -> None:
    assert Range.model_validate(3) == Range(min=3, max=3)
    assert Range.model_validate(3).fixed


def test_probe_ends_are_exact() -> None:
    for spacing in ("log", "linear"):
        q = Probe(q_min=0.0081, q_max=0.1975, points=308, spacing=spacing).q()
        assert (q[0], q[-1], len(q)) == (0.0081, 0.1975, 308)
        assert (np.diff(q) > 0).all()
    with pytest.raises(ValidationError, match="must be larger than q_min"):
        Probe(q_min=0.2, q_max=0.1)


def test_resolution_conventions() -> None:
    assert Probe(resolution=0.0235482, resolution_convention="fwhm").relative_sigma == pytest.approx(0.01)
    assert sigma_of(0.01, "sigma") == 0.01


def properties(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property in a schema, at any depth."""
    if isinstance(node, dict):
        yield from node.get("properties", {}).items()
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from properties(item)


def test_every_numeric_field_has_a_title_and_a_range_or_a_reference() -> None:
    for name in ("reflectometry.simulate", "reflectometry.nr_sld"):
        for field, schema in properties(registry.json_schema(name)):
            assert schema.get("title") or "$ref" in schema, field
            if schema.get("type") in ("number", "integer"):
                bounds = schema.keys() & {"minimum", "exclusiveMinimum"}, schema.keys() & {"maximum"}
                assert all(bounds), field


def test_help_says_the_limits_of_bounds() -> None:
    fields = _schema.fields(registry.json_schema("reflectometry.nr_sld"))
    found = _schema.find(fields, ("stack", "layers", "0", "thickness", "max"))
    assert found is not None
    assert "angstrom; from 0 to 20000" in _schema.describe(found)
    with pytest.raises(ValueError, match="from 0 to 20000"):
        _schema.parse(found, "30000")


def test_examples_round_trip_as_json() -> None:
    params = film_under_water()
    assert NrSldParams.model_validate_json(params.model_dump_json()) == params


def test_simulation_has_defaults_for_all_but_the_stack() -> None:
    stack = {"fronting": {"sld": 0}, "backing": {"sld": 6.36}}
    assert SimulateParams.model_validate({"stack": stack}).probe.points == 300


def test_the_stacks_of_the_documentation_are_stacks() -> None:
    page = Path(__file__).parents[4] / "docs/reference/stacks-and-priors.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)
    documents = [yaml.safe_load(block) for block in blocks]
    stacks = [StackPrior.model_validate(document["stack"]) for document in documents if "stack" in document]
    instruments = [
        Instrument.model_validate(document["instrument"])
        for document in documents
        if "instrument" in document
    ]
    assert len(stacks) + len(instruments) == len(documents)
    assert [len(stack.sequence) for stack in stacks] == [1, 40, 2]
