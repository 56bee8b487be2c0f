"""The package pyreflect itself, run as it is: its generator and its trainer, in this process.

It prints, draws progress bars and takes its random numbers from global state. All three are dealt with here,
and put back afterwards.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from guidehall.science.pipeline import Context, Desired, raise_if_cancelled
from guidehall.science.reflectometry.cnn.curves import CurveSet, attach_parameters
from guidehall.science.reflectometry.cnn.files import read_statistics
from guidehall.science.reflectometry.cnn.network import Cnn, empty_network, shape_of
from guidehall.science.reflectometry.cnn.params import CnnParams, Normalisation
from guidehall.science.reflectometry.epochs import EndedBy
from guidehall.science.reflectometry.legacy_five_layers import legacy_stack
from guidehall.science.reflectometry.params import SLD_UNIT, EpochLosses, Range, StackPrior

_REPORT_STEPS = 10
_UNITS = {"sld": SLD_UNIT, "thickness": "angstrom", "roughness": "angstrom"}


class PeerTraining(NamedTuple):
    """What its trainer left.

    Attributes:
        network: on the CPU.
    """

    network: Cnn
    normalisation: Normalisation
    losses: list[EpochLosses]
    ended_by: EndedBy


class _Stopped(Exception):
    """Leaves its loop, which knows no way to end early."""


class _Lines(io.TextIOBase):
    """Takes what it prints for the log of the job, progress bars left out."""

    def __init__(self, context: Context) -> None:
        self._context, self._rest = context, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise_if_cancelled(self._context)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            # A bar is drawn over itself.
            shown = line.rpartition("\r")[2].strip()
            if shown:
                self._context.log(f"pyreflect: {shown}")
        return len(text)


@contextlib.contextmanager
def _contained(context: Context) -> Iterator[None]:
    """Its prints go to the log, and global random states are afterwards what they were."""
    python, numpy_state = random.getstate(), np.random.get_state()
    lines = _Lines(context)
    with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines), torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def generate(params: CnnParams, context: Context, seed: int) -> CurveSet:
    """Curves by its generator: its built-in film, or the stack of the parameters."""
    with _contained(context):
        from pyreflect.input import reflectivity_data_generator as module
        from scipy.stats import qmc

        _seed_everything(seed)
        if params.stack == legacy_stack():
            generator = module.ReflectivityDataGenerator(5)
        else:
            layers, bounds = _description(params.stack)
            generator = module.ReflectivityDataGenerator(len(layers), layer_desc=layers, layer_bound=bounds)
        own = module.qmc
        # Its Latin hypercube draws from the operating system, which no seed reaches.
        module.qmc = SimpleNamespace(
            LatinHypercube=partial(qmc.LatinHypercube, rng=np.random.default_rng(seed))
        )
        try:
            nr, sld = generator.generate(params.curves)
        finally:
            module.qmc = own
    parts = (params.stack.backing, *reversed(params.stack.layers), params.stack.fronting)
    columns = [
        (f"{parts[item['i']].name}.{item['par']}", _UNITS[item["par"]]) for item in generator.model.parameters
    ]
    attach_parameters(context, generator.model._pars_array, columns)
    return CurveSet(nr, sld)


def _description(stack: StackPrior) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Its layers, substrate first, and its bounds of those parameters that are free."""
    layers: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []
    for index, part in enumerate((stack.backing, *reversed(stack.layers), stack.fronting)):
        layer: dict[str, Any] = {"name": part.name, "isld": 0}
        for name in ("sld", "thickness", "roughness"):
            allowed: Range = getattr(part, name, Range(min=0.0, max=0.0))
            layer[name] = allowed.min
            if not allowed.fixed:
                bounds.append({"i": index, "par": name, "bounds": [allowed.min, allowed.max]})
        layers.append(layer)
    return layers, bounds


def train(params: CnnParams, context: Context, curves: CurveSet, seed: int) -> PeerTraining:
    """A network by its trainer, which splits the curves itself."""
    with _contained(context):
        from pyreflect.input import NRSLDDataProcessor
        from pyreflect.models.nr_sld_model_trainer import NRSLDModelTrainer
        from pyreflect.pipelines.reflectivity_pipeline import preprocess

        processor = NRSLDDataProcessor()
        processor._nr_arr, processor._sld_arr = curves
        with tempfile.TemporaryDirectory() as folder:
            statistics = Path(folder) / "normalization_stats.npy"
            x, y = preprocess(processor, statistics)
            normalisation = read_statistics(statistics)
        # Not before: the processor seeds everything with 42.
        _seed_everything(seed)
        settings = params.training
        trainer = NRSLDModelTrainer(
            X=x,
            y=y,
            layers=params.network.layers,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            dropout=params.network.dropout,
        )
        losses: list[EpochLosses] = []
        _record(trainer, losses)
        steps = settings.epochs * math.ceil(int(0.8 * len(x)) / settings.batch_size)
        ended_by: EndedBy = "epochs"
        with _watched(context, steps, losses), contextlib.suppress(_Stopped):
            ended_by = "stop"
            trainer.train_pipeline()
            ended_by = "epochs"
        state = {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()}
    network = empty_network(shape_of(state))
    network.load_state_dict(state, assign=True)
    return PeerTraining(network, normalisation, losses, ended_by)


def _record(trainer: Any, losses: list[EpochLosses]) -> None:
    """Its losses, which it only prints."""
    train_model, validate_model = trainer.train_model, trainer.validate_model
    last = {"train_loss": 0.0}

    def train_epoch(*arguments: Any) -> float:
        last["train_loss"] = train_model(*arguments)
        return last["train_loss"]

    def validate_epoch(*arguments: Any) -> float:
        loss: float = validate_model(*arguments)
        losses.append(EpochLosses(epoch=len(losses) + 1, train_loss=last["train_loss"], validation_loss=loss))
        return loss

    trainer.train_model, trainer.validate_model = train_epoch, validate_epoch


@contextlib.contextmanager
def _watched(context: Context, total: int, losses: list[EpochLosses]) -> Iterator[None]:
    """Obeys and reports after each step of any optimiser; it asks nobody itself."""
    done = 0

    def after_step(*_: Any) -> None:
        nonlocal done
        done += 1
        raise_if_cancelled(context)
        if context.desired() is Desired.STOP:
            raise _Stopped
        if done % _REPORT_STEPS == 0 or done == total:
            numbers = losses[-1].model_dump() if losses else {}
            context.progress(done, total, phase="train", **numbers)

    handle = register_optimizer_step_post_hook(after_step)
    try:
        yield
    finally:
        handle.remove()
