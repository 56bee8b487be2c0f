"""One step of training the network of pyreflect, by that package's own trainer and by ours.

Both train the same weights on the same curves, 32 of them a step, on one core or on the GPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.rows import Row, at_least, at_most, interleaved_cpu_seconds, single_thread
from guidehall.science.pipeline import LocalContext
from guidehall.science.reflectometry.cnn.curves import CurveSet, make_curves
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from guidehall.science.reflectometry.cnn.params import PROFILE_POINTS, CnnParams, CnnTraining
from guidehall.science.reflectometry.cnn.training import CnnTrainer, fit_normalisation
from guidehall.science.reflectometry.epochs import Split, autocast_type
from guidehall.science.reflectometry.legacy_five_layers import LEGACY_POINTS

with contextlib.redirect_stdout(io.StringIO()):
    # It prints the device when it is imported.
    from pyreflect.models.model_trainer import ModelTrainer

_BATCH, _SEED = 32, 1
# Steps whose losses are compared; of a network that is narrow, for they take the whole one minutes.
_COMPARED_STEPS = 20
_WHOLE = CnnShape(12, 256, 51, LEGACY_POINTS, PROFILE_POINTS)
_NARROW = CnnShape(4, 16, 51, LEGACY_POINTS, PROFILE_POINTS)


def run(quick: bool, *, rounds: int | None = None) -> list[Row]:
    """Times, their ratios, and how far the losses are apart."""
    with single_thread(), tempfile.TemporaryDirectory() as folder:
        context = LocalContext(folder, device="cuda" if torch.cuda.is_available() else "cpu")
        curves = make_curves(CnnParams(curves=2 * _BATCH), context, _SEED)
        return _run(context, curves, _NARROW if quick else _WHOLE, rounds or (1 if quick else 3))


def _run(context: LocalContext, curves: CurveSet, shape: CnnShape, rounds: int) -> list[Row]:
    weights = sum(item.numel() for item in Cnn(shape).parameters()) / 1e6
    note = f"{weights:.3g} M weights, {_BATCH} curves, {context.device}"
    unit = "CPU-s" if context.device == "cpu" else "s"
    theirs, ours = _seconds(context, curves, shape, "float32", rounds)
    ratio = theirs / ours
    rows = [
        Row("one step, pyreflect, float32", theirs, unit, note=note),
        Row("one step, ours, float32", ours, unit, note=note),
        Row("step, pyreflect / ours, float32", ratio, "times", note=note),
    ]
    name = "step, pyreflect / ours, bfloat16"
    if autocast_type("auto", context.device) is torch.bfloat16:
        theirs, ours = _seconds(context, curves, shape, "bfloat16", rounds)
        rows.append(Row("one step, ours, bfloat16", ours, unit, note=note))
        rows.append(at_least(name, theirs / ours, "times", 4, f"pyreflect in float32; {note}"))
    else:
        rows.append(Row(name, ratio, "times", note="no bf16 here: that of float32"))
    apart = _losses_apart(context, curves)
    compared = f"{_COMPARED_STEPS} steps in float32 of a network of {_NARROW.layers} convolutions"
    return [*rows, at_most("losses, ours and those of pyreflect, relative", apart, "", 1e-4, compared)]


class _Pair(NamedTuple):
    """A step of each on these rows of the set; both return the loss."""

    theirs: Callable[[torch.Tensor], float]
    ours: Callable[[torch.Tensor], float]


def _pair(context: LocalContext, curves: CurveSet, shape: CnnShape, precision: str) -> _Pair:
    rows = np.arange(len(curves.nr))
    settings = CnnTraining.model_validate({"batch_size": _BATCH, "precision": precision})
    torch.manual_seed(_SEED)
    network = Cnn(shape)
    other = copy.deepcopy(network).to(context.device)
    split = Split(rows, rows[:_BATCH], rows[:_BATCH])
    trainer = CnnTrainer(network, settings, context, curves, split, fit_normalisation(curves, rows), _SEED)
    optimiser = torch.optim.Adam(
        other.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )

    def theirs(chosen: torch.Tensor) -> float:
        batch = (trainer._x[chosen], trainer._y[chosen])
        loss: float = ModelTrainer.train_model(other, [batch], optimiser, torch.nn.MSELoss())
        return loss

    return _Pair(theirs, lambda chosen: trainer.loop.train_step(chosen).item())


def _seconds(
    context: LocalContext, curves: CurveSet, shape: CnnShape, precision: str, rounds: int
) -> tuple[float, float]:
    """Median seconds of a step, theirs and ours."""
    pair = _pair(context, curves, shape, precision)
    chosen = torch.arange(_BATCH, device=context.device)
    runs = {"theirs": lambda: pair.theirs(chosen), "ours": lambda: pair.ours(chosen)}
    timed = interleaved_cpu_seconds if context.device == "cpu" else _interleaved_gpu_seconds
    found = timed(rounds, runs)
    return found["theirs"], found["ours"]


def _interleaved_gpu_seconds(rounds: int, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run_once in runs.items():
            torch.cuda.synchronize()
            start = time.monotonic()
            run_once()
            torch.cuda.synchronize()
            if round_number > 0:
                seconds[name].append(time.monotonic() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _losses_apart(context: LocalContext, curves: CurveSet) -> float:
    """The largest relative difference of the losses of steps that both make."""
    pair = _pair(context, curves, _NARROW, "float32")
    batches = torch.arange(len(curves.nr), device=context.device).split(_BATCH)
    apart = 0.0
    for step in range(_COMPARED_STEPS):
        chosen = batches[step % len(batches)]
        theirs, ours = pair.theirs(chosen), pair.ours(chosen)
        apart = max(apart, abs(ours - theirs) / theirs)
    return apart
