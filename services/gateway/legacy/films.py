"""Films and measurements of the old web app, as the pipelines take them: from the air, the
fronting medium, to the substrate, the backing one.

SLD in 1e-6/angstrom^2, thickness and roughness in angstrom, q in 1/angstrom. As in the old app, the roughness
of a layer is that of its interface towards the air.
"""

from __future__ import annotations

import re
from typing import Any

from services.gateway.legacy.requests import FilmLayer, GenerateRequest, LayerBound, Parameter

Json = dict[str, Any]

POINTS, PROFILE_POINTS = 308, 900
# The number of layers that means the polymer film built into the generator.
BUILT_IN_LAYERS = 5
# Names and, from and to, thickness, SLD and roughness; from the air down.
_BUILT_IN = (
    ("film5", (58.479, 86.738), (0.85516, 4.4906), (43.155, 110.11)),
    ("film4", (51.655, 83.334), (1.501, 4.9837), (9.7741, 25.373)),
    ("film3", (64.482, 94.768), (3.0246, 4.6755), (15.713, 28.007)),
    ("film2", (117.4, 239.91), (1.6417, 3.1033), (19.32, 95.202)),
    ("film1", (8.717, 98.867), (3.7235, 4.197), (2.2571, 38.969)),
    ("oxide", (9.7216, 14.624), (3.47, 3.47), (1.108, 2.998)),
)
_SUBSTRATE_SLD = 2.07
_BUILT_IN_SUBSTRATE_ROUGHNESS = (1.177, 1.5215)
# The generator's bounds for any other number of layers.
_ANY_FILM = ((10.0, 300.0), (0.0, 6.4), (0.0, 150.0))
_ANY_OXIDE = ((10.0, 25.0), (3.0, 3.9), (1.0, 10.0))
_ANY_SUBSTRATE_ROUGHNESS = (0.0, 5.0)

_Bounds = tuple[float, float]


def probe() -> Json:
    """How the curves of the old app are measured: one resolution, scale 1, no background."""
    # One standard deviation: the old app divides the width at half maximum by this.
    sigma = 0.0294855 / 2.355
    return {
        "q_min": 0.008101436040354381,
        "q_max": 0.1975709062238298,
        "points": POINTS,
        "resolution": _range(sigma, sigma),
        "resolution_convention": "sigma",
        "scale": _range(1.0, 1.0),
        "background": _range(0.0, 0.0),
    }


def stack(request: GenerateRequest) -> Json:
    """The film to draw from: the layers with their bounds, or without any the generator's own."""
    if request.bounds:
        return _bounded(request.layers, request.bounds)
    count = request.generator.num_film_layers
    if count == BUILT_IN_LAYERS:
        return _stack([_layer(*part) for part in _BUILT_IN], _BUILT_IN_SUBSTRATE_ROUGHNESS)
    films = [_layer(f"film{number}", *_ANY_FILM) for number in range(count, 0, -1)]
    return _stack([*films, _layer("oxide", *_ANY_OXIDE)], _ANY_SUBSTRATE_ROUGHNESS)


def is_fixed(film: Json) -> bool:
    """Whether there is nothing in a film that a network could find."""
    parts = (film["fronting"], *film["layers"], film["backing"])
    return all(
        value["min"] == value["max"] for part in parts for value in part.values() if value != part["name"]
    )


def _stack(layers: list[Json], substrate_roughness: _Bounds) -> Json:
    return {
        "fronting": {"name": "air", "sld": _range(0.0, 0.0)},
        "layers": layers,
        "backing": {
            "name": "silicon",
            "sld": _range(_SUBSTRATE_SLD, _SUBSTRATE_SLD),
            "roughness": _range(*substrate_roughness),
        },
    }


def _layer(name: str, thickness: _Bounds, sld: _Bounds, roughness: _Bounds) -> Json:
    return {
        "name": name,
        "thickness": _range(*thickness),
        "sld": _range(*sld),
        "roughness": _range(*roughness),
    }


def _bounded(layers: list[FilmLayer], bounds: list[LayerBound]) -> Json:
    """Of a whole film from the substrate to the air; what has no bounds is fixed."""
    own = {(bound.i, bound.par): bound.bounds for bound in bounds}
    names = _names([layer.name for layer in layers])

    def part(place: int, *kinds: Parameter) -> Json:
        values = {kind: own.get((place, kind), (getattr(layers[place], kind),) * 2) for kind in kinds}
        return {"name": names[place], **{kind: _range(*ends) for kind, ends in values.items()}}

    last = len(layers) - 1
    return {
        "fronting": part(last, "sld", "isld"),
        "layers": [part(place, "sld", "isld", "thickness", "roughness") for place in range(last - 1, 0, -1)],
        "backing": part(0, "sld", "isld", "roughness"),
    }


def _names(given: list[str]) -> list[str]:
    """Names as the pipelines take them: of letters, digits, spaces, - and _, short, and no two alike."""
    found: list[str] = []
    for text in given:
        plain = re.sub(r"[^A-Za-z0-9_ -]", "_", text)[:36]
        if not re.match(r"[A-Za-z]", plain):
            plain = f"layer {plain}".strip()[:36]
        name, number = plain, 1
        while name in found:
            number += 1
            name = f"{plain} {number}"
        found.append(name)
    return found


def _range(low: float, high: float) -> Json:
    return {"min": low, "max": high}
