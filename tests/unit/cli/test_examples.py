"""The files of `examples/` are what the pipelines take."""

from __future__ import annotations

from pathlib import Path

from guidehall.cli._schema_command import read_document
from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.params import NrSldParams, SimulateParams

_EXAMPLES = Path(__file__).parents[3] / "examples"


def test_film_is_that_of_the_demonstration() -> None:
    film = NrSldParams.model_validate(read_document(_EXAMPLES / "film.yml"))

    assert (film.stack, film.probe) == (film_under_water().stack, film_under_water().probe)
    assert film.training.epochs < film_under_water().training.epochs


def test_film_to_simulate_has_numbers_alone() -> None:
    film = SimulateParams.model_validate(read_document(_EXAMPLES / "simulate.yml"))

    assert [layer.name for layer in film.stack.layers] == ["oxide", "film"]
