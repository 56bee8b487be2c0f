"""Models that answer: `reflectometry.pyreflect_cnn/1`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from guidehall.science.pipeline import (
    Context,
    Example,
    Manifest,
    TensorSpec,
    UserError,
    check_tensors,
    refuse_field,
    sha256,
)
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape, empty_network
from guidehall.science.reflectometry.cnn.params import FLOOR, MAX_WEIGHTS, CnnNetwork, Normalisation
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.params import MAX_POINTS, SLD_UNIT
from guidehall.science.reflectometry.weights import load_weights, read_arguments, weights_of

ARCHITECTURE = "reflectometry.pyreflect_cnn/1"
# Rounding of float32 must not lose the first and last point of a curve that lies on the grid itself.
_SLACK = 1e-6
# Curves that pass the network at once; bounds the memory of a large batch.
_CHUNK = 64


class CnnArguments(BaseModel):
    """What a model of this architecture is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: int = Field(ge=1, le=24)
    width: int = Field(ge=1, le=512)
    kernel: int = Field(ge=1, le=101)
    # The grid of the training curves, in 1/angstrom: the network sees positions, not q.
    q: tuple[Annotated[float, Field(gt=0, le=5)], ...] = Field(min_length=2, max_length=4096)
    profile_points: int = Field(ge=2, le=4096)
    normalisation: Normalisation

    @model_validator(mode="after")
    def _consistent(self) -> CnnArguments:
        if self.kernel % 2 == 0:
            refuse_field(self, ["kernel"], self.kernel, "must be odd")
        if any(a >= b for a, b in itertools.pairwise(self.q)):
            refuse_field(self, ["q"], "other values", "must grow")
        network = CnnNetwork.model_construct(layers=self.layers, width=self.width, kernel=self.kernel)
        if network.weights(len(self.q), self.profile_points) > MAX_WEIGHTS:
            refuse_field(self, ["width"], self.width, f"at most {MAX_WEIGHTS} weights in all")
        return self

    @property
    def shape(self) -> CnnShape:
        """Shapes of the weights."""
        return CnnShape(self.layers, self.width, self.kernel, len(self.q), self.profile_points)


class CnnPredictor:
    """SLD profiles from measured curves, in physical units on both sides.

    Curves may lie on any grid that covers the trained one: they are brought onto it in log q and log10 R.
    """

    def __init__(self, arguments: CnnArguments, network: Cnn, device: str = "cpu") -> None:
        self.arguments = arguments
        self.inputs, self.outputs = _specs(arguments)
        self.device = device
        self.network = network.to(device).eval()
        self._log_q = np.log(np.array(arguments.q))

    @classmethod
    def load(cls, manifest: Manifest, weights: bytes, device: str = "cpu") -> CnnPredictor:
        """Builds the model from its manifest and its safetensors file.

        Raises:
            InvalidModel: they do not fit together.
        """
        arguments = read_arguments(CnnArguments, manifest)
        network = empty_network(arguments.shape)
        load_weights(network, weights)
        return cls(arguments, network, device)

    def weights(self) -> bytes:
        """The network as a safetensors file."""
        return weights_of(self.network)

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers a batch; the tensors are described in `inputs` and `outputs`.

        Raises:
            UserError: a tensor is missing or wrong, or a curve does not cover the trained range of q.
        """
        check_tensors(self.inputs, inputs)
        q, r = inputs["q"], inputs["reflectivity"]
        if r.shape[0] < 1 or not 2 <= r.shape[1] <= MAX_POINTS:
            allowed = f"must be 1 or more rows of 2 to {MAX_POINTS} points"
            raise UserError("inputs.reflectivity", list(r.shape), allowed)
        if q.shape not in (r.shape, (1, r.shape[1])):
            raise UserError("inputs.q", list(q.shape), f"must be {list(r.shape)} or [1, {r.shape[1]}]")
        rows = np.broadcast_to(q, r.shape).astype(np.float64)
        seen = np.stack([self._resample(*pair, row) for row, pair in enumerate(zip(rows, r, strict=True))])
        profiles = self.profiles(seen)
        return {"z": np.ascontiguousarray(profiles[:, 0]), "sld": np.ascontiguousarray(profiles[:, 1])}

    def _resample(self, q: np.ndarray, r: np.ndarray, row: int) -> np.ndarray:
        """log10 R [L] on the trained grid."""
        padding = np.isnan(q)
        used = int((~padding).sum())
        if padding[:used].any():
            raise UserError(f"inputs.q[{row}]", "NaN", "may only come after the last point")
        curve = Curve(q=q[:used], r=r[:used].astype(np.float64))
        curve.check(f"inputs[{row}]")
        log_q = np.log(curve.q)
        if log_q[0] > self._log_q[0] + _SLACK or log_q[-1] < self._log_q[-1] - _SLACK:
            low, high = self.arguments.q[0], self.arguments.q[-1]
            found = f"{curve.q[0]:.6g} to {curve.q[-1]:.6g} 1/angstrom in row {row}"
            raise UserError(
                "inputs.q", found, f"must cover {low:.6g} to {high:.6g}, which the model was made for"
            )
        seen: np.ndarray = np.interp(self._log_q, log_q, np.log10(np.maximum(curve.r, FLOOR)))
        return seen

    @torch.inference_mode()
    def profiles(self, log10_r: np.ndarray) -> np.ndarray:
        """Profiles [B, 2, M] float32, z in angstrom and SLD, of log10 R [B, L] on the trained grid."""
        scale = self.arguments.normalisation
        curves = torch.from_numpy(((log10_r - scale.nr.y.min) / scale.nr.y.span).astype(np.float32))
        parts = [
            self.network(curves[i : i + _CHUNK].to(self.device)).float().cpu().numpy()
            for i in range(0, len(curves), _CHUNK)
        ]
        answer = np.concatenate(parts)
        for channel, extent in enumerate((scale.sld.x, scale.sld.y)):
            answer[:, channel] = answer[:, channel] * extent.span + extent.min
        return answer


def publish(
    context: Context, name: str, pipeline: str, predictor: CnnPredictor, metrics: dict[str, float]
) -> int:
    """Publishes a model whose network is on the CPU, where every server can check its example.

    Returns:
        bytes of its weights.
    """
    arguments = predictor.arguments
    weights = predictor.weights()
    scale = arguments.normalisation.nr.y
    # A straight line through the middle of what it was trained with, falling as curves do.
    line = np.clip(scale.max - scale.span * np.linspace(0.0, 1.0, len(arguments.q)), -8.0, 2.0)
    curve = {
        "q": np.array([arguments.q], dtype=np.float32),
        "reflectivity": (10.0**line)[None].astype(np.float32),
    }
    manifest = Manifest(
        science="reflectometry",
        pipeline=pipeline,
        architecture=ARCHITECTURE,
        arguments=arguments.model_dump(mode="json"),
        inputs=predictor.inputs,
        outputs=predictor.outputs,
        metrics=metrics,
        provenance=context.provenance,
        weights_sha256=sha256(weights),
        # In angstrom and in 1e-6/angstrom^2, both far below what such a network can tell.
        example=Example.of(curve, predictor.predict(curve), absolute_tolerance=2e-3),
    )
    context.publish_model(name, weights, manifest)
    return len(weights)


def _specs(arguments: CnnArguments) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output tensors of a model with these arguments."""

    def spec(name: str, columns: int, unit: str, description: str) -> TensorSpec:
        return TensorSpec(name=name, datatype="FP32", shape=(-1, columns), unit=unit, description=description)

    covered = f"{arguments.q[0]:.6g} to {arguments.q[-1]:.6g}"
    inputs = (
        spec(
            "q",
            -1,
            "1/angstrom",
            f"Ascending in each row, and covering {covered}; shorter curves are padded with NaN at their end."
            " One row serves the whole batch.",
        ),
        spec(
            "reflectivity",
            -1,
            "",
            f"As measured; what is below {FLOOR:g}, also negative, counts as {FLOOR:g}.",
        ),
    )
    outputs = (
        spec("z", arguments.profile_points, "angstrom", "From the backing medium towards the fronting one."),
        spec("sld", arguments.profile_points, SLD_UNIT, "SLD at z."),
    )
    return inputs, outputs
