"""The five-layer polymer film that the package pyreflect makes its training curves of.

All numbers are those of `ReflectivityFiveLayerModel` of pyreflect-nr 1.4.6. There, a film begins with the
substrate, and the roughness of a layer is that of the interface above it; the beam comes from the air. Here,
it begins with the air, and the roughness belongs to the interface towards the fronting medium: the same one.
Needs no torch and no pyreflect.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from guidehall.science.reflectometry.params import (
    BackingPrior,
    LayerPrior,
    MediumPrior,
    Range,
    StackPrior,
    TrainingProbe,
)


class LegacyBound(NamedTuple):
    """What a parameter of the film may be.

    Attributes:
        layer: 0 the substrate, 1 its oxide, 2 to 6 the polymer.
        parameter: sld in 1e-6/angstrom^2, thickness and roughness in angstrom.
    """

    layer: int
    parameter: Literal["sld", "thickness", "roughness"]
    low: float
    high: float


# In the order in which pyreflect draws them. Of the 19, the SLD of the oxide is fixed: 18 are free.
LEGACY_BOUNDS = (
    LegacyBound(0, "roughness", 1.177, 1.5215),
    LegacyBound(1, "sld", 3.47, 3.47),
    LegacyBound(1, "thickness", 9.7216, 14.624),
    LegacyBound(1, "roughness", 1.108, 2.998),
    LegacyBound(2, "sld", 3.7235, 4.197),
    LegacyBound(2, "thickness", 8.717, 98.867),
    LegacyBound(2, "roughness", 2.2571, 38.969),
    LegacyBound(3, "sld", 1.6417, 3.1033),
    LegacyBound(3, "thickness", 117.4, 239.91),
    LegacyBound(3, "roughness", 19.32, 95.202),
    LegacyBound(4, "sld", 3.0246, 4.6755),
    LegacyBound(4, "thickness", 64.482, 94.768),
    LegacyBound(4, "roughness", 15.713, 28.007),
    LegacyBound(5, "sld", 1.501, 4.9837),
    LegacyBound(5, "thickness", 51.655, 83.334),
    LegacyBound(5, "roughness", 9.7741, 25.373),
    LegacyBound(6, "sld", 0.85516, 4.4906),
    LegacyBound(6, "thickness", 58.479, 86.738),
    LegacyBound(6, "roughness", 43.155, 110.11),
)
LEGACY_FREE_PARAMETERS = sum(bound.low < bound.high for bound in LEGACY_BOUNDS)
LEGACY_SUBSTRATE_SLD = 2.07
LEGACY_Q_MIN, LEGACY_Q_MAX, LEGACY_POINTS = 0.008101436040354381, 0.1975709062238298, 308
LEGACY_PROFILE_POINTS = 900
# One standard deviation of q over q: pyreflect divides the width at half maximum by 2.355.
LEGACY_RELATIVE_SIGMA = 0.0294855 / 2.355

# From the substrate to the air.
_NAMES = ("silicon", "oxide", "film1", "film2", "film3", "film4", "film5")


def legacy_q() -> np.ndarray:
    """Where its curves are calculated: [308], evenly in log q, in 1/angstrom."""
    return np.logspace(np.log10(LEGACY_Q_MIN), np.log10(LEGACY_Q_MAX), num=LEGACY_POINTS)


def legacy_stack() -> StackPrior:
    """The film, air first, silicon last; its free parameters are the 18 of `LEGACY_BOUNDS`."""
    ranges: list[dict[str, Range]] = [{} for _ in _NAMES]
    for bound in LEGACY_BOUNDS:
        ranges[bound.layer][bound.parameter] = Range(min=bound.low, max=bound.high)
    layers = [LayerPrior(name=_NAMES[i], **ranges[i]) for i in range(len(_NAMES) - 1, 0, -1)]
    substrate = Range(min=LEGACY_SUBSTRATE_SLD, max=LEGACY_SUBSTRATE_SLD)
    return StackPrior(
        fronting=MediumPrior(name="air", sld=Range(min=0.0, max=0.0)),
        layers=tuple(layers),
        backing=BackingPrior(name=_NAMES[0], sld=substrate, **ranges[0]),
    )


def legacy_probe() -> TrainingProbe:
    """Its measurements: one resolution, scale 1, no background."""
    return TrainingProbe(
        q_min=LEGACY_Q_MIN,
        q_max=LEGACY_Q_MAX,
        points=LEGACY_POINTS,
        resolution=Range(min=LEGACY_RELATIVE_SIGMA, max=LEGACY_RELATIVE_SIGMA),
        resolution_convention="sigma",
        scale=Range(min=1.0, max=1.0),
        background=Range(min=0.0, max=0.0),
    )
