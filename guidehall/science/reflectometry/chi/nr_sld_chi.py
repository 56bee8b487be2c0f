"""Pipeline `reflectometry.nr_sld_chi`: from reflectivity to SLD profiles to chi."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guidehall.science.pipeline import Checkpoint, Context, Desired, Manifest, Provenance, UserError
from guidehall.science.reflectometry.assessment import Stopwatch
from guidehall.science.reflectometry.chi import sld_chi
from guidehall.science.reflectometry.chi.params import NrSldChiParams, NrSldChiResult
from guidehall.science.reflectometry.cnn import train as cnn
from guidehall.science.reflectometry.cnn.curves import read_pairs, relative_sigma
from guidehall.science.reflectometry.cnn.import_model import read_cnn
from guidehall.science.reflectometry.cnn.params import CnnResult, ImportModelParams
from guidehall.science.reflectometry.cnn.predict import predicted, profiles_of_curves
from guidehall.science.reflectometry.legacy_five_layers import LEGACY_RELATIVE_SIGMA
from guidehall.science.reflectometry.params import TrainingProbe

PIPELINE = "reflectometry.nr_sld_chi"
_MAX_CURVES = 1000


def run(params: NrSldChiParams, context: Context) -> NrSldChiResult:
    """Trains or reads the first network, trains the second, and applies one after the other."""
    path = sld_chi.optional_dataset(context, "experimental_nr")
    curves = None if path is None else read_pairs(path, "inputs.experimental_nr", rows=(1, _MAX_CURVES))
    # Before a training of hours, not after it.
    data = sld_chi.training_set(params.chi, context)
    if params.cnn is not None and curves is not None and not params.cnn.curves_from_datasets:
        _check_covered(curves, params.cnn.probe)
    stages = _Stages(context)
    trained: CnnResult | None = None
    if params.cnn is None:
        predictor = read_cnn(ImportModelParams(), context)
        if curves is None:
            # Says that it is missing.
            context.dataset("experimental_nr")
    else:
        trained, predictor, test = cnn.train(params.cnn, _Stage(context, stages, 0), PIPELINE)
        if curves is None:
            curves = test.nr[:1]
    assert curves is not None  # noqa: S101 (refused above)
    watch = Stopwatch()
    profiles = profiles_of_curves(predictor, curves)
    sigma = LEGACY_RELATIVE_SIGMA if params.cnn is None else relative_sigma(params.cnn)
    curve = predicted(curves[0], profiles[0], sigma)
    stoppable = trained is None or trained.ended_by != "stop"
    stage = _Stage(context, stages, 1)
    watch.lap("generation")
    chi = sld_chi.train(params.chi, stage, PIPELINE, data, profiles, watch, stoppable=stoppable)
    return NrSldChiResult(cnn=trained, chi=chi, curve=curve)


def _check_covered(curves: np.ndarray, probe: TrainingProbe) -> None:
    low, high = float(curves[:, 0, 0].max()), float(curves[:, 0, -1].min())
    # A rounding apart, the network itself will take them.
    if low > probe.q_min * (1.0 + 1e-6) or high < probe.q_max * (1.0 - 1e-6):
        allowed = f"must cover {probe.q_min:.6g} to {probe.q_max:.6g}, which the network is trained for"
        raise UserError("inputs.experimental_nr", f"{low:.6g} to {high:.6g} 1/angstrom", allowed)


class _Stages:
    """The states of both trainings in the one checkpoint of the job."""

    def __init__(self, context: Context) -> None:
        self._context = context
        data = context.checkpoint.load()
        self._states: list[bytes] = [b"", b""]
        if data is not None:
            (length,) = struct.unpack_from("<Q", data)
            self._states = [data[8 : 8 + length], data[8 + length :]]

    def load(self, stage: int) -> bytes | None:
        return self._states[stage] or None

    def due(self) -> bool:
        return self._context.checkpoint.due()

    def save(self, stage: int, state: bytes) -> None:
        self._states[stage] = state
        first, second = self._states
        self._context.checkpoint.save(struct.pack("<Q", len(first)) + first + second)


class _StageCheckpoint:
    def __init__(self, stages: _Stages, stage: int) -> None:
        self._stages, self._stage = stages, stage

    def load(self) -> bytes | None:
        return self._stages.load(self._stage)

    def due(self) -> bool:
        return self._stages.due()

    def save(self, state: bytes) -> None:
        self._stages.save(self._stage, state)


class _Stage:
    """The context of the job as one of the trainings sees it."""

    def __init__(self, context: Context, stages: _Stages, stage: int) -> None:
        self._context = context
        self.device, self.seed, self.provenance = context.device, context.seed, context.provenance
        self.checkpoint: Checkpoint = _StageCheckpoint(stages, stage)

    device: str
    seed: int
    provenance: Provenance

    def progress(self, step: int, total: int, *, phase: str = "", **metrics: float) -> None:
        self._context.progress(step, total, phase=phase, **metrics)

    def log(self, line: str) -> None:
        self._context.log(line)

    def desired(self) -> Desired:
        return self._context.desired()

    def dataset(self, role: str) -> Path:
        return self._context.dataset(role)

    def preview(self, kind: str, document: Mapping[str, Any]) -> None:
        self._context.preview(kind, document)

    def publish_model(self, name: str, weights: bytes | Path, manifest: Manifest) -> None:
        self._context.publish_model(name, weights, manifest)

    def artifact(self, name: str, data: bytes | Path, media_type: str) -> None:
        self._context.artifact(name, data, media_type)
