from __future__ import annotations

import numpy as np
import pytest
import torch

from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.params import NrSldParams, Range
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution


def prior_of(params: NrSldParams) -> Prior:
    return Prior(params.stack, params.probe)


def test_names_free_parameters_in_order() -> None:
    assert [free.name for free in prior_of(film_under_water()).free] == [
        "oxide.thickness",
        "oxide.roughness",
        "film.thickness",
        "film.sld",
        "film.roughness",
        "water.sld",
        "water.roughness",
        "scale",
        "background",
    ]


def test_the_cube_maps_to_the_bounds_and_back() -> None:
    prior = prior_of(film_under_water())
    corners = torch.tensor([[0.0], [1.0]]).expand(2, 9)
    low, high = prior.values(corners)
    torch.testing.assert_close(low, torch.tensor([free.lower for free in prior.free], dtype=torch.float64))
    torch.testing.assert_close(high, torch.tensor([free.upper for free in prior.free], dtype=torch.float64))
    unit = torch.rand(20, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(prior.unit(prior.values(unit)), unit)


def test_background_is_even_in_its_logarithm() -> None:
    prior = prior_of(film_under_water())
    middle = prior.values(torch.full((1, 9), 0.5, dtype=torch.float64))[0]
    background = prior.free[-1]
    torch.testing.assert_close(
        middle[-1], torch.tensor((background.lower * background.upper) ** 0.5, dtype=torch.float64)
    )


def test_films_carry_fixed_and_free_values_to_their_places() -> None:
    prior = prior_of(film_under_water())
    values = torch.tensor([[10.0, 2.0, 200.0, 1.0, 3.0, 6.1, 4.0, 1.0, 1e-6]], dtype=torch.float64)
    film = prior.films(values)
    assert film.sld.tolist() == [[2.07, 3.47, 1.0, 6.1]]
    assert film.thickness.tolist() == [[10.0, 200.0]]
    assert film.roughness.tolist() == [[2.0, 3.0, 4.0]]


def test_beam_side_turns_the_stack_round() -> None:
    document = film_under_water().model_dump()
    stack = document["stack"]
    backwards = {
        "fronting": {"name": "water", "sld": stack["backing"]["sld"]},
        "layers": [
            stack["layers"][1] | {"roughness": stack["backing"]["roughness"]},
            stack["layers"][0] | {"roughness": stack["layers"][1]["roughness"]},
        ],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": stack["layers"][0]["roughness"]},
        "beam": "backing",
    }
    front = prior_of(NrSldParams.model_validate(document))
    back = prior_of(NrSldParams.model_validate(document | {"stack": backwards}))
    values = dict(
        zip(
            [free.name for free in front.free], [10.0, 2.0, 200.0, 1.0, 3.0, 6.1, 4.0, 1.0, 1e-6], strict=True
        )
    )
    moved = {
        "oxide.roughness": "film.roughness",
        "film.roughness": "water.roughness",
        "silicon.roughness": "oxide.roughness",
    }
    mirrored = [values[moved.get(free.name, free.name)] for free in back.free]
    q = torch.linspace(0.01, 0.2, 50, dtype=torch.float64)
    torch.testing.assert_close(
        back.measured(q, None, torch.tensor([mirrored], dtype=torch.float64)),
        front.measured(q, None, torch.tensor([list(values.values())], dtype=torch.float64)),
    )


@pytest.mark.parametrize("side", ["fronting", "backing"])
def test_derivatives_are_those_of_differences(side: str) -> None:
    params = film_under_water()
    probe = params.probe.model_copy(update={"q_offset": Range(min=-1e-4, max=1e-4)})
    prior = Prior(params.stack.model_copy(update={"beam": side}), probe)
    q = np.linspace(0.01, 0.2, 50)
    seen = resolution(q, 0.02 * q, order=9)
    unit = 0.2 + 0.6 * torch.rand(3, len(prior.free), dtype=torch.float64, generator=torch.Generator())
    found = prior.linearise(seen, unit)
    torch.testing.assert_close(found.r, prior.curves(seen, prior.values(unit)))
    gradients = torch.linspace(-1.0, 1.0, len(q), dtype=torch.float64).expand(3, -1)
    pulled = prior.pull(seen, unit, gradients)
    for place in range(len(prior.free)):
        step = torch.zeros_like(unit)
        step[:, place] = 1e-5
        above, below = (prior.curves(seen, prior.values(unit + sign * step)) for sign in (1, -1))
        expected = (above - below) / 2e-5
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(found.slopes[:, place] / scale, expected / scale, rtol=0, atol=1e-5)
        torch.testing.assert_close(pulled[:, place], (found.slopes[:, place] * gradients).sum(1))
