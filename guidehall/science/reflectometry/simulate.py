"""Pipeline `reflectometry.simulate`: the curve and the profile of a known stack."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guidehall.science.pipeline import Context, raise_if_cancelled
from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.kernel import Media, depth_grid, profile
from guidehall.science.reflectometry.params import SimulateParams, SimulateResult, Stack
from guidehall.science.reflectometry.prior import share_on_sample
from guidehall.science.reflectometry.resolution import Features, orders, resolution
from guidehall.science.reflectometry.validity import unphysical


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
    lit = media.reversed() if stack.beam == "backing" else media
    q = probe.q()
    sigma = probe.relative_sigma * q
    seen = resolution(q, sigma, order=orders(q, sigma, Features.of(lit, probe.q_offset), exact=True))
    sharp = engine.reflectivity(seen.q + probe.q_offset, lit)
    met = sharp * share_on_sample(seen.q, torch.tensor(probe.footprint_q))
    r = probe.scale * engine.blur(seen, met) + probe.background
    z = depth_grid(media, params.profile_points)
    names = [stack.fronting.name, *(layer.name for layer in stack.all_layers), stack.backing.name]

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
        notes=list(unphysical(seen.q + probe.q_offset, media, names, from_backing=stack.beam == "backing")),
    )


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
