"""How good a network of pyreflect is, on curves that it has not seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.assessment import channel_errors, metrics_of, residuals_of
from guidehall.science.reflectometry.cnn.curves import CurveSet
from guidehall.science.reflectometry.cnn.params import FLOOR, CnnExample
from guidehall.science.reflectometry.cnn.predictor import CnnPredictor
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.params import SLD_UNIT, BeamSide, ChannelErrors, Residuals
from guidehall.science.reflectometry.resolution import resolution


class Evaluation(NamedTuple):
    """What a test told."""

    metrics: dict[str, float]
    channels: list[ChannelErrors]
    residuals: Residuals
    example: CnnExample


def evaluate(
    predictor: CnnPredictor, curves: CurveSet, rows: np.ndarray, relative_sigma: float, beam: BeamSide
) -> Evaluation:
    """Metrics over these curves, and the one whose error is the median.

    z in angstrom and SLD in 1e-6/angstrom^2, each by itself: `z_rmse`, `z_mae`, `z_r2`, `sld_rmse`, `sld_mae`
    and `sld_r2` compare point with point of the network's answer, `sld_at_depth_rmse` at the same depth.
    `log10_r_mae` is the mean difference of log10 R between the curve and that of the answer, at the
    resolution of the training, with scale 1 and without background; `unphysical` the share of answers that no
    curve can be calculated from.
    """
    nr, true = curves.nr[rows].astype(np.float64), curves.sld[rows].astype(np.float64)
    log10_r = np.log10(np.maximum(nr[:, 1], FLOOR))
    answer = predictor.profiles(log10_r).astype(np.float64)
    channels = [
        channel_errors(name, unit, answer[:, place], true[:, place])
        for place, (name, unit) in enumerate((("z", "angstrom"), ("sld", SLD_UNIT)))
    ]
    metrics = metrics_of(channels, "_")
    at_depth = np.array([_at_depth(*pair) for pair in zip(answer, true, strict=True)])
    errors = np.sqrt(np.mean((at_depth - true[:, 1]) ** 2, axis=1))
    metrics["sld_at_depth_rmse"] = float(np.sqrt(np.mean(errors**2)))
    again = [
        reflectivity_of_profile(q, relative_sigma, z, sld, beam)
        for q, (z, sld) in zip(nr[:, 0], answer, strict=True)
    ]
    decades = np.array(
        [
            np.log10(np.maximum(calculated, FLOOR)) - measured
            for calculated, measured in zip(again, log10_r, strict=True)
            if calculated is not None
        ]
    )
    residuals = residuals_of(decades, unphysical=len(again) - len(decades))
    if residuals.mean_abs is not None:
        metrics["log10_r_mae"] = residuals.mean_abs
    metrics["unphysical"] = residuals.unphysical / len(again)
    row = int(errors.argsort()[len(errors) // 2])
    q, (z, sld), calculated = nr[row, 0], answer[row], again[row]
    example = CnnExample(
        q=q.tolist(),
        reflectivity=nr[row, 1].tolist(),
        predicted_reflectivity=None if calculated is None else calculated.tolist(),
        z=true[row, 0].tolist(),
        sld=true[row, 1].tolist(),
        predicted_z=z.tolist(),
        predicted_sld=sld.tolist(),
    )
    return Evaluation(metrics, channels, residuals, example)


def _at_depth(answer: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Predicted SLD at the depths of the true profile."""
    sld: np.ndarray = np.interp(true[0], np.maximum.accumulate(answer[0]), answer[1])
    return sld


def reflectivity_of_profile(
    q: np.ndarray, relative_sigma: float | np.ndarray, z: np.ndarray, sld: np.ndarray, beam: BeamSide
) -> np.ndarray | None:
    """Reflectivity [N] of a profile cut into slabs, blurred like the curves it was learnt from.

    The media are what the profile ends with. Points where z does not grow are left out; None when fewer than
    three remain.

    Args:
        q: [N], in 1/angstrom, ascending.
        relative_sigma: one standard deviation of q over q: of all points, or [N], of each.
        z, sld: [M], from the backing medium to the fronting one.
    """
    highest = np.maximum.accumulate(z)
    keep = np.concatenate([[True], np.diff(highest) > 0])
    if keep.sum() < 3:
        return None
    z, sld = z[keep], sld[keep]
    slds = np.concatenate([sld[:1], 0.5 * (sld[:-1] + sld[1:]), sld[-1:]])
    backing_first = Media.of(slds, np.diff(z), np.zeros(len(z)))
    blur = resolution(q, relative_sigma * q, "refl1d")
    media = backing_first if beam == "backing" else backing_first.reversed()
    curve = engine.blur(blur, engine.reflectivity(blur.q, media))[0]
    found: np.ndarray = curve.numpy()
    return found if bool(torch.isfinite(curve).all()) else None
