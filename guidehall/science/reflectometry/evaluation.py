"""How good a trained network is, on films that neither training nor the choice of the best epoch has seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry.assessment import channel_errors, metrics_of, residuals_of
from guidehall.science.reflectometry.draw import Draw
from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.network import Network, Seen
from guidehall.science.reflectometry.params import SLD_UNIT, ChannelErrors, PredictionExample, Residuals

_PROFILE_POINTS = 256


class Evaluation(NamedTuple):
    """What a test told."""

    metrics: dict[str, float]
    channels: list[ChannelErrors]
    residuals: Residuals
    example: PredictionExample


@torch.inference_mode()
def evaluate(network: Network, draw: Draw, count: int) -> Evaluation:
    """Tests a network on `count` new curves, and gives the one whose error is the median as an example.

    Answers to curves with noise are compared with the truth, without noise. Channels: R and log10 R (decades)
    of the curves calculated from the answers, the SLD profile, and each parameter in its own unit. Metrics
    are `log10_r_mae`, `log10_r_rmse`, `sld_mae` and so on, and `<parameter>.mae`, `.rmse` and `.r2`.
    """
    prior, truth = draw.prior, draw.curves(count)
    dr = draw.errors(truth.r)
    measured = draw.scatter(truth.r, dr)
    answer = network(Seen.whole(measured, dr, truth.relative_sigma))
    values, true_values = prior.values(answer), prior.values(truth.unit)
    r = draw.calculate(values, truth.relative_sigma)
    z = prior.depth_grid(_PROFILE_POINTS)
    sld, true_sld = (
        profile(z, films.sld, films) for films in (prior.films(values), prior.films(true_values))
    )
    decades = _array((r / truth.r).log10())
    # What is fixed has no error.
    chi_square = _array(((measured - r) / dr.clamp_min(1e-15)).square().mean(dim=1))
    whole = [
        channel_errors("r", "", _array(r), _array(truth.r)),
        channel_errors("log10_r", "", _array(r.log10()), _array(truth.r.log10())),
        channel_errors("sld", SLD_UNIT, _array(sld), _array(true_sld)),
    ]
    parameters = [
        channel_errors(free.name, free.unit, _array(values[:, place]), _array(true_values[:, place]))
        for place, free in enumerate(prior.free)
    ]
    row = int(np.abs(decades).mean(axis=1).argsort()[count // 2])

    def numbers(tensor: Tensor) -> list[float]:
        found: list[float] = tensor.tolist()
        return found

    names = [free.name for free in prior.free]
    example = PredictionExample(
        q=numbers(draw.q),
        reflectivity=numbers(measured[row]),
        predicted_reflectivity=numbers(r[row]),
        z=numbers(z),
        sld=numbers(true_sld[row]),
        predicted_sld=numbers(sld[row]),
        parameters=dict(zip(names, numbers(true_values[row]), strict=True)),
        predicted_parameters=dict(zip(names, numbers(values[row]), strict=True)),
    )
    return Evaluation(
        metrics=metrics_of(whole, "_") | metrics_of(parameters, "."),
        channels=[*whole, *parameters],
        residuals=residuals_of(decades, chi_square_per_point=chi_square),
        example=example,
    )


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.double().cpu().numpy()
    return array
