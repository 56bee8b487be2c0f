"""A thousand random films of each set of bounds, as refl1d and pyreflect calculate them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.legacy_five_layers import (
    LEGACY_BOUNDS,
    LEGACY_RELATIVE_SIGMA,
    LEGACY_SUBSTRATE_SLD,
    legacy_q,
)
from guidehall.science.reflectometry.resolution import resolution

FILMS = 1000
POINTS = 900
Films = tuple[np.ndarray, np.ndarray, np.ndarray]


def legacy(generator: np.random.Generator) -> Films:
    """SLD [N, 8], thickness [N, 6] and roughness [N, 7] of five polymer layers on oxide, substrate first."""
    sld, thickness, roughness = np.zeros((FILMS, 8)), np.zeros((FILMS, 8)), np.zeros((FILMS, 8))
    sld[:, 0] = LEGACY_SUBSTRATE_SLD
    arrays = {"sld": sld, "thickness": thickness, "roughness": roughness}
    for bound in LEGACY_BOUNDS:
        arrays[bound.parameter][:, bound.layer] = generator.uniform(bound.low, bound.high, FILMS)
    return sld, thickness[:, 1:-1], roughness[:, :-1]


def automatic(generator: np.random.Generator) -> Films:
    """The bounds that pyreflect makes for itself: roughness up to 150 angstrom, and none at all."""

    def draw(low: float, high: float, columns: int) -> np.ndarray:
        return generator.uniform(low, high, (FILMS, columns))

    zero, substrate = np.zeros((FILMS, 1)), np.full((FILMS, 1), 2.07)
    return (
        np.hstack([substrate, draw(3, 3.9, 1), draw(0, 6.4, 5), zero]),
        np.hstack([draw(10, 25, 1), draw(10, 300, 5)]),
        np.hstack([draw(0, 5, 1), draw(1, 10, 1), draw(0, 150, 5)]),
    )


@pytest.mark.filterwarnings("ignore:data argument is deprecated")
@pytest.mark.parametrize("bounds", [legacy, automatic])
def test_curves_and_profiles_are_those_of_refl1d_and_pyreflect(
    bounds: Callable[[np.random.Generator], Films],
) -> None:
    from pyreflect.input.reflectivity_data_generator import calculate_reflectivity

    sld, thickness, roughness = bounds(np.random.default_rng(7))
    films = Media.of(sld=sld, thickness=thickness, roughness=roughness)
    q = legacy_q()
    seen = resolution(q, LEGACY_RELATIVE_SIGMA * q, "refl1d")
    # The beam comes from the air, which is last.
    r = engine.blur(seen, engine.reflectivity(seen.q, films.reversed())).numpy()
    z, profile = (array.numpy() for array in engine.sampled_profile(films, films.sld, POINTS))
    for row in range(FILMS):
        depth = (0.0, *thickness[row], 0.0)
        above = (*roughness[row], 0.0)
        layers = [
            {"name": f"m{i}", "sld": s, "isld": 0.0, "thickness": t, "roughness": a}
            for i, (s, t, a) in enumerate(zip(sld[row], depth, above, strict=True))
        ]
        description = {"layers": layers, "background": 0, "scale": 1}
        # What refl1d calculates, in float64.
        their_r, their_z, their_profile = calculate_reflectivity(q, description)
        np.testing.assert_allclose(r[row], their_r, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(z[row], their_z, rtol=0, atol=1e-9)
        np.testing.assert_allclose(profile[row], their_profile, rtol=0, atol=1e-9)
        # What pyreflect keeps of it.
        kept = (their_r.astype(np.float32), (their_z - their_z.min()).astype(np.float32))
        np.testing.assert_allclose(r[row], kept[0], rtol=1e-6)
        np.testing.assert_allclose(z[row] - z[row, 0], kept[1], rtol=1e-6, atol=1e-6)


def test_the_torch_kernel_samples_profiles_alike() -> None:
    from guidehall.science.reflectometry import kernel

    sld, thickness, roughness = automatic(np.random.default_rng(8))
    films = Media.of(sld=sld[:50], thickness=thickness[:50], roughness=roughness[:50])
    fast, slow = (part.sampled_profile(films, films.sld, POINTS) for part in (engine, kernel))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
