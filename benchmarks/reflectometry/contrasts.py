"""One film in three liquids, measured: our joint fit beside refnx's, with the same bounds.

The curves come with refnx, which looks for the minimum by differential evolution and then least squares, from
three seeds. Of these the lowest chi-square counts; of ours, that of the first seed.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import refnx
from refnx.analysis import CurveFitter, GlobalObjective, Objective
from refnx.dataset import ReflectDataset
from refnx.reflect import SLD, ReflectModel

from benchmarks.rows import Row, at_most, single_thread
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import Search
from guidehall.science.reflectometry.formats.read import read_curves
from guidehall.science.reflectometry.params import Range, StackPrior, TrainingProbe
from guidehall.science.reflectometry.solve import Measured, Solution, solve

_FOLDER = Path(refnx.__file__).parent / "analysis/tests"
# Liquids behind the film: file, name, bounds of the SLD.
_LIQUIDS = (("e361r", "d2o", (5.9, 6.4)), ("e365r", "mixture", (1.5, 4.0)), ("e366r", "h2o", (-0.6, 0.0)))
# Percent of q, at half maximum.
_RESOLUTION = 5.0
_OXIDE = {"thickness": (5.0, 30.0), "roughness": (1.0, 8.0)}
_FILM = {"sld": (0.0, 2.5), "thickness": (150.0, 300.0), "roughness": (1.0, 12.0)}
_WATER_ROUGHNESS, _SCALE, _BACKGROUND = (1.0, 12.0), (0.8, 1.2), (1e-8, 5e-5)
_SEEDS = (1, 2, 3)


def run(quick: bool, *, generations: int | None = None) -> list[Row]:
    """Chi-square of both, best of three seeds of each."""
    seeds = _SEEDS[:1] if quick else _SEEDS
    with single_thread():
        ours, our_seconds = [], []
        for seed in seeds:
            start = time.process_time()
            ours.append(_ours(seed).modes[0].chi_square)
            our_seconds.append(time.process_time() - start)
        theirs, their_seconds = [], []
        for seed in seeds:
            start = time.process_time()
            theirs.append(_refnx(seed, generations or (10 if quick else 30)))
            their_seconds.append(time.process_time() - start)
    points = sum(len(_curve(name).q) for name, _, _ in _LIQUIDS)

    def each(numbers: list[float]) -> str:
        return "seeds " + ", ".join(f"{number:.6g}" for number in numbers)

    return [
        Row("chi-square, ours, first seed", ours[0], "", note=f"{points} points; {each(ours)}"),
        Row("chi-square, refnx, best seed", min(theirs), "", note=each(theirs)),
        at_most("chi-square, ours, first seed / refnx, best seed", ours[0] / min(theirs), "times", 1.05),
        Row("one joint fit, ours", float(np.median(our_seconds)), "CPU-s"),
        Row("one joint fit, refnx", float(np.median(their_seconds)), "CPU-s", note="one seed"),
    ]


def _curve(name: str) -> Curve:
    return read_curves((_FOLDER / f"{name}.txt").read_bytes(), f"{name}.txt")[0]


def _range(bounds: tuple[float, float]) -> Range:
    return Range(min=bounds[0], max=bounds[1])


def _ours(seed: int) -> Solution:
    def each(bounds: dict[str, tuple[float, float]]) -> dict[str, Range]:
        return {kind: _range(limits) for kind, limits in bounds.items()}

    everywhere = (min(low for _, _, (low, _) in _LIQUIDS), max(high for _, _, (_, high) in _LIQUIDS))
    stack = StackPrior.model_validate(
        {
            "fronting": {"name": "silicon", "sld": 2.07},
            "layers": [
                {"name": "oxide", "sld": 3.47, **each(_OXIDE)},
                {"name": "film", **each(_FILM)},
            ],
            "backing": {
                "name": "water",
                "sld": _range(everywhere),
                "roughness": _range(_WATER_ROUGHNESS),
            },
        }
    )
    width = 0.01 * _RESOLUTION
    probe = TrainingProbe(
        resolution=_range((width, width)), scale=_range(_SCALE), background=_range(_BACKGROUND)
    )
    measured = [
        Measured(name, _curve(file), {"water.sld": _range(bounds)}) for file, name, bounds in _LIQUIDS
    ]
    return solve(stack, probe, measured, seed=seed, how=Search())


def _refnx(seed: int, generations: int) -> float:
    objective = _objective()
    fitter = CurveFitter(objective)
    with warnings.catch_warnings():
        # The least squares of SciPy warns where a start lies on a bound.
        warnings.simplefilter("ignore")
        fitter.fit("differential_evolution", maxiter=generations, rng=seed, verbose=False)
        fitter.fit("least_squares", verbose=False)
    return float(objective.chisqr())


def _objective() -> GlobalObjective:
    oxide, film = SLD(3.47)(15, 4), SLD(1.0)(210, 4)
    bounds = {
        oxide.thick: _OXIDE["thickness"],
        oxide.rough: _OXIDE["roughness"],
        film.thick: _FILM["thickness"],
        film.rough: _FILM["roughness"],
        film.sld.real: _FILM["sld"],
    }
    roughness = None
    objectives = []
    for name, _, limits in _LIQUIDS:
        water = SLD(0.5 * sum(limits))(0, 4)
        bounds[water.sld.real] = limits
        if roughness is None:
            roughness = water.rough
            bounds[roughness] = _WATER_ROUGHNESS
        else:
            water.rough.constraint = roughness
        model = ReflectModel(SLD(2.07) | oxide | film | water, dq=_RESOLUTION, bkg=2e-5, threads=1)
        bounds |= {model.scale: _SCALE, model.bkg: _BACKGROUND}
        objectives.append(Objective(model, ReflectDataset(_FOLDER / f"{name}.txt")))
    for parameter, limits in bounds.items():
        parameter.setp(vary=True, bounds=limits)
    return GlobalObjective(objectives)
