"""Training sets for the network of pyreflect, in its shapes.

Reflectivity float32 [N, 2, L]: q in 1/angstrom and R. Profiles float32 [N, 2, M]: z in angstrom, from the
backing medium towards the fronting one, and SLD.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from guidehall.science.pipeline import Context, UserError, raise_if_cancelled
from guidehall.science.reflectometry import engine
from guidehall.science.reflectometry.cnn.params import MAX_CURVES, MAX_NUMBERS, MIN_CURVES, CnnParams
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.network_params import LARGEST
from guidehall.science.reflectometry.params import sigma_of
from guidehall.science.reflectometry.prior import Prior
from guidehall.science.reflectometry.resolution import resolution
from guidehall.science.reflectometry.validity import LEAST_SLD

# A set is made in pieces, so that a cancellation is heard.
_PIECE = 256


class CurveSet(NamedTuple):
    """Reflectivity [N, 2, L] and profiles [N, 2, M]."""

    nr: np.ndarray
    sld: np.ndarray


def relative_sigma(params: CnnParams) -> float:
    """The one resolution of all curves: one standard deviation of q over q."""
    return sigma_of(params.probe.resolution.min, params.probe.resolution_convention)


def make_curves(params: CnnParams, context: Context, seed: int) -> CurveSet:
    """Draws films and calculates them with our own engine, blurred as pyreflect does."""
    prior = Prior(params.stack, params.probe)
    q = params.probe.q()
    blur = resolution(q, relative_sigma(params) * q, "refl1d")
    generator = torch.Generator().manual_seed(seed)
    nr = np.empty((params.curves, 2, len(q)), dtype=np.float32)
    sld = np.empty((params.curves, 2, params.profile_points), dtype=np.float32)
    drawn = np.empty((params.curves, len(prior.free)))
    nr[:, 0] = q
    for start in range(0, params.curves, _PIECE):
        raise_if_cancelled(context)
        rows = slice(start, min(start + _PIECE, params.curves))
        unit = torch.rand(rows.stop - start, len(prior.free), generator=generator, dtype=torch.float64)
        values = prior.values(unit)
        drawn[rows] = values.numpy()
        nr[rows, 1] = prior.curves(blur, values).numpy()
        sld[rows] = profiles_of(prior.films(values), params.profile_points)
        context.progress(rows.stop, params.curves, phase="generate")
    attach_parameters(context, drawn, [(item.name, item.unit) for item in prior.free])
    return CurveSet(nr, sld)


def attach_parameters(context: Context, values: np.ndarray, columns: Sequence[tuple[str, str]]) -> None:
    """Adds the films behind a set to the result: parameters.npy [N, P], and what its columns are.

    Args:
        columns: name, such as "film.thickness", and unit of each.
    """
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    context.artifact("parameters.npy", buffer.getvalue(), "application/x-npy")
    names = [{"name": name, "unit": unit} for name, unit in columns]
    context.artifact("parameters.json", json.dumps(names, indent=1).encode(), "application/json")


def profiles_of(films: Media, points: int) -> np.ndarray:
    """Profiles [B, 2, points] of B films; like pyreflect's they begin at 0 in the backing medium."""
    films = films.reversed()
    z, profile = engine.sampled_profile(films, films.sld, points)
    return torch.stack([z - z[:, :1], profile], dim=1).cpu().numpy()


@contextmanager
def kept_pairs(context: Context, count: int, points: int, profile_points: int) -> Iterator[CurveSet]:
    """Arrays to be filled, on disk; then they belong to the result as nr_train.npy and sld_train.npy."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("nr_train.npy", "sld_train.npy")]
        arrays = [
            np.lib.format.open_memmap(path, "w+", np.float32, (count, 2, length))
            for path, length in zip(paths, (points, profile_points), strict=True)
        ]
        yield CurveSet(*arrays)
        for path, array in zip(paths, arrays, strict=True):
            array.flush()
            context.artifact(path.name, path, "application/x-npy")


def read_pairs(path: Path, field: str, *, rows: tuple[int, int]) -> np.ndarray:
    """Curves float32 [N, 2, L] of an .npy file; [2, L] is one curve.

    Args:
        rows: least and largest N.

    Raises:
        UserError: blames `field`; it is no such array, or not finite.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(
            field, "bytes numpy cannot read", "must be a .npy file without Python objects"
        ) from None
    if not isinstance(mapped, np.ndarray):
        raise UserError(field, "an archive of arrays", "must be a .npy file")
    if mapped.ndim == 2:
        mapped = mapped[None]
    found = f"{mapped.dtype} {list(mapped.shape)}"
    fits = mapped.dtype.kind in "fiu" and mapped.ndim == 3 and mapped.shape[1] == 2
    if not fits or not rows[0] <= len(mapped) <= rows[1] or not 2 <= mapped.shape[2] <= 4096:
        raise UserError(field, found, f"must be numbers of shape [{rows[0]} to {rows[1]}, 2, 2 to 4096]")
    if mapped.size > MAX_NUMBERS:
        raise UserError(field, found, f"at most {MAX_NUMBERS} numbers")
    curves: np.ndarray = np.array(mapped, dtype=np.float32)
    # NaN is not below anything.
    if not (np.abs(curves) <= LARGEST).all():
        raise UserError(
            field, "NaN or a huge number", f"must be numbers between {-LARGEST:g} and {LARGEST:g}"
        )
    return curves


def refuse_wrong_sld_unit(profiles: np.ndarray, field: str) -> None:
    """Refuses profiles [N, 2, M] whose SLD can only be in 1/angstrom^2.

    Raises:
        UserError: blames `field` and names the unit.
    """
    largest = float(np.abs(profiles[:, 1]).max())
    if 0 < largest < LEAST_SLD:
        allowed = "SLD must be in 1e-6/angstrom^2, as 2.07 for silicon: these look like 1/angstrom^2"
        raise UserError(field, f"no SLD above {largest:g}", allowed)


def read_curves(context: Context) -> CurveSet:
    """The set in the roles nr_train and sld_train.

    Raises:
        UserError: the two do not belong together, or the curves do not share one grid.
    """
    limits = (MIN_CURVES, MAX_CURVES)
    nr = read_pairs(context.dataset("nr_train"), "inputs.nr_train", rows=limits)
    sld = read_pairs(context.dataset("sld_train"), "inputs.sld_train", rows=limits)
    refuse_wrong_sld_unit(sld, "inputs.sld_train")
    if len(nr) != len(sld):
        raise UserError("inputs.sld_train", f"{len(sld)} profiles", f"must be {len(nr)}, one for each curve")
    q = nr[0, 0]
    if not (q[0] > 0 and (np.diff(q) > 0).all()):
        raise UserError(
            "inputs.nr_train", "q that does not grow from above 0", "q comes first, in 1/angstrom"
        )
    if not np.allclose(nr[:, 0], q, rtol=1e-4, atol=0.0):
        # The network sees positions only.
        raise UserError("inputs.nr_train", "curves of different q", "all curves must have the same q")
    if (np.diff(sld[:, 0]) < 0).any():
        raise UserError(
            "inputs.sld_train", "z that descends", "z comes first, in angstrom, and must not descend"
        )
    return CurveSet(nr, sld)
