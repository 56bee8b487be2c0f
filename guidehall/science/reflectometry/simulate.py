"""Pipeline `reflectometry.simulate`: the curve and the profile of a known stack."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from guidehall.science.pipeline import Context, raise_if_cancelled
from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.kernel import Media, depth_grid, profile
from guidehall.science.reflectometry.params import Note, SimulateParams, SimulateResult, Stack
from guidehall.science.reflectometry.prior import share_on_sample
from guidehall.science.reflectometry.resolution import resolution

# What exact arithmetic could give, and some rounding.
_MOST_REFLECTED = 1.0 + 1e-6


def media_of(stack: Stack) -> Media:
    """One film of known structure, fronting medium first."""
    layers = stack.all_layers
    parts = (stack.fronting, *layers, stack.backing)
    return Media.of(
        sld=np.array([part.sld for part in parts]),
        isld=np.array([part.isld for part in parts]),
        thickness=np.array([layer.thickness for layer in layers]),
        roughness=np.array([part.roughness for part in (*layers, stack.backing)]),
    )


@torch.inference_mode()
def simulate(params: SimulateParams) -> SimulateResult:
    """Calculates one curve."""
    stack, probe = params.stack, params.probe
    media = media_of(stack)
    q = probe.q()
    sigma = probe.relative_sigma * q
    seen = resolution(q, sigma)
    lit = media.reversed() if stack.beam == "backing" else media
    sharp = engine.reflectivity(seen.q + probe.q_offset, lit)
    met = sharp * share_on_sample(seen.q, torch.tensor(probe.footprint_q))
    r = probe.scale * engine.blur(seen, met) + probe.background
    z = depth_grid(media, params.profile_points)

    def numbers(array: Tensor | np.ndarray) -> list[float]:
        values: list[float] = array.reshape(-1).tolist()
        return values

    return SimulateResult(
        q=numbers(q),
        reflectivity=numbers(r),
        resolution=numbers(sigma),
        z=numbers(z),
        sld=numbers(profile(z, media.sld, media)),
        isld=numbers(profile(z, media.isld, media)),
        notes=[*_rougher_than_thick(stack), *_above_total(stack, lit, seen.q, sharp)],
    )


def _rougher_than_thick(stack: Stack) -> list[Note]:
    """A note for each interface that is rougher than a layer beside it is thick."""
    notes = []
    layers = stack.all_layers
    for name, part, before, behind in zip(
        _interfaces(stack), (*layers, stack.backing), (None, *layers), (*layers, None), strict=True
    ):
        thinnest = min(
            (layer for layer in (before, behind) if layer), key=lambda layer: layer.thickness, default=None
        )
        if thinnest is not None and part.roughness > thinnest.thickness:
            message = (
                f"{name}: the roughness, {part.roughness:g} angstrom, is larger than the thickness of"
                f" {thinnest.name}, {thinnest.thickness:g} angstrom; curve and profile are not of one film"
            )
            notes.append(Note("ROUGHER_THAN_THICK", message))
    return list(dict.fromkeys(notes))


def _above_total(stack: Stack, lit: Media, q: Tensor, sharp: Tensor) -> list[Note]:
    """A note where more is reflected than arrives, with the interface that is most to blame.

    Nevot and Croce's factor is an approximation for small roughness; it keeps no balance of what is reflected
    and what is let through.
    """
    highest = sharp[0].argmax()
    if float(sharp[0, highest]) <= _MOST_REFLECTED:
        return []
    # As many films as interfaces; in each, another of them is sharp.
    count = lit.roughness.shape[1]
    smoothed = lit.roughness * (1.0 - torch.eye(count, dtype=lit.roughness.dtype))
    sld, isld, thickness = (part.expand(count, -1) for part in (lit.sld, lit.isld, lit.thickness))
    reflected = engine.reflectivity(q[highest : highest + 1], Media(sld, isld, thickness, smoothed))
    place = int(reflected[:, 0].argmin())
    name = _interfaces(stack)[count - 1 - place if stack.beam == "backing" else place]
    message = (
        f"{name}: the roughness is beyond the validity of Nevot and Croce's factor; reflectivity reaches"
        f" {float(sharp[0, highest]):.6g} at q = {float(q[highest]):.4g} 1/angstrom"
    )
    return [Note("REFLECTS_MORE_THAN_ARRIVES", message)]


def _interfaces(stack: Stack) -> list[str]:
    names = [stack.fronting.name, *(layer.name for layer in stack.all_layers), stack.backing.name]
    return [f"interface {one}/{other}" for one, other in itertools.pairwise(names)]


def run(params: SimulateParams, context: Context) -> SimulateResult:
    """Calculates one curve, with pictures and a text file of q, R and dq (one standard deviation)."""
    # Servers calculate without drawing: only a job needs matplotlib.
    from guidehall.science.reflectometry import plots

    raise_if_cancelled(context)
    result = simulate(params)
    context.progress(1, 1, phase="simulate")
    rows = zip(result.q, result.reflectivity, result.resolution, strict=True)
    text = "# q (1/angstrom), R, dq (1/angstrom, one standard deviation)\n"
    text += "".join(f"{q:.8e} {r:.8e} {dq:.8e}\n" for q, r, dq in rows)
    context.artifact("curve.txt", text.encode(), "text/plain")
    figure = plots.curve_and_profile(
        {"simulated": (np.array(result.q), np.array(result.reflectivity))},
        {"SLD": (np.array(result.z), np.array(result.sld))},
    )
    plots.attach(context, "simulation", figure)
    return result
