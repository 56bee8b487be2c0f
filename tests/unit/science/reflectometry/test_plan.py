"""Plans of measurements, checked by measurements that are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidehall.science.pipeline import LocalContext, UserError
from guidehall.science.reflectometry import plan
from guidehall.science.reflectometry.plan_params import PlanParams
from tests.unit.science.reflectometry.test_infer import FILM


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_longer_counting_gives_smaller_errors_and_fits_agree(tmp_path: Path) -> None:
    params = {
        "stack": FILM,
        "expected": {"film.thickness": 210.0, "water.sld": 6.2},
        "measurement": {"seconds": [1e4, 1e6], "relative_error": 0.0, "points": 60},
        "checks": 60,
    }
    context = LocalContext(tmp_path, seed=1)
    result = plan.run(PlanParams.model_validate(params), context)
    assert result.expected["film.thickness"] == pytest.approx(210.0)
    short, long = result.times
    ratio = short.standard_errors["film.thickness"] / long.standard_errors["film.thickness"]
    # As the square root of the time, where neither the prior nor a single neutron decides.
    assert ratio == pytest.approx(10.0, rel=0.2)
    for name in ("film.thickness", "film.sld", "scale"):
        # Of 60 fits, so known to 9 %; three times that.
        assert long.scatter[name] == pytest.approx(long.standard_errors[name], rel=0.3), name
    assert {"errors.png", "expected-curve.npy"} <= set(context.artifacts)


def test_fits_do_not_know_the_truth_where_the_data_say_nothing(tmp_path: Path) -> None:
    """Two equal layers in a row: of which is which, only the sum of their thicknesses is measured."""
    half = {"thickness": {"min": 20, "max": 180}, "sld": 3.0, "roughness": 0}
    stack = {
        "fronting": {"name": "air", "sld": 0},
        "layers": [{"name": "upper", **half}, {"name": "lower", **half}],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": 3},
    }
    params = {
        "stack": stack,
        "expected": {"upper.thickness": 100.0, "lower.thickness": 100.0},
        "measurement": {"seconds": [1e4], "points": 60},
        "checks": 20,
    }
    (time,) = plan.run(PlanParams.model_validate(params), LocalContext(tmp_path, seed=1)).times
    # Of a standard deviation of the prior of 46: spread over much of it, not left at the truth.
    assert time.scatter["upper.thickness"] > 20


@pytest.mark.parametrize(
    ("expected", "field"),
    [
        ({"film.thicknes": 1.0}, "expected.film.thicknes"),
        ({"film.thickness": 1.0}, "expected.film.thickness"),
    ],
)
def test_what_the_prior_does_not_have_is_refused(
    tmp_path: Path, expected: dict[str, float], field: str
) -> None:
    params = PlanParams.model_validate({"stack": FILM, "expected": expected})
    with pytest.raises(UserError) as caught:
        plan.run(params, LocalContext(tmp_path))
    assert caught.value.field == field
