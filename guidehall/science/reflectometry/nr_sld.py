"""Pipeline `reflectometry.nr_sld`: draw films, train, validate, publish."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure

from guidehall.science.pipeline import Context, Example, Manifest, sha256
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.assessment import Stopwatch
from guidehall.science.reflectometry.curve_set import attach_pairs, make_curves, read_curves, to_array
from guidehall.science.reflectometry.draw import Curves, Draw, Seeds
from guidehall.science.reflectometry.evaluation import evaluate
from guidehall.science.reflectometry.params import NrSldParams, NrSldResult, PredictionExample
from guidehall.science.reflectometry.predictor import ARCHITECTURE, PhysicalArguments, PhysicalPredictor
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.training import Trainer


def run(params: NrSldParams, context: Context) -> NrSldResult:
    """Trains a model and publishes it."""
    watch = Stopwatch()
    curves = _fixed_curves(params, context)
    watch.lap("generation")
    trainer = Trainer(params, context, curves)
    stopped = trainer.run()
    watch.lap("training")
    unseen = Draw(params, trainer.prior, Seeds.of(context.seed).test, context.device)
    metrics, channels, residuals, example = evaluate(
        trainer.network, unseen, params.training.validation_curves
    )
    watch.lap("evaluation")
    context.log("test: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    arguments = PhysicalArguments(
        stack=params.stack, probe=params.probe, width=params.training.width, depth=params.training.depth
    )
    predictor = PhysicalPredictor(arguments, trainer.network, context.device)
    curve = {
        "q": np.array([example.q], dtype=np.float32),
        "reflectivity": np.array([example.reflectivity], dtype=np.float32),
    }
    answer = predictor.predict(curve)
    watch.lap("inference")
    weights_bytes = _publish(params, context, predictor, metrics, Example.of(curve, answer))
    plots.attach(context, "losses", plots.loss_curve(trainer.losses))
    plots.attach(context, "prediction", _picture(example))
    return NrSldResult(
        model_name=params.model_name,
        stopped_early=stopped,
        curves_seen=trainer.curves_seen,
        micro_batch=params.training.micro_batch,
        model_megabytes=weights_bytes / 1e6,
        metrics=metrics,
        channels=channels,
        residuals=residuals,
        seconds=watch.seconds(),
        provenance=context.provenance,
        losses=trainer.losses,
        example=example,
    )


def _fixed_curves(params: NrSldParams, context: Context) -> Curves | None:
    prior = Prior(params.stack, params.probe, context.device)
    draw = Draw(params, prior, Seeds.of(context.seed).fixed_curves, context.device)
    if params.curves_from_dataset:
        return read_curves(context.dataset("curves"), draw)
    if params.training.fixed_curves == 0:
        return None
    curves = make_curves(draw, params.training.fixed_curves, context)
    buffer = io.BytesIO()
    np.save(buffer, to_array(curves, draw), allow_pickle=False)
    context.artifact("curves.npy", buffer.getvalue(), "application/x-npy")
    attach_pairs(curves, draw, context)
    return curves


def _publish(
    params: NrSldParams,
    context: Context,
    predictor: PhysicalPredictor,
    metrics: dict[str, float],
    example: Example,
) -> int:
    """Returns bytes of the weights."""
    weights = predictor.weights()
    manifest = Manifest(
        science="reflectometry",
        pipeline="reflectometry.nr_sld",
        architecture=ARCHITECTURE,
        arguments=predictor.arguments.model_dump(mode="json"),
        inputs=predictor.inputs,
        outputs=predictor.outputs,
        metrics=metrics,
        provenance=context.provenance,
        weights_sha256=sha256(weights),
        example=example,
    )
    context.publish_model(params.model_name, weights, manifest)
    return len(weights)


def _picture(example: PredictionExample) -> Figure:
    def line(x: list[float], y: list[float]) -> tuple[np.ndarray, np.ndarray]:
        return np.array(x), np.array(y)

    return plots.curve_and_profile(
        {
            "measured": line(example.q, example.reflectivity),
            "predicted": line(example.q, example.predicted_reflectivity),
        },
        {
            "true": line(example.z, example.sld),
            "predicted": line(example.z, example.predicted_sld),
        },
    )
