"""Reflectometry: the layers of a film from the neutrons it reflects."""

from __future__ import annotations

from guidehall.science.pipeline import Architecture, Pipeline
from guidehall.science.reflectometry.params import NrSldParams, NrSldResult, SimulateParams, SimulateResult
from guidehall.science.registry import Science

SCIENCE = Science(
    name="reflectometry",
    title="Reflectometry",
    pipelines=(
        Pipeline(
            name="reflectometry.simulate",
            version="1",
            title="Simulate a reflectivity curve",
            description="Specular reflectivity and SLD profile of a known stack of layers.",
            params=SimulateParams,
            result=SimulateResult,
            entry="guidehall.science.reflectometry.simulate:run",
        ),
        Pipeline(
            name="reflectometry.nr_sld",
            version="1",
            title="Train a network from reflectivity to layers",
            description=(
                "Draws films from the given bounds, calculates and blurs their curves, and trains a network"
                " that reads thickness, SLD and roughness of each layer back from a measured curve."
            ),
            params=NrSldParams,
            result=NrSldResult,
            entry="guidehall.science.reflectometry.nr_sld:run",
            datasets={
                "curves": "Read when params.curves_from_dataset is set: curves.npy of an earlier run with"
                " the same bounds and probe."
            },
        ),
    ),
    architectures=(
        Architecture(
            key="reflectometry.physical/1",
            entry="guidehall.science.reflectometry.predictor:PhysicalPredictor",
            title="Reflectivity to bounded layer parameters",
        ),
    ),
)
