from __future__ import annotations

import io
import json
import time

import numpy as np
import safetensors.numpy

from guidehall.science.pipeline import (
    Context,
    Example,
    Manifest,
    UserError,
    obey,
    sha256,
)
from tests.toy_science.params import LineParams, LineResult
from tests.toy_science.predictor import INPUTS, OUTPUTS, LinePredictor


def run(params: LineParams, context: Context) -> LineResult:
    """Finds the line by gradient descent in a variable that is centred and scaled."""
    x, y = _points(params, context)
    center, spread = x.mean(), x.std()
    state = np.zeros(2)
    saved = context.checkpoint.load()
    t = (x - center) / spread
    step, loss = 0, float(np.mean(y**2))
    if saved is not None:
        step, state, loss = (json.loads(saved)[key] for key in ("step", "state", "loss"))
        state = np.array(state)
        context.log(f"goes on at step {step}")
    while step < params.steps:
        # Saves when it is time, and leaves when that is wanted; true to end early.
        if obey(context, lambda: _state(step, state, loss)):  # noqa: B023 (called at once)
            break
        residual = state[0] * t + state[1] - y
        state = state - 0.2 * np.array([np.mean(residual * t), np.mean(residual)])
        loss = float(np.mean(residual**2))
        step += 1
        context.progress(step, params.steps, phase="train", train_loss=loss)
        context.preview("toy.line", {"slope": float(state[0] / spread), "step": step})
        if step % params.checkpoint_every == 0:
            context.checkpoint.save(_state(step, state, loss))
        time.sleep(params.step_seconds)
    slope, intercept = float(state[0] / spread), float(state[1] - state[0] / spread * center)
    context.log(f"slope {slope:.4f}, intercept {intercept:.4f}")
    _publish(params, context, slope, intercept, loss)
    buffer = io.BytesIO()
    np.save(buffer, np.stack([x, y], axis=1), allow_pickle=False)
    context.artifact("points.npy", buffer.getvalue(), "application/x-npy")
    return LineResult(model_name=params.model_name, slope=slope, intercept=intercept, loss=loss, steps=step)


def _points(params: LineParams, context: Context) -> tuple[np.ndarray, np.ndarray]:
    if params.from_dataset:
        table = np.load(context.dataset("points"), allow_pickle=False)
        if table.ndim != 2 or table.shape[1] != 2:
            raise UserError("inputs.points", list(table.shape), "must have the shape [points, 2]")
        return table[:, 0], table[:, 1]
    generator = np.random.default_rng(context.seed)
    x = np.linspace(params.first_x, params.last_x, params.points)
    return x, params.slope * x + params.intercept + params.noise * generator.standard_normal(len(x))


def _state(step: int, state: np.ndarray, loss: float) -> bytes:
    # The loss too: after the last step there is no other to take it from.
    return json.dumps({"step": step, "state": state.tolist(), "loss": loss}).encode()


def _publish(params: LineParams, context: Context, slope: float, intercept: float, loss: float) -> None:
    weights = safetensors.numpy.save({"line": np.array([slope, intercept])})
    inputs = {"x": np.array([[0.0], [1.0]], dtype=np.float32)}
    manifest = Manifest(
        science="toy",
        pipeline="toy.line",
        architecture="toy.line/1",
        arguments={},
        inputs=INPUTS,
        outputs=OUTPUTS,
        metrics={"loss": loss},
        provenance=context.provenance,
        weights_sha256=sha256(weights),
        example=Example.of(inputs, LinePredictor(slope, intercept).predict(inputs)),
    )
    context.publish_model(params.model_name, weights, manifest)
