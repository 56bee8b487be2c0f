"""The whole way on a real measurement, and the same model fitted by another package."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import refnx

from guidehall.science import registry
from guidehall.science.manifest import Manifest
from guidehall.science.pipeline import LocalContext
from guidehall.science.reflectometry.analysis import analyse, refine
from guidehall.science.reflectometry.curves import read_curve
from guidehall.science.reflectometry.examples import film_under_water
from guidehall.science.reflectometry.predictor import PhysicalPredictor

MEASURED = Path(refnx.__file__).parent / "analysis/tests/e361r.txt"


def fitted_by_refnx() -> float:
    """Chi-square of its least-squares fit of the same film within the same bounds."""
    from refnx.analysis import CurveFitter, Objective
    from refnx.dataset import ReflectDataset
    from refnx.reflect import SLD, ReflectModel

    film = SLD(2.07) | SLD(3.47)(15, 4) | SLD(1.0)(210, 4) | SLD(6.2)(0, 4)
    bounds = {
        film[1].thick: (5, 30),
        film[1].rough: (1, 8),
        film[2].thick: (150, 300),
        film[2].rough: (1, 12),
        film[2].sld.real: (0, 2.5),
        film[3].rough: (1, 12),
        film[3].sld.real: (5.9, 6.4),
    }
    model = ReflectModel(film, dq=5.0, bkg=2e-5, threads=1)
    bounds |= {model.scale: (0.8, 1.2), model.bkg: (1e-6, 5e-5)}
    for parameter, limits in bounds.items():
        parameter.setp(vary=True, bounds=limits)
    objective = Objective(model, ReflectDataset(MEASURED))
    CurveFitter(objective).fit("least_squares")
    return float(objective.chisqr())


@pytest.mark.slow
def test_reads_a_film_under_water_from_a_measured_curve(tmp_path: Path) -> None:
    example = film_under_water()
    # A third of what it trains by itself is enough to be near.
    shorter = example.model_copy(update={"training": example.training.model_copy(update={"epochs": 3})})
    registry.pipeline("reflectometry.nr_sld").run(shorter, LocalContext(tmp_path, seed=1))
    folder = tmp_path / "models/film-under-water"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    model = registry.load_predictor(manifest, (folder / "model.safetensors").read_bytes())
    assert isinstance(model, PhysicalPredictor)
    curve = read_curve(MEASURED.read_bytes())
    start = analyse(model, curve)
    assert start.mean_abs_log10_error < 0.15
    begin = time.monotonic()
    best = refine(model.arguments, curve, start.unit)
    assert time.monotonic() - begin < 35  # it takes 3 s
    assert best.mean_abs_log10_error < 0.03
    assert best.chi_square == pytest.approx(fitted_by_refnx(), rel=0.02)
    found = {item.name: item.value for item in best.parameters}
    assert found["film.thickness"] == pytest.approx(211, abs=3)
    assert found["oxide.thickness"] == pytest.approx(13, abs=3)
    assert np.isfinite(best.sld).all()
