from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from refnx import reflect

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


def test_names_may_differ_in_a_space_alone() -> None:
    layer = {"thickness": {"min": 5, "max": 9}, "sld": 3}
    names = ["film 1", "film_1"]
    document = {
        "fronting": {"name": "air", "sld": 0},
        "layers": [layer | {"name": name} for name in names],
        "backing": {"sld": 2},
    }
    prior = Prior(StackPrior.model_validate(document), film_under_water().probe)
    film = prior.films(torch.tensor([[6.0, 8.0, 1.0, 1e-6]], dtype=torch.float64))
    assert film.thickness.tolist() == [[6.0, 8.0]]


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


def multilayer(side: str = "fronting") -> dict[str, Any]:
    """Five bilayers on an oxide, in air."""
    return {
        "fronting": {"name": "air", "sld": 0},
        "layers": [
            {"name": "cap", "thickness": 15, "sld": 2.5, "roughness": 4},
            {
                "name": "nickel",
                "thickness": {"min": 30, "max": 60},
                "sld": {"min": 8, "max": 10},
                "roughness": {"min": 2, "max": 6},
            },
            {"name": "titanium", "thickness": {"min": 40, "max": 80}, "sld": -1.9, "roughness": 3},
            {"name": "oxide", "thickness": 12, "sld": 3.47, "roughness": 3},
        ],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": 2},
        "repeats": [{"first": "nickel", "last": "titanium", "times": 5}],
        "beam": side,
    }


@pytest.mark.parametrize("side", ["fronting", "backing"])
def test_repeats_are_the_same_layers_again(side: str) -> None:
    prior = Prior(StackPrior.model_validate(multilayer(side)), film_under_water().probe)
    assert [free.name for free in prior.free][:3] == ["nickel.thickness", "nickel.sld", "nickel.roughness"]
    values = torch.tensor([[45.0, 9.0, 5.0, 60.0, 1.0, 1e-6]], dtype=torch.float64)
    film = prior.films(values)
    nickel, titanium = [45.0, 9.0, 5.0], [60.0, -1.9, 3.0]
    rows = [[15.0, 2.5, 4.0], *(5 * [nickel, titanium]), [12.0, 3.47, 3.0]]
    assert film.thickness.tolist() == [[row[0] for row in rows]]
    assert film.sld.tolist() == [[0.0, *(row[1] for row in rows), 2.07]]
    assert film.roughness.tolist() == [[*(row[2] for row in rows), 2.0]]
    check_derivatives(prior)


def test_a_multilayer_reflects_as_that_of_refnx() -> None:
    prior = Prior(StackPrior.model_validate(multilayer()), film_under_water().probe)
    bilayer = reflect.SLD(9.0)(45, 5) | reflect.SLD(-1.9)(60, 3)
    multiple = reflect.Stack(components=list(bilayer.components), repeats=5)
    peer = reflect.SLD(0)() | reflect.SLD(2.5)(15, 4) | multiple | reflect.SLD(3.47)(12, 3)
    peer |= reflect.SLD(2.07)(0, 2)
    q = np.linspace(0.01, 0.3, 200)
    found = prior.measured(
        torch.from_numpy(q), None, torch.tensor([[45.0, 9.0, 5.0, 60.0, 1.0, 1e-6]], dtype=torch.float64)
    )
    np.testing.assert_allclose(found[0].numpy() - 1e-6, peer.reflectivity(q), rtol=1e-6)


def solvated(side: str) -> dict[str, Any]:
    """A wet film on silicon; the beam and the liquid come from one side each."""
    film = {
        "name": "film",
        "thickness": 150,
        "sld": {"min": 0.5, "max": 2},
        "isld": 0.2,
        "roughness": 4,
        "solvent": {"min": 0.1, "max": 0.6},
    }
    silicon, water = {"name": "silicon", "sld": 2.07}, {"name": "water", "sld": {"min": 5, "max": 6.4}}
    media = (silicon, water) if side == "backing" else (water, silicon)
    return {"fronting": media[0], "layers": [film], "backing": media[1], "liquid": side}


@pytest.mark.parametrize("side", ["fronting", "backing"])
def test_solvent_mixes_as_in_refnx(side: str) -> None:
    prior = Prior(StackPrior.model_validate(solvated(side)), film_under_water().probe)
    check_derivatives(prior)
    numbers = {"film.sld": 1.2, "film.solvent": 0.3, "water.sld": 6.1, "scale": 1.0, "background": 1e-6}
    values = torch.tensor([[numbers[free.name] for free in prior.free]], dtype=torch.float64)
    silicon, water = reflect.SLD(2.07), reflect.SLD(6.1)
    film = reflect.Slab(150, reflect.SLD(1.2 + 0.2j), 4, vfsolv=0.3)
    peer = silicon() | film | water() if side == "backing" else water() | film | silicon()
    peer.solvent = water
    seen = prior.films(values)
    slab = peer.slabs()[1]
    assert (float(seen.sld[0, 1]), float(seen.isld[0, 1])) == pytest.approx((slab[1], slab[2]))
    q = np.linspace(0.01, 0.3, 200)
    found = prior.measured(torch.from_numpy(q), None, values)[0].numpy() - 1e-6
    np.testing.assert_allclose(found, peer.reflectivity(q), rtol=1e-5)


def test_molecules_make_the_leaflet_of_refnx() -> None:
    heads = {"b": 60.0, "volume": 320.0, "area": {"min": 50, "max": 70}}
    tails = {"b": -29.0, "volume": 780.0, "area": "heads.area"}
    document = {
        "fronting": {"name": "air", "sld": 0},
        "layers": [
            {"name": "tails", "molecules": tails, "roughness": 3},
            {"name": "heads", "molecules": heads, "thickness": {"min": 8, "max": 12}, "roughness": 3},
        ],
        "backing": {"name": "water", "sld": 6.36, "roughness": 3},
    }
    stack = StackPrior.model_validate(document)
    assert StackPrior.model_validate_json(stack.model_dump_json()) == stack
    prior = Prior(stack, film_under_water().probe)
    check_derivatives(prior)
    assert [free.name for free in prior.free][:2] == ["heads.thickness", "heads.area"]
    film = prior.films(torch.tensor([[10.0, 60.0, 1.0, 1e-6]], dtype=torch.float64))
    leaflet = reflect.LipidLeaflet(60, 60e-5, 320, 10, -29e-5, 780, 780 / 60, 3, 3, reverse_monolayer=True)
    slabs = (reflect.SLD(0)() | leaflet | reflect.SLD(6.36)(0, 3)).slabs()
    np.testing.assert_allclose(film.sld[0].numpy(), slabs[:, 1], rtol=1e-12)
    np.testing.assert_allclose(film.thickness[0].numpy(), slabs[1:-1, 0], rtol=1e-12)


def test_wet_molecules_are_thicker() -> None:
    molecules = {"b": 60.0, "volume": 320.0, "area": {"min": 50, "max": 70}}
    layer = {"name": "in", "molecules": molecules, "solvent": {"min": 0, "max": 0.5}}
    document = {"fronting": {"name": "air", "sld": 0}, "layers": [layer], "backing": {"sld": 6.36}}
    prior = Prior(StackPrior.model_validate(document), film_under_water().probe)
    assert [free.name for free in prior.free][:2] == ["in.solvent", "in.area"]
    film = prior.films(torch.tensor([[0.25, 64.0, 1.0, 1e-6]], dtype=torch.float64))
    assert float(film.thickness) == pytest.approx(320 / 64 / 0.75)
    assert float(film.sld[0, 1]) == pytest.approx(0.75 * 600 / 320 + 0.25 * 6.36)


@pytest.mark.parametrize("repeated", [False, True])
def test_roughness_is_cut_to_a_share_of_the_thinner_neighbour(repeated: bool) -> None:
    document = multilayer()
    document["max_roughness_share"] = 0.1
    values = torch.tensor([[30.0, 9.0, 5.0, 60.0, 1.0, 1e-6]], dtype=torch.float64)
    if not repeated:
        document["repeats"] = []
    prior = Prior(StackPrior.model_validate(document), film_under_water().probe)
    # Cap and nickel touch, and in the multilayer titanium and nickel as well.
    film = prior.films(values)
    count = 5 if repeated else 1
    found = [1.5, *(count * [1.5, 3.0]), 1.2, 1.2]
    assert film.roughness[0].tolist() == pytest.approx(found)
    full = prior.films(prior.values(torch.ones(1, len(prior.free))))
    assert float(full.roughness.max()) == 3.0
    # Where nothing is cut, nothing changes.
    loose = Prior(
        StackPrior.model_validate(multilayer() | {"max_roughness_share": 1.0}), film_under_water().probe
    )
    free = Prior(StackPrior.model_validate(multilayer()), film_under_water().probe)
    torch.testing.assert_close(loose.films(values).roughness, free.films(values).roughness)
    torch.testing.assert_close(loose.depth_grid(9), free.depth_grid(9))
    check_derivatives(loose)


def test_sobol_points_are_even_and_those_of_their_seed() -> None:
    prior = prior_of(film_under_water())
    # Seeds of jobs have 64 bits.
    unit = prior.sobol(256, 2**64 - 1)
    assert unit.shape == (256, len(prior.free))
    assert unit.dtype == torch.float64
    assert bool(((unit >= 0) & (unit <= 1)).all())
    torch.testing.assert_close(prior.sobol(256, 2**64 - 1), unit, rtol=0, atol=0)
    assert not torch.equal(prior.sobol(256, 4), unit)
    # Of every parameter, one point lies in each 256th.
    assert ((256 * unit).floor().sort(0).values == torch.arange(256.0)[:, None]).all()
    # The square of any two is filled evenly, too: random counts would have a variance of 15.
    counts = torch.stack([torch.histogramdd(unit[:, [a, b]], 4).hist for a in range(9) for b in range(a)])
    assert float(counts.var()) < 4


def test_sobol_leaves_the_random_state_alone() -> None:
    prior = prior_of(film_under_water())
    before = torch.get_rng_state()
    prior.sobol(8, 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("count", [0, 2**30 + 1])
def test_sobol_has_so_many_points(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        prior_of(film_under_water()).sobol(count, 0)
