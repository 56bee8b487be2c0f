"""Reflectivity curves per CPU second: our batched kernel beside refl1d's compiled core, same films, same
points."""

from __future__ import annotations

import numpy as np
import torch
from refl1d.sample.reflectivity import reflectivity_amplitude

from benchmarks.rows import Row, interleaved_cpu_seconds
from guidehall.science.reflectometry import kernel
from guidehall.science.reflectometry.kernel import Media

POINTS, LAYERS = 308, 6


def run(quick: bool) -> list[Row]:
    """Two rates and their ratio; unsmeared R of six layers at 308 points, one thread."""
    curves = 64 if quick else 256
    generator = np.random.default_rng(1)
    q = np.geomspace(0.008, 0.2, POINTS)
    sld = generator.uniform(0, 6, (curves, LAYERS + 2))
    thickness = generator.uniform(10, 200, (curves, LAYERS))
    roughness = generator.uniform(1, 20, (curves, LAYERS + 1))
    media = Media.of(sld, thickness, roughness)
    q_tensor = torch.from_numpy(q)
    depth = np.hstack([np.zeros((curves, 1)), thickness, np.zeros((curves, 1))])
    absorption = np.full(LAYERS + 2, 1e-30)

    def ours() -> None:
        kernel.reflectivity(q_tensor, media)

    def refl1d() -> None:
        for index in range(curves):
            amplitude = reflectivity_amplitude(q / 2, depth[index], sld[index], absorption, roughness[index])
            np.abs(amplitude) ** 2

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved_cpu_seconds(3 if quick else 15, {"ours": ours, "refl1d": refl1d})
    finally:
        torch.set_num_threads(threads)
    rates = {name: curves / value for name, value in seconds.items()}
    return [
        Row("R, batched torch float64", rates["ours"], "curves/CPU-s"),
        Row("R, refl1d core", rates["refl1d"], "curves/CPU-s"),
        Row("R, ratio to refl1d core", rates["ours"] / rates["refl1d"], "times"),
    ]
