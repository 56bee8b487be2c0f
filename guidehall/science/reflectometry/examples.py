"""Films to try the pipelines on."""

from __future__ import annotations

from guidehall.science.reflectometry.params import NrSldParams


def film_under_water() -> NrSldParams:
    """A film on silicon under heavy water, measured through the silicon.

    Good for `e361r.txt`, a measurement that the package refnx carries among its tests. Trains in about a
    minute on one core.
    """
    return NrSldParams.model_validate(
        {
            "model_name": "film-under-water",
            "stack": {
                "fronting": {"name": "silicon", "sld": 2.07},
                "layers": [
                    {
                        "name": "oxide",
                        "thickness": {"min": 5, "max": 30},
                        "sld": 3.47,
                        "roughness": {"min": 1, "max": 8},
                    },
                    {
                        "name": "film",
                        "thickness": {"min": 150, "max": 300},
                        "sld": {"min": 0.0, "max": 2.5},
                        "roughness": {"min": 1, "max": 12},
                    },
                ],
                "backing": {
                    "name": "water",
                    "sld": {"min": 5.9, "max": 6.4},
                    "roughness": {"min": 1, "max": 12},
                },
            },
            "probe": {
                "q_min": 0.008,
                "q_max": 0.25,
                "points": 96,
                "resolution": {"min": 0.03, "max": 0.07},
                "scale": {"min": 0.8, "max": 1.2},
                "background": {"min": 1e-6, "max": 5e-5},
            },
            "training": {"epochs": 8},
        }
    )
