"""The smallest science there can be: a straight line through noisy points. Quick to train and to serve."""

from __future__ import annotations

from guidehall.science.pipeline import Architecture, Pipeline
from guidehall.science.registry import Science
from tests.toy_science.params import LineParams, LineResult

SCIENCE = Science(
    name="toy",
    title="Toy",
    pipelines=(
        Pipeline(
            name="toy.line",
            version="1",
            title="Fit a straight line",
            description="Draws noisy points of a line and finds slope and intercept by gradient descent.",
            params=LineParams,
            result=LineResult,
            entry="tests.toy_science.train:run",
            datasets={"points": "Read when params.from_dataset is set: .npy of shape [points, 2]."},
            needs=lambda params: ("points",) if params.from_dataset else (),
        ),
    ),
    architectures=(
        Architecture(
            key="toy.line/1", entry="tests.toy_science.predictor:LinePredictor", title="Straight line"
        ),
    ),
)
