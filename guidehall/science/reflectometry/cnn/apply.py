"""Pipeline `reflectometry.apply_cnn`: profiles of measured curves by a network of pyreflect that is there."""

from __future__ import annotations

import io
import time

import numpy as np

from guidehall.science.pipeline import Context, raise_if_cancelled
from guidehall.science.reflectometry.cnn.curves import read_pairs
from guidehall.science.reflectometry.cnn.evaluation import reflectivity_of_profile
from guidehall.science.reflectometry.cnn.import_model import read_cnn
from guidehall.science.reflectometry.cnn.params import (
    AppliedCurve,
    ApplyCnnParams,
    ApplyCnnResult,
    ImportModelParams,
)
from guidehall.science.reflectometry.cnn.predictor import CnnPredictor
from guidehall.science.reflectometry.params import sigma_of

MAX_CURVES = 1000
# Of the result; all are in its artifact.
_SHOWN = 20


def run(params: ApplyCnnParams, context: Context) -> ApplyCnnResult:
    """Reads the network and the curves of the job, and applies one to the other."""
    began = time.monotonic()
    raise_if_cancelled(context)
    field = "inputs.experimental_nr"
    curves = read_pairs(context.dataset("experimental_nr"), field, rows=(1, MAX_CURVES))
    predictor = read_cnn(ImportModelParams(q_spacing=params.q_spacing), context)
    profiles = profiles_of_curves(predictor, curves)
    context.progress(len(curves), len(curves), phase="apply")
    buffer = io.BytesIO()
    np.save(buffer, profiles.astype(np.float32), allow_pickle=False)
    context.artifact("profiles.npy", buffer.getvalue(), "application/x-npy")
    sigma = sigma_of(params.resolution, params.resolution_convention)
    answers = [applied(*pair, sigma) for pair in zip(curves[:_SHOWN], profiles, strict=False)]
    return ApplyCnnResult(curves=len(curves), answers=answers, seconds=time.monotonic() - began)


def profiles_of_curves(predictor: CnnPredictor, curves: np.ndarray) -> np.ndarray:
    """Profiles [N, 2, M] of curves [N, 2, L]; where the network lets z descend, it stays instead."""
    answer = predictor.predict(
        {"q": np.ascontiguousarray(curves[:, 0]), "reflectivity": np.ascontiguousarray(curves[:, 1])}
    )
    return np.stack([np.maximum.accumulate(answer["z"], axis=1), answer["sld"]], axis=1)


def applied(curve: np.ndarray, profile: np.ndarray, relative_sigma: float) -> AppliedCurve:
    """A curve [2, L] and its profile [2, M] as a result has them; the beam comes from the fronting medium."""
    q, r = curve.astype(np.float64)
    z, sld = profile.astype(np.float64)
    again = reflectivity_of_profile(q, relative_sigma, z, sld, "fronting")
    return AppliedCurve(
        q=q.tolist(),
        reflectivity=r.tolist(),
        predicted_reflectivity=None if again is None else again.tolist(),
        z=z.tolist(),
        sld=sld.tolist(),
    )
