"""Pipeline `reflectometry.pyreflect_predict`: profiles of measured curves, by a network of pyreflect."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np

from guidehall.science.pipeline import Context, UserError, raise_if_cancelled
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.analysis import assumed_resolution, file_notes
from guidehall.science.reflectometry.assessment import residuals_of
from guidehall.science.reflectometry.cnn.evaluation import reflectivity_of_profile
from guidehall.science.reflectometry.cnn.import_model import read_cnn
from guidehall.science.reflectometry.cnn.params import (
    FLOOR,
    CurveMisfit,
    ImportModelParams,
    PredictedCurve,
    PredictParams,
    PredictResult,
)
from guidehall.science.reflectometry.cnn.predictor import CnnPredictor
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.formats.read import read_curves
from guidehall.science.reflectometry.params import Note, sigma_of

MAX_CURVES = 1000
_FIELD = "inputs.experimental_nr"
# Of the result and in pictures; all profiles are in its file.
_SHOWN = 10


def run(params: PredictParams, context: Context) -> PredictResult:
    """Reads curves and network of the job, and applies one to the other."""
    began = time.monotonic()
    path = context.dataset("experimental_nr")
    curves = read_curves(path.read_bytes(), path.name, dq=params.dq_convention, field=_FIELD)
    if len(curves) > MAX_CURVES:
        raise UserError(_FIELD, f"{len(curves)} curves", f"at most {MAX_CURVES} are predicted in one job")
    predictor = read_cnn(ImportModelParams(q_spacing=params.q_spacing), context)
    profiles: list[np.ndarray] = []
    answers: list[PredictedCurve] = []
    misfits: list[CurveMisfit] = []
    decades: list[np.ndarray] = []
    notes: list[Note] = []
    unphysical = 0
    for place, curve in enumerate(curves, start=1):
        raise_if_cancelled(context)
        name = curve.metadata.data_set or str(place)
        profile = _profile(predictor, curve, name)
        again = _again(params, curve, profile)
        profiles.append(profile)
        unphysical += again is None
        notes += [Note(note.code, f"{name}: {note.message}") for note in _notes(params, curve)]
        misses = _decades(curve, again)
        if len(misses):
            decades.append(misses)
        misfits.append(_misfit(name, curve, again, misses))
        if place <= _SHOWN:
            answers.append(_answer(curve.q, curve.r, profile, again))
            _attach(context, f"curve-{place}-prediction", answers[-1])
        context.progress(place, len(curves), phase="predict")
    buffer = io.BytesIO()
    np.save(buffer, np.stack(profiles), allow_pickle=False)
    context.artifact("profiles.npy", buffer.getvalue(), "application/x-npy")
    chi_squares = [item.chi_square_per_point for item in misfits if item.chi_square_per_point is not None]
    return PredictResult(
        curves=len(curves),
        answers=answers,
        misfits=misfits,
        residuals=residuals_of(decades, unphysical, np.array(chi_squares) if chi_squares else None),
        notes=notes,
        seconds=time.monotonic() - began,
        provenance=context.provenance,
    )


def profiles_of_curves(predictor: CnnPredictor, curves: np.ndarray) -> np.ndarray:
    """Profiles [N, 2, M] of curves [N, 2, L]; where the network lets z descend, it stays instead."""
    answer = predictor.predict(
        {"q": np.ascontiguousarray(curves[:, 0]), "reflectivity": np.ascontiguousarray(curves[:, 1])}
    )
    return np.stack([np.maximum.accumulate(answer["z"], axis=1), answer["sld"]], axis=1)


def predicted(curve: np.ndarray, profile: np.ndarray, relative_sigma: float) -> PredictedCurve:
    """A curve [2, L] and its profile [2, M] as a result has them; the beam comes from the fronting medium."""
    q, r = curve.astype(np.float64)
    z, sld = profile.astype(np.float64)
    again = reflectivity_of_profile(q, relative_sigma, z, sld, "fronting")
    return _answer(q, r, profile, again)


def _profile(predictor: CnnPredictor, curve: Curve, name: str) -> np.ndarray:
    """Profile float32 [2, M] of a curve."""
    try:
        found: np.ndarray = profiles_of_curves(
            predictor, np.stack([curve.q, curve.r]).astype(np.float32)[None]
        )[0]
        return found
    except UserError as error:
        # It knows the curve as a row of a batch.
        raise UserError(_FIELD, f"curve {name}: {error.value}", error.allowed) from None


def _again(params: PredictParams, curve: Curve, profile: np.ndarray) -> np.ndarray | None:
    """The curve [N] of a profile as the instrument would have seen it."""
    own = None if curve.sigma is None else curve.sigma / curve.q
    z, sld = profile.astype(np.float64)
    return reflectivity_of_profile(
        curve.q, _assumed(params) if own is None else own, z, sld, curve.beam_side or params.beam
    )


def _notes(params: PredictParams, curve: Curve) -> Iterator[Note]:
    yield from file_notes(curve)
    if curve.sigma is None:
        yield assumed_resolution(_assumed(params))


def _assumed(params: PredictParams) -> float:
    return sigma_of(params.resolution, params.resolution_convention)


def _decades(curve: Curve, again: np.ndarray | None) -> np.ndarray:
    """log10 R of the answer's curve less that measured, at the points that the network sees."""
    seen = curve.r > FLOOR
    if again is None or not seen.any():
        return np.empty(0)
    misses: np.ndarray = np.log10(np.maximum(again[seen], FLOOR) / curve.r[seen])
    return misses


def _misfit(name: str, curve: Curve, again: np.ndarray | None, decades: np.ndarray) -> CurveMisfit:
    known = again is not None and curve.dr is not None
    return CurveMisfit(
        name=name,
        points=len(curve.q),
        mean_abs_log10_error=float(np.abs(decades).mean()) if len(decades) else None,
        chi_square_per_point=float((((curve.r - again) / curve.dr) ** 2).mean()) if known else None,
    )


def _answer(q: np.ndarray, r: np.ndarray, profile: np.ndarray, again: np.ndarray | None) -> PredictedCurve:
    z, sld = profile.astype(np.float64)
    return PredictedCurve(
        q=q.tolist(),
        reflectivity=r.tolist(),
        predicted_reflectivity=None if again is None else again.tolist(),
        z=z.tolist(),
        sld=sld.tolist(),
    )


def _attach(context: Context, name: str, answer: PredictedCurve) -> None:
    q = np.array(answer.q)
    lines = {"measured": (q, np.array(answer.reflectivity))}
    if answer.predicted_reflectivity is not None:
        lines["predicted"] = (q, np.array(answer.predicted_reflectivity))
    profile = {"predicted": (np.array(answer.z), np.array(answer.sld))}
    plots.attach(context, name, plots.curve_and_profile(lines, profile))
