from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from guidehall.science.pipeline import InvalidModel, Manifest, TensorSpec, check_tensors

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 1), unit="s", description="Time"),)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 1), unit="V", description="Voltage"),)


class LinePredictor:
    """y = slope x + intercept"""

    inputs = INPUTS
    outputs = OUTPUTS

    def __init__(self, slope: float, intercept: float) -> None:
        self._slope, self._intercept = slope, intercept

    @classmethod
    def load(cls, manifest: Manifest, weights: bytes, device: str = "cpu") -> LinePredictor:  # noqa: ARG003
        try:
            slope, intercept = safetensors.numpy.load(weights)["line"].tolist()
        except (safetensors.SafetensorError, KeyError, ValueError):
            raise InvalidModel("weights: must hold a tensor `line` of two numbers") from None
        return cls(slope, intercept)

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_tensors(self.inputs, inputs)
        return {"y": (self._slope * inputs["x"] + self._intercept).astype(np.float32)}
