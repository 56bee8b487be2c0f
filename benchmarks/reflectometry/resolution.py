"""Whether fits and posteriors hold where a wide resolution blurs the fine fringes of thick films.

One film of 200 to 2000 angstrom, seen at 5 and at 10 % (full width at half maximum) with the resolution
integrated, which is what users get by default. Otherwise as in `reflectometry.posterior`.
"""

from __future__ import annotations

from benchmarks.reflectometry.posterior import coverage
from benchmarks.rows import Row, single_thread
from guidehall.science.reflectometry.params import FWHM_PER_SIGMA, StackPrior, TrainingProbe
from guidehall.science.reflectometry.prior import Prior

_WITHIN = 0.05


def run(quick: bool, *, films: int | None = None, samples: int = 500) -> list[Row]:
    """Coverage at both resolutions, of so many films each."""
    films = films or (10 if quick else 100)
    rows = []
    with single_thread():
        for percent in (5, 10):
            rows += coverage(
                f"thick film, dq/q {percent} %",
                _films(),
                films,
                samples,
                _WITHIN,
                relative_sigma=percent / 100.0 / FWHM_PER_SIGMA,
                mode="quadrature",
            )
    return rows


def _films() -> Prior:
    stack = StackPrior.model_validate(
        {
            "fronting": {"name": "air", "sld": 0},
            "layers": [
                {
                    "name": "film",
                    "sld": {"min": 3, "max": 6},
                    "thickness": {"min": 200, "max": 2000},
                    "roughness": {"min": 2, "max": 15},
                }
            ],
            "backing": {"name": "silicon", "sld": 2.07, "roughness": {"min": 1, "max": 8}},
        }
    )
    bounds = {"scale": {"min": 0.95, "max": 1.05}, "background": {"min": 1e-8, "max": 1e-5}}
    return Prior(stack, TrainingProbe.model_validate(bounds))
