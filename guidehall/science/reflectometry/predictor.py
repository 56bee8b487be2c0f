"""Models that answer: `reflectometry.physical/1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from guidehall.science.pipeline import (
    Manifest,
    TensorSpec,
    UserError,
    check_tensors,
)
from guidehall.science.reflectometry.kernel import profile
from guidehall.science.reflectometry.network import Network, Seen, resample
from guidehall.science.reflectometry.params import MAX_POINTS, SLD_UNIT, StackPrior, TrainingProbe, sigma_of
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import order_for
from guidehall.science.reflectometry.weights import load_weights, read_arguments, weights_of

ARCHITECTURE = "reflectometry.physical/1"
# What the network was shown: at least this share of its grid, in log q.
MIN_COVERAGE = 0.5
PROFILE_POINTS = 256
# Points of the quadrature over the resolution at least: good to 2e-4 in log10 R for thin films.
_LEAST_ORDER = 17


class PhysicalArguments(BaseModel):
    """What a model of this architecture is built from, and all that a fit needs to know of its prior."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    stack: StackPrior
    probe: TrainingProbe
    width: int = Field(ge=8, le=2048)
    depth: int = Field(ge=1, le=32)

    @property
    def middle_resolution(self) -> float:
        """Middle of the trained resolutions, one standard deviation of q over q."""
        bounds = self.probe.resolution
        return sigma_of(0.5 * (bounds.min + bounds.max), self.probe.resolution_convention)


class PhysicalPredictor:
    """Layer parameters from measured curves, in physical units on both sides.

    Curves may lie on any grid. Points outside the trained range of q are not shown to the network; a curve
    that covers less than half of that range (in log q) is refused.
    """

    def __init__(self, arguments: PhysicalArguments, network: Network, device: str = "cpu") -> None:
        self.arguments = arguments
        self.prior = Prior(arguments.stack, arguments.probe, device)
        self.inputs, self.outputs = _specs(self.prior)
        self.device = device
        self._network = network.to(device).eval()
        self._grid = torch.from_numpy(arguments.probe.q()).to(device)
        self._z = self.prior.depth_grid(PROFILE_POINTS)

    @classmethod
    def load(cls, manifest: Manifest, weights: bytes, device: str = "cpu") -> PhysicalPredictor:
        """Builds the model from its manifest and its safetensors file.

        Raises:
            InvalidModel: they do not fit together.
        """
        arguments = read_arguments(PhysicalArguments, manifest)
        free = len(Prior(arguments.stack, arguments.probe).free)
        points = arguments.probe.points
        # Without memory of its own, so that arguments alone cannot ask for gigabytes.
        with torch.device("meta"):
            network = Network(points, free, arguments.width, arguments.depth)
        load_weights(network, weights)
        return cls(arguments, network, device)

    def weights(self) -> bytes:
        """The network as a safetensors file."""
        return weights_of(self._network)

    @torch.inference_mode()
    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers a batch; the tensors are described in `inputs` and `outputs`.

        Raises:
            UserError: a tensor is missing or wrong, or a curve covers too little of the trained range.
        """
        q, r, dr, sigma = self._tensors(inputs)
        relative_sigma = torch.nanmedian(sigma / q, dim=1).values
        unit = self.unit(q, r, dr, relative_sigma, "inputs.q")
        values = self.prior.values(unit)
        films = self.prior.films(values)
        answers = {
            "parameters": values,
            "z": self._z.expand(len(values), -1),
            "sld": profile(self._z, films.sld, films),
            "reflectivity": self._calculate(q, sigma, values),
        }
        return {name: np.ascontiguousarray(tensor.float().cpu().numpy()) for name, tensor in answers.items()}

    def unit(self, q: Tensor, r: Tensor, dr: Tensor | None, relative_sigma: Tensor, field: str) -> Tensor:
        """The network's answer, [B, P] in the prior's unit cube, to curves [B, N] of resolution [B].

        Args:
            dr: [B, N], one standard deviation of r; None when it is not known.

        Raises:
            UserError: blames `field` for a curve that covers too little of the trained range.
        """
        whole = Seen.whole(r, dr, relative_sigma)
        columns, known = resample(q, torch.stack([whole.compressed, whole.error_level]), self._grid)
        coverage = known.double().mean(1)
        if bool((coverage < MIN_COVERAGE).any()):
            row = int(coverage.argmin())
            low, high = self.arguments.probe.q_min, self.arguments.probe.q_max
            allowed = f"the model needs half of {low:g} to {high:g} 1/angstrom, in log q"
            raise UserError(field, f"{100 * float(coverage[row]):.0f} % covered in row {row}", allowed)
        seen = replace(whole, compressed=columns[0], error_level=columns[1], known=known)
        answer: Tensor = self._network(seen)
        return answer

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        check_tensors(self.inputs, inputs)
        shape = inputs["reflectivity"].shape
        if shape[0] < 1 or not 2 <= shape[1] <= MAX_POINTS:
            raise UserError(
                "inputs.reflectivity", list(shape), f"must be 1 or more rows of 2 to {MAX_POINTS} points"
            )
        arrays = {}
        for name, array in inputs.items():
            if array.shape not in (shape, (1, shape[1])):
                raise UserError(
                    f"inputs.{name}", list(array.shape), f"must be {list(shape)} or [1, {shape[1]}]"
                )
            arrays[name] = np.broadcast_to(array, shape).astype(np.float64)
        _check_rows(arrays)
        if "resolution" not in arrays:
            arrays["resolution"] = self.arguments.middle_resolution * arrays["q"]
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return tensors["q"], tensors["reflectivity"], tensors.get("error"), tensors["resolution"]

    def _calculate(self, q: Tensor, sigma: Tensor, values: Tensor) -> Tensor:
        # By what was trained: an answer does not depend on the curves that are asked for beside it.
        probe = self.arguments.probe
        widest = sigma_of(probe.resolution.max, probe.resolution_convention) * probe.q_max
        order = order_for(widest, self.prior.features, _LEAST_ORDER)
        return self.prior.measured(q, sigma, values, order)


def _check_rows(arrays: Mapping[str, np.ndarray]) -> None:
    """Each row of q is positive and ascending up to its padding; the other tensors are numbers there."""
    q = arrays["q"]
    padding = np.isnan(q)
    _refuse_any(
        padding[:, :1] | padding[:, 1:2], q, "q", "a curve has at least two points in front of its padding"
    )
    _refuse_any(padding[:, :-1] & ~padding[:, 1:], q, "q", "NaN may only come after the last point")
    _refuse_any(~padding & ~(np.isfinite(q) & (q > 0)), q, "q", "must be positive and finite")
    _refuse_any(np.diff(q, axis=1, prepend=0.0) < 0, q, "q", "must not be smaller than the value before it")
    r = arrays["reflectivity"]
    _refuse_any(~padding & ~np.isfinite(r), r, "reflectivity", "must be finite")
    if "error" in arrays:
        dr = arrays["error"]
        _refuse_any(~padding & ~(np.isfinite(dr) & (dr > 0)), dr, "error", "must be positive and finite")
    if "resolution" in arrays:
        sigma = arrays["resolution"]
        wrong = ~padding & ~((sigma >= 0) & (sigma <= 0.3 * q))
        _refuse_any(wrong, sigma, "resolution", "must be between 0 and 0.3 q, one standard deviation")


def _refuse_any(wrong: np.ndarray, array: np.ndarray, name: str, allowed: str) -> None:
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise UserError(f"inputs.{name}[{row}][{column}]", float(array[row, column]), allowed)


def _specs(prior: Prior) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output tensors of a model with this prior."""

    def spec(name: str, columns: int, unit: str, description: str, optional: bool = False) -> TensorSpec:
        return TensorSpec(
            name=name,
            datatype="FP32",
            shape=(-1, columns),
            unit=unit,
            description=description,
            optional=optional,
        )

    names = ", ".join(f"{item.name} ({item.unit})" if item.unit else item.name for item in prior.free)
    inputs = (
        spec(
            "q",
            -1,
            "1/angstrom",
            "Ascending in each row; shorter curves are padded with NaN at their end in every tensor. One row"
            " serves the whole batch.",
        ),
        spec("reflectivity", -1, "", "As measured, with scale and background; may be zero or negative."),
        spec("error", -1, "", "One standard deviation of reflectivity; left out, not known.", optional=True),
        spec(
            "resolution",
            -1,
            "1/angstrom",
            "One standard deviation of q; left out, the middle of the trained resolutions.",
            optional=True,
        ),
    )
    outputs = (
        spec("parameters", len(prior.free), "", f"In this order: {names}."),
        spec("z", PROFILE_POINTS, "angstrom", "Depth below the fronting medium."),
        spec("sld", PROFILE_POINTS, SLD_UNIT, "SLD at z."),
        spec("reflectivity", -1, "", "Calculated from the parameters at q; NaN in the padding."),
    )
    return inputs, outputs
