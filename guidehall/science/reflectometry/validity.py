"""Where the formula of a film does not hold: Nevot and Croce's factor is one for small roughness."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.params import Note

# What exact arithmetic could give, and some rounding.
_MOST_REFLECTED = 1.0 + 1e-6
# Below any matter, in 1e-6/angstrom^2; numbers in 1/angstrom^2 are.
LEAST_SLD = 1e-3


def unphysical(q: Tensor, media: Media, names: Sequence[str], *, from_backing: bool) -> tuple[Note, ...]:
    """What of one film is beyond the formula.

    Args:
        q: [N], where the curve is calculated, in 1/angstrom.
        media: one film, fronting medium first.
        names: [M], of the media.
        from_backing: whether the beam comes through the backing medium.
    """
    lit = media.reversed() if from_backing else media
    interfaces = [f"interface {front}/{back}" for front, back in itertools.pairwise(names)]
    seen = [*reversed(interfaces)] if from_backing else interfaces
    return (*_in_another_unit(media), *_rougher_than_thick(media, names), *_above_total(q, lit, seen))


def _in_another_unit(media: Media) -> list[Note]:
    largest = float(media.sld.abs().max())
    if not 0.0 < largest < LEAST_SLD:
        return []
    message = (
        f"no SLD is above {largest:.3g}e-6/angstrom^2: SLD is given in 1e-6/angstrom^2, silicon's is 2.07"
    )
    return [Note("SLD_UNIT", message)]


def _rougher_than_thick(media: Media, names: Sequence[str]) -> list[Note]:
    """A note for each interface that is rougher than a layer beside it is thick."""
    notes = []
    layers = list(zip(media.thickness[0].tolist(), names[1:-1], strict=True))
    for (front, back), roughness, before, behind in zip(
        itertools.pairwise(names), media.roughness[0].tolist(), (None, *layers), (*layers, None), strict=True
    ):
        thickness, thinnest = min((layer for layer in (before, behind) if layer), default=(float("inf"), ""))
        if roughness > thickness:
            message = (
                f"interface {front}/{back}: the roughness, {roughness:.4g} angstrom, is larger than the"
                f" thickness of {thinnest}, {thickness:.4g} angstrom; curve and profile are not of one film"
            )
            notes.append(Note("ROUGHER_THAN_THICK", message))
    return list(dict.fromkeys(notes))


def _above_total(q: Tensor, lit: Media, interfaces: Sequence[str]) -> list[Note]:
    """A note where more is reflected than arrives, with the interface that is most to blame.

    The factor keeps no balance of what is reflected and what is let through.
    """
    sharp = engine.reflectivity(q, lit)
    highest = sharp[0].argmax()
    if float(sharp[0, highest]) <= _MOST_REFLECTED:
        return []
    # As many films as interfaces; in each, another of them is sharp.
    count = lit.roughness.shape[1]
    smoothed = lit.roughness * (1.0 - torch.eye(count, dtype=lit.roughness.dtype))
    sld, isld, thickness = (part.expand(count, -1) for part in (lit.sld, lit.isld, lit.thickness))
    reflected = engine.reflectivity(q[highest : highest + 1], Media(sld, isld, thickness, smoothed))
    place = int(reflected[:, 0].argmin())
    message = (
        f"{interfaces[place]}: the roughness is beyond the validity of Nevot and Croce's factor;"
        f" reflectivity reaches {float(sharp[0, highest]):.6g} at q = {float(q[highest]):.4g} 1/angstrom"
    )
    return [Note("REFLECTS_MORE_THAN_ARRIVES", message)]
