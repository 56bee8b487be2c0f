"""Pipeline `reflectometry.pyreflect_cnn`: make or read curves, train, test, publish."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from guidehall.science.pipeline import Context, UserError
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.assessment import Stopwatch
from guidehall.science.reflectometry.cnn import peer
from guidehall.science.reflectometry.cnn.curves import (
    CurveSet,
    kept_pairs,
    make_curves,
    read_curves,
    relative_sigma,
)
from guidehall.science.reflectometry.cnn.evaluation import evaluate
from guidehall.science.reflectometry.cnn.files import statistics_files, weights_file
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape, shape_of
from guidehall.science.reflectometry.cnn.params import (
    FLOOR,
    MAX_WEIGHTS,
    PROFILE_POINTS,
    CnnExample,
    CnnParams,
    CnnResult,
    Normalisation,
)
from guidehall.science.reflectometry.cnn.predictor import CnnArguments, CnnPredictor, publish
from guidehall.science.reflectometry.cnn.training import CnnTrainer, fit_normalisation
from guidehall.science.reflectometry.draw import Seeds
from guidehall.science.reflectometry.epochs import EndedBy, Split
from guidehall.science.reflectometry.legacy_five_layers import LEGACY_POINTS
from guidehall.science.reflectometry.params import EpochLosses

# Of all curves, held back for validation, and as many for testing.
_HELD_BACK = 0.1


def run(params: CnnParams, context: Context) -> CnnResult:
    """Trains a model and publishes it."""
    result, _, _ = train(params, context, "reflectometry.pyreflect_cnn")
    return result


def train(params: CnnParams, context: Context, pipeline: str) -> tuple[CnnResult, CnnPredictor, CurveSet]:
    """Trains a model and publishes it in the name of `pipeline`; the curves are those of the test."""
    seeds, watch = Seeds.of(context.seed), Stopwatch()
    curves = _curves(params, context, seeds.fixed_curves)
    split = Split.of(len(curves.nr), _HELD_BACK, seeds.validation)
    watch.lap("generation")
    if params.engine == "native":
        trained = _train_native(params, context, curves, split, seeds)
    else:
        trained = _train_peer(params, context, curves, split, seeds.training)
    watch.lap("training")
    network, normalisation, losses, ended_by, precision = trained
    shape = shape_of(network.state_dict())
    arguments = CnnArguments(
        layers=shape.layers,
        width=shape.width,
        kernel=shape.kernel,
        q=tuple(curves.nr[0, 0].astype(np.float64).tolist()),
        profile_points=shape.profile_points,
        normalisation=normalisation,
    )
    metrics, channels, residuals, example = evaluate(
        CnnPredictor(arguments, network, context.device),
        curves,
        split.test,
        relative_sigma(params),
        params.stack.beam,
    )
    predictor = CnnPredictor(arguments, network)
    watch.lap("evaluation")
    # As it is served: one curve, on the CPU.
    predictor.profiles(np.log10(np.maximum(np.array([example.reflectivity]), FLOOR)))
    watch.lap("inference")
    context.log("test: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    weights_bytes = publish(context, params.model_name, pipeline, predictor, metrics)
    _attach(params, context, predictor, losses, example)
    result = CnnResult(
        model_name=params.model_name,
        ended_by=ended_by,
        precision=precision,
        curves=len(curves.nr),
        model_megabytes=weights_bytes / 1e6,
        metrics=metrics,
        channels=channels,
        residuals=residuals,
        seconds=watch.seconds(),
        provenance=context.provenance,
        losses=losses,
        normalisation=normalisation,
        example=example,
    )
    return result, predictor, CurveSet(curves.nr[split.test], curves.sld[split.test])


_Precision = Literal["float32", "bfloat16"]
_Trained = tuple[Cnn, Normalisation, list[EpochLosses], EndedBy, _Precision]


def _train_native(
    params: CnnParams, context: Context, curves: CurveSet, split: Split, seeds: Seeds
) -> _Trained:
    normalisation = fit_normalisation(curves, split.training)
    layers, width, kernel = params.network.layers, params.network.width, params.network.kernel
    shape = CnnShape(layers, width, kernel, curves.nr.shape[2], curves.sld.shape[2])
    network = _new_network(shape, params.network.dropout, seeds.network)
    trainer = CnnTrainer(network, params.training, context, curves, split, normalisation, seeds.training)
    precision: _Precision = "float32" if trainer.autocast is None else "bfloat16"
    context.log(f"{len(split.training)} curves for training, {precision} on {context.device}")
    ended_by = trainer.run()
    return trainer.network, normalisation, trainer.loop.losses, ended_by, precision


def _train_peer(params: CnnParams, context: Context, curves: CurveSet, split: Split, seed: int) -> _Trained:
    # It splits what it gets once more; the test curves it never sees.
    rows = np.sort(np.concatenate([split.training, split.validation]))
    trained = peer.train(params, context, CurveSet(curves.nr[rows], curves.sld[rows]), seed)
    return *trained, "float32"


def _curves(params: CnnParams, context: Context, seed: int) -> CurveSet:
    if params.curves_from_datasets:
        curves = read_curves(context)
        _check_size(params, curves)
        return curves
    make = make_curves if params.engine == "native" else peer.generate
    curves = make(params, context, seed)
    with kept_pairs(context, len(curves.nr), curves.nr.shape[2], curves.sld.shape[2]) as pairs:
        pairs.nr[:], pairs.sld[:] = curves
    return curves


def _check_size(params: CnnParams, curves: CurveSet) -> None:
    points, profile_points = curves.nr.shape[2], curves.sld.shape[2]
    if params.network.weights(points, profile_points) > MAX_WEIGHTS:
        allowed = (
            f"at most {MAX_WEIGHTS:g} weights in all; the datasets have {points} and {profile_points} points"
        )
        raise UserError("network.width", params.network.width, allowed)
    if params.engine == "pyreflect" and (points, profile_points) != (LEGACY_POINTS, PROFILE_POINTS):
        allowed = f"pyreflect takes {LEGACY_POINTS} points and profiles of {PROFILE_POINTS}"
        raise UserError("inputs.nr_train", f"{points} and {profile_points} points", allowed)


def _new_network(shape: CnnShape, dropout: float, seed: int) -> Cnn:
    """The same weights for the same seed, leaving torch's global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Cnn(shape, dropout)


def _attach(
    params: CnnParams,
    context: Context,
    predictor: CnnPredictor,
    losses: list[EpochLosses],
    example: CnnExample,
) -> None:
    if losses:
        plots.attach(context, "losses", plots.loss_curve(losses))
    lines = {"measured": (np.array(example.q), np.array(example.reflectivity))}
    if example.predicted_reflectivity is not None:
        lines["predicted"] = (np.array(example.q), np.array(example.predicted_reflectivity))
    profiles = {
        "true": (np.array(example.z), np.array(example.sld)),
        "predicted": (np.array(example.predicted_z), np.array(example.predicted_sld)),
    }
    plots.attach(context, "prediction", plots.curve_and_profile(lines, profiles))
    if params.export:
        name = f"{params.model_name}.pth"
        data = weights_file(predictor.network.state_dict())
        context.artifact(name, data, "application/octet-stream")
        for name, content in statistics_files(predictor.arguments.normalisation).items():
            media_type = "application/json" if name.endswith(".json") else "application/octet-stream"
            context.artifact(name, content, media_type)
