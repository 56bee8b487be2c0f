"""A fixed set of training curves: made once, kept as an array, read back by a later run.

The array is float32 [N, P + 1 + G]: P free parameters in their units, the relative resolution (one standard
deviation), and the curve on the model's grid with scale and background but without noise.

The same curves are left as pyreflect has them, see `cnn.curves`, so that its network can be trained on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from guidehall.science.pipeline import Context, UserError, raise_if_cancelled
from guidehall.science.reflectometry.cnn.curves import attach_parameters, kept_pairs, profiles_of
from guidehall.science.reflectometry.cnn.params import MAX_NUMBERS, PROFILE_POINTS
from guidehall.science.reflectometry.draw import Curves, Draw
from guidehall.science.reflectometry.params import MAX_FIXED_CURVES

# A set is made in pieces, so that a cancellation is heard.
_PIECE = 512
# Curves of a file that are calculated again, and how closely they must agree.
_SAMPLE, _AGREEMENT = 8, 1e-3


def make_curves(draw: Draw, count: int, context: Context) -> Curves:
    """Draws `count` curves of films that fill the prior evenly."""
    films = draw.spread_films(count)
    pieces: list[Curves] = []
    for start in range(0, count, _PIECE):
        raise_if_cancelled(context)
        pieces.append(draw.curves_of(films[start : start + _PIECE]))
        context.progress(min(start + _PIECE, count), count, phase="generate")
    return Curves(
        *(torch.cat([getattr(piece, name) for piece in pieces]) for name in ("unit", "relative_sigma", "r"))
    )


def to_array(curves: Curves, draw: Draw) -> np.ndarray:
    """The set as an array to keep."""
    columns = [draw.prior.values(curves.unit), curves.relative_sigma[:, None], curves.r]
    return torch.cat(columns, dim=1).float().cpu().numpy()


def attach_pairs(curves: Curves, draw: Draw, context: Context) -> None:
    """Adds the set to the result as nr_train.npy and sld_train.npy, unless they are too large for that.

    Its films are added in either case.
    """
    values = draw.prior.values(curves.unit).cpu().numpy()
    attach_parameters(context, values, [(item.name, item.unit) for item in draw.prior.free])
    count, points = len(curves), len(draw.q)
    if 2 * count * (points + PROFILE_POINTS) > MAX_NUMBERS:
        context.log(f"{count} curves are too many for nr_train.npy and sld_train.npy")
        return
    with kept_pairs(context, count, points, PROFILE_POINTS) as pairs:
        pairs.nr[:, 0], pairs.nr[:, 1] = draw.q.cpu().numpy(), curves.r.cpu().numpy()
        for start in range(0, count, _PIECE):
            raise_if_cancelled(context)
            films = draw.prior.films(draw.prior.values(curves.unit[start : start + _PIECE]))
            pairs.sld[start : start + _PIECE] = profiles_of(films, PROFILE_POINTS)


def read_curves(path: Path, draw: Draw) -> Curves:
    """Reads a set and makes sure that it belongs to the prior and the grid of `draw`.

    Raises:
        UserError: it does not, or the file is not such an array.
    """
    field = "inputs.curves"
    parameters, points = len(draw.prior.free), len(draw.q)
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(
            field, "bytes numpy cannot read", "must be a .npy file without Python objects"
        ) from None
    expected = (parameters + 1 + points,)
    if not isinstance(mapped, np.ndarray):
        raise UserError(field, "an archive of arrays", "must be a .npy file")
    fits = mapped.dtype == np.float32 and mapped.ndim == 2 and mapped.shape[1:] == expected
    if not fits or not 1 <= len(mapped) <= MAX_FIXED_CURVES:
        allowed = f"must be float32 of shape [1 to {MAX_FIXED_CURVES}, {expected[0]}]"
        raise UserError(field, f"{mapped.dtype} {list(mapped.shape)}", allowed)
    table = torch.from_numpy(np.array(mapped, dtype=np.float64)).to(draw.q.device)
    values, relative_sigma, r = table[:, :parameters], table[:, parameters], table[:, parameters + 1 :]
    unit = draw.prior.unit(values)
    if not bool(table.isfinite().all()) or bool(((unit < -1e-4) | (unit > 1 + 1e-4)).any()):
        raise UserError(field, "parameters outside the bounds", "must come from a run with the same bounds")
    again = draw.calculate(values[:_SAMPLE], relative_sigma[:_SAMPLE])
    if not torch.allclose(again, r[:_SAMPLE], rtol=_AGREEMENT, atol=0.0):
        raise UserError(field, "other curves", "must come from a run with the same stack, probe and grid")
    return Curves(unit.clamp(0.0, 1.0), relative_sigma, r)
