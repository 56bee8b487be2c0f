from __future__ import annotations

import numpy as np
import pytest
import torch

from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.kernel import interfaces
from guidehall.science.reflectometry.params import NrSldParams, Range, StackPrior
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


def check_derivatives(prior: Prior) -> None:
    """Those of `linearise` and `pull` are the differences of `curves`."""
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
        assert scale > 0, prior.free[place].name
        torch.testing.assert_close(found.slopes[:, place] / scale, expected / scale, rtol=0, atol=1e-5)
        torch.testing.assert_close(pulled[:, place], (found.slopes[:, place] * gradients).sum(1))


@pytest.mark.parametrize("side", ["fronting", "backing"])
def test_derivatives_are_those_of_differences(side: str) -> None:
    params = film_under_water()
    probe = params.probe.model_copy(update={"q_offset": Range(min=-1e-4, max=1e-4)})
    check_derivatives(Prior(params.stack.model_copy(update={"beam": side}), probe))


def tied_stack(side: str = "fronting") -> StackPrior:
    """A film whose parts follow each other and a volume fraction."""
    return StackPrior.model_validate(
        {
            "fronting": {"name": "silicon", "sld": 2.07},
            "layers": [
                {"name": "thin-layer", "thickness": {"min": 20, "max": 60}, "sld": 3.47, "roughness": 4},
                {
                    "name": "film",
                    "thickness": "2 * thin_layer.thickness + 10",
                    "sld": "water.sld * (1 - phi) + 0.6 * phi",
                    "roughness": "min(thin_layer.roughness * 2, film.thickness / 9)",
                },
            ],
            "backing": {"name": "water", "sld": {"min": 5.9, "max": 6.4}, "roughness": "film.roughness"},
            "parameters": {"phi": {"min": 0.1, "max": 0.9}},
            "beam": side,
        }
    )


def test_ties_give_the_film_that_they_say() -> None:
    prior = Prior(tied_stack(), film_under_water().probe)
    names = [free.name for free in prior.free]
    assert names == ["thin-layer.thickness", "water.sld", "phi", "scale", "background"]
    film = prior.films(torch.tensor([[30.0, 6.0, 0.5, 1.0, 1e-6]] * 2, dtype=torch.float64))
    assert film.thickness.tolist() == [[30.0, 70.0]] * 2
    torch.testing.assert_close(film.sld[0], torch.tensor([2.07, 3.47, 3.3, 6.0], dtype=torch.float64))
    torch.testing.assert_close(film.roughness[0], torch.tensor([4.0, 70 / 9, 70 / 9], dtype=torch.float64))


@pytest.mark.parametrize("side", ["fronting", "backing"])
def test_derivatives_go_through_ties(side: str) -> None:
    check_derivatives(Prior(tied_stack(side), film_under_water().probe))


@torch.inference_mode()
def test_derivatives_go_through_ties_where_torch_takes_none() -> None:
    check_derivatives(Prior(tied_stack(), film_under_water().probe))


def test_films_of_ties_can_be_differentiated() -> None:
    prior = Prior(tied_stack(), film_under_water().probe)
    unit = torch.full((1, len(prior.free)), 0.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(prior.films(prior.values(unit)).thickness[:, 1].sum(), unit)
    # Twice the width of the prior.
    assert slope.tolist() == [[80.0, 0.0, 0.0, 0.0, 0.0]]


def test_a_tie_stays_within_its_limits() -> None:
    document = tied_stack().model_dump()
    document["layers"][1]["thickness"] = "thin_layer.thickness - 40"
    document["layers"][1]["roughness"] = {"expression": "thin_layer.thickness", "min": 5, "max": 30}
    prior = Prior(StackPrior.model_validate(document), film_under_water().probe)
    unit = torch.zeros(2, len(prior.free), dtype=torch.float64)
    unit[1] = 1.0
    film = prior.films(prior.values(unit))
    assert film.thickness[:, 1].tolist() == [0.0, 20.0]
    assert film.roughness[:, 1].tolist() == [20.0, 30.0]


def test_the_depth_grid_holds_films_that_shrink_as_others_grow() -> None:
    document = tied_stack().model_dump()
    document["layers"][1]["thickness"] = "300 - 4 * thin_layer.thickness"
    prior = Prior(StackPrior.model_validate(document), film_under_water().probe)
    z = prior.depth_grid(100)
    unit = torch.rand(50, len(prior.free), dtype=torch.float64)
    depth = interfaces(prior.films(prior.values(unit)))
    assert float(z[-1]) > float(depth.max())
    assert float(z[-1]) < 500
