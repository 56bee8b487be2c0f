"""The film and the measurement of the demonstration, and what refnx makes of the same model.

The curve is neutron reflectivity of a film on silicon under heavy water, beam through the silicon. It is
one of the files that the package refnx carries among its tests; it has R and dR but no resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

RELATIVE_DQ_FWHM = 0.05
_REFNX_SEED = 1


def measured_file() -> Path:
    """Where the measured curve is."""
    return Path(str(files("refnx") / "analysis" / "tests" / "e361r.txt"))


def film_params() -> dict[str, Any]:
    """Parameters of `reflectometry.nr_sld` for the film."""
    from guidehall.science.reflectometry.examples import film_under_water

    return film_under_water().model_dump(mode="json")


@dataclass(frozen=True)
class PeerFit:
    """What refnx answers: sum of squared normalised residuals, and its values under our parameter names."""

    chi_square: float
    reduced_chi_square: float
    values: dict[str, float]


def refnx_fit(prior: dict[str, Any], curve_file: Path) -> PeerFit:
    """Fits the same model within the same bounds with refnx: differential evolution, then its least squares.

    Args:
        prior: parameters of `reflectometry.nr_sld`.
        curve_file: three columns: Q in 1/angstrom, R, dR.
    """
    from refnx.analysis import CurveFitter, Objective
    from refnx.dataset import ReflectDataset
    from refnx.reflect import SLD, ReflectModel

    free: dict[str, Any] = {}

    def bounded(name: str, parameter: Any, bounds: dict[str, float]) -> None:
        low, high = bounds["min"], bounds["max"]
        parameter.value = (low + high) / 2
        if low < high:
            parameter.setp(vary=True, bounds=(low, high))
            free[name] = parameter

    stack = prior["stack"]
    fronting = SLD(stack["fronting"]["sld"]["min"])
    structure = fronting
    for layer in [*stack["layers"], stack["backing"]]:
        name = layer["name"]
        material = SLD(0.0)
        slab = material(0.0, 0.0)
        bounded(f"{name}.sld", material.real, layer["sld"])
        bounded(f"{name}.roughness", slab.rough, layer["roughness"])
        if "thickness" in layer:
            bounded(f"{name}.thickness", slab.thick, layer["thickness"])
        structure = structure | slab
    # refnx takes the resolution as a full width at half maximum in per cent.
    model = ReflectModel(structure, dq=100.0 * RELATIVE_DQ_FWHM)
    probe = prior["probe"]
    bounded("scale", model.scale, probe["scale"])
    bounded("background", model.bkg, probe["background"])
    objective = Objective(model, ReflectDataset(str(curve_file)))
    fitter = CurveFitter(objective)
    fitter.fit("differential_evolution", seed=_REFNX_SEED, verbose=False)
    fitter.fit("least_squares")
    chi_square = float(objective.chisqr())
    values = {name: float(parameter.value) for name, parameter in free.items()}
    return PeerFit(chi_square, chi_square / (objective.npoints - len(free)), values)
