from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from guidehall.science.pipeline import field_errors
from guidehall.science.reflectometry.params import SimulateParams, SimulateResult
from guidehall.science.reflectometry.simulate import simulate

# Thickness, SLD and roughness; of the 3 % of such films that reflect more than arrives.
ROUGH = [(144, 5.9, 125), (226, 1.9, 148)]


def params(
    layers: list[tuple[float, float, float]], backing_roughness: float = 46, side: str = "fronting"
) -> SimulateParams:
    rows = [
        {"name": f"l{number}", "thickness": thickness, "sld": sld, "roughness": roughness}
        for number, (thickness, sld, roughness) in enumerate(layers)
    ]
    stack = {
        "fronting": {"name": "air", "sld": 0},
        "layers": rows,
        "backing": {"name": "silicon", "sld": 2.07, "roughness": backing_roughness},
        "beam": side,
    }
    return SimulateParams.model_validate({"stack": stack, "probe": {"q_min": 0.004, "points": 150}})


def test_smooth_films_need_no_note() -> None:
    assert simulate(params([(144, 5.9, 12), (226, 1.9, 14)], 4)).notes == []


@pytest.mark.parametrize("side", ["fronting", "backing"])
def test_names_the_interface_that_is_rougher_than_a_layer_is_thick(side: str) -> None:
    notes = simulate(params([(100, 4.0, 3), (20, 1.0, 30)], 2, side)).notes
    assert len(notes) == 1
    assert notes[0].message.startswith(
        "interface l0/l1: the roughness, 30 angstrom, is larger than the thickness of l1, 20"
    )


def test_names_the_interface_that_makes_more_come_back_than_arrives() -> None:
    notes = simulate(params(ROUGH)).notes
    assert [note.code for note in notes] == ["ROUGHER_THAN_THICK", "REFLECTS_MORE_THAN_ARRIVES"]
    assert notes[1].message.startswith("interface l0/l1: the roughness is beyond the validity")
    assert "reflectivity reaches 1.0027" in notes[1].message
    # And rightly: it is well with that one alone made smoother.
    smoother = [ROUGH[0], (*ROUGH[1][:2], 20)]
    assert simulate(params(smoother)).notes == []


def test_names_it_for_a_beam_from_behind_as_well() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "l1", "thickness": 226, "sld": 1.9, "roughness": 46},
        {"name": "l0", "thickness": 144, "sld": 5.9, "roughness": 148},
    ]
    turned = params(ROUGH).model_dump() | {
        "stack": {
            "fronting": {"name": "silicon", "sld": 2.07},
            "layers": rows,
            "backing": {"name": "air", "sld": 0, "roughness": 125},
            "beam": "backing",
        }
    }
    notes = simulate(SimulateParams.model_validate(turned)).notes
    assert notes[-1].message.startswith("interface l1/l0: the roughness is beyond the validity")


def test_a_note_on_repeated_layers_comes_once() -> None:
    document = params([(30, 4.0, 3), (20, 1.0, 25)], 2).model_dump()
    document["stack"]["repeats"] = [{"first": "l0", "last": "l1", "times": 4}]
    notes = simulate(SimulateParams.model_validate(document)).notes
    assert [note.message.split(":")[0] for note in notes if note.code == "ROUGHER_THAN_THICK"] == [
        "interface l0/l1"
    ]


def test_results_without_notes_can_be_read() -> None:
    old = simulate(params(ROUGH)).model_dump(exclude={"notes"})
    assert SimulateResult.model_validate(old).notes == []


def test_limits_what_is_calculated() -> None:
    document = params([(30, 4.0, 3)]).model_dump()
    document["stack"]["repeats"] = [{"first": "l0", "last": "l0", "times": 400}]
    document["probe"]["points"] = 3000
    with pytest.raises(ValidationError) as caught:
        SimulateParams.model_validate(document)
    assert field_errors(caught.value)[0][0] == "probe.points"
