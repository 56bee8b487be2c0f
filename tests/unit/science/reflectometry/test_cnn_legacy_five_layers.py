from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from guidehall.science.reflectometry.legacy_five_layers import (
    LEGACY_BOUNDS,
    LEGACY_FREE_PARAMETERS,
    LEGACY_RELATIVE_SIGMA,
    legacy_probe,
    legacy_q,
    legacy_stack,
)
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from pyreflect.input import reflectivity_data_generator
    return reflectivity_data_generator


def test_the_numbers_are_those_of_pyreflect(peer: Any) -> None:
    model = peer.ReflectivityFiveLayerModel()
    assert [(item["i"], item["par"], *item["bounds"]) for item in model.parameters] == list(LEGACY_BOUNDS)
    assert np.array_equal(legacy_q(), model.q)
    np.testing.assert_allclose(legacy_probe().q(), model.q, rtol=1e-13)
    assert (len(LEGACY_BOUNDS), LEGACY_FREE_PARAMETERS) == (19, 18)
    assert len(Prior(legacy_stack(), legacy_probe()).free) == LEGACY_FREE_PARAMETERS


def test_films_and_curves_are_those_of_pyreflect(peer: Any) -> None:
    model = peer.ReflectivityFiveLayerModel()
    prior = Prior(legacy_stack(), legacy_probe())
    names = ("silicon", "oxide", "film1", "film2", "film3", "film4", "film5")
    columns = {parameter.name: column for column, parameter in enumerate(prior.free)}
    draws = np.random.default_rng(1).uniform(-1, 1, size=(5, len(LEGACY_BOUNDS)))
    pars = model.to_model_parameters(draws)
    values = np.zeros((5, len(prior.free)))
    for bound, drawn in zip(LEGACY_BOUNDS, pars.T, strict=True):
        if bound.low < bound.high:
            values[:, columns[f"{names[bound.layer]}.{bound.parameter}"]] = drawn
    q = legacy_q()
    ours = prior.curves(resolution(q, LEGACY_RELATIVE_SIGMA * q, "refl1d"), torch.from_numpy(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [peer.calculate_reflectivity(model.q, model.get_model_description(row))[0] for row in pars]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-8)
