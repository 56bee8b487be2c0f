"""How good a trained network is, on films that it has not seen."""

from __future__ import annotations

import torch
from torch import Tensor

from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.network import compress
from guidehall.science.reflectometry.params import PredictionExample
from guidehall.science.reflectometry.training import Trainer

_PROFILE_POINTS = 256


@torch.inference_mode()
def validate(trainer: Trainer) -> tuple[dict[str, float], PredictionExample]:
    """Metrics over the validation curves, and the curve whose error is the median as an example.

    The errors compare with the truth, without noise: `log10_r_mae` the curves calculated from the answer,
    `sld_rmse` the profiles (1e-6/angstrom^2), and `<parameter>.mae` each parameter in its own unit.
    """
    prior, truth = trainer.prior, trainer.validation
    known = torch.ones_like(truth.r, dtype=torch.bool)
    answer = trainer.network(compress(trainer.validation_measured), known, truth.relative_sigma)
    values, true_values = prior.values(answer), prior.values(truth.unit)
    r = trainer.calculate(values, truth.relative_sigma)
    z = prior.depth_grid(_PROFILE_POINTS)
    sld, true_sld = (
        profile(z, films.sld, films) for films in (prior.films(values), prior.films(true_values))
    )
    curve_errors = (r / truth.r).log10().abs().mean(dim=1)
    parameter_errors = (values - true_values).abs().mean(dim=0).tolist()
    metrics = {
        "log10_r_mae": float(curve_errors.mean()),
        "sld_rmse": float((sld - true_sld).square().mean().sqrt()),
    }
    names = [parameter.name for parameter in prior.free]
    metrics |= {f"{name}.mae": error for name, error in zip(names, parameter_errors, strict=True)}
    row = int(curve_errors.argsort()[len(curve_errors) // 2])

    def numbers(tensor: Tensor) -> list[float]:
        found: list[float] = tensor.tolist()
        return found

    example = PredictionExample(
        q=numbers(trainer.q),
        reflectivity=numbers(trainer.validation_measured[row]),
        predicted_reflectivity=numbers(r[row]),
        z=numbers(z),
        sld=numbers(true_sld[row]),
        predicted_sld=numbers(sld[row]),
        parameters=dict(zip(names, numbers(true_values[row]), strict=True)),
        predicted_parameters=dict(zip(names, numbers(values[row]), strict=True)),
    )
    return metrics, example
