"""The fast engine: curves, their derivatives and profiles of many films on a CPU.

Compiled C where the package was installed with a C compiler, and the torch kernel elsewhere; both solve the
equations that `kernel` explains, in float64. Calls release the interpreter, so threads run beside each other.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidehall.science.reflectometry import kernel
from guidehall.science.reflectometry.kernel import Media
from guidehall.science.reflectometry.resolution import Resolution

_log = logging.getLogger(__name__)
_LIBRARY = Path(__file__).parent / "native" / "engine.so"
# Of a batch, so much is held at once by the torch kernel when it takes derivatives: in points.
_PIECE = 20_000


# ABI of engine.c, of which the library beside it may be an older version.
_ABI = 1


@lru_cache(maxsize=1)
def _installed() -> ctypes.CDLL | None:
    return _load(_LIBRARY)


def _load(path: Path) -> ctypes.CDLL | None:
    """The library, if it is there and is one that this module knows how to call."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        _log.warning("the compiled reflectometry engine is not installed; torch calculates instead")
        return None
    try:
        found = str(library.guidehall_abi())
    except AttributeError:
        found = "none"
    if found != str(_ABI):
        _log.warning(
            "the compiled reflectometry engine is of another version (ABI %s, not %s): install the package"
            " again; torch calculates instead",
            found,
            _ABI,
        )
        return None
    library.guidehall_instructions.restype = ctypes.c_char_p
    return library


_torch_only = False


def _library() -> ctypes.CDLL | None:
    return None if _torch_only else _installed()


def name() -> str:
    """Which engine calculates, such as "c (avx2)" or "torch"."""
    library = _library()
    return "torch" if library is None else f"c ({library.guidehall_instructions().decode()})"


def use(which: str) -> None:
    """Calculates with another engine from now on, to compare them.

    Args:
        which: "torch", or an instruction set of the compiled engine: "any", "avx2" or "avx512".

    Raises:
        ValueError: the engine is not compiled, or this machine has no such instructions.
    """
    global _torch_only
    if which != "torch":
        library = _installed()
        if library is None or library.guidehall_choose(which.encode()):
            raise ValueError(f"no engine {which!r} here")
    _torch_only = which == "torch"


def reflectivity(q: Tensor, media: Media) -> Tensor:
    """As `kernel.reflectivity`, without derivatives: q [N] or [B, N] to [B, N]."""
    library = _library()
    if library is None or q.device.type != "cpu":
        with torch.no_grad():
            return kernel.reflectivity(q, media)
    films, points = len(media.sld), q.shape[-1]
    out = torch.empty(films, points, dtype=torch.float64)
    held = [*_film_arrays(media), _points_of(q, films)]
    _call(library.guidehall_reflectivity, *_sizes(media), *held[:4], points, held[4], int(q.ndim == 2), out)
    return out


def gradient(
    q: Tensor, media: Media, wanted: np.ndarray, rows: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Reflectivity and its derivatives.

    Args:
        q: [N] or [B, N], in 1/angstrom.
        media: B films of M media.
        wanted: indices into the 4 M - 2 numbers of a film: sld [M], isld [M], thickness [M - 2],
            roughness [M - 1], q.
        rows: where the derivative by each wanted number goes, counted from 0 without gaps; those that share a
            row add up, as of a layer that is repeated. Without it each has a row of its own.

    Returns:
        [B, N] and [B, R, N], R rows.
    """
    rows = np.arange(len(wanted)) if rows is None else rows
    height = int(rows.max(initial=-1)) + 1
    library = _library()
    if library is None or q.device.type != "cpu":
        return _torch_gradient(q, media, wanted, rows)
    films, points = len(media.sld), q.shape[-1]
    out = torch.empty(films, points, dtype=torch.float64)
    slopes = torch.empty(films, height, points, dtype=torch.float64)
    held = [*_film_arrays(media), _points_of(q, films)]
    _call(
        library.guidehall_gradient,
        *_sizes(media),
        *held[:4],
        points,
        held[4],
        int(q.ndim == 2),
        _rows(media, wanted, rows),
        height,
        out,
        slopes,
    )
    return out, slopes


def pull(
    q: Tensor, media: Media, wanted: np.ndarray, weights: Tensor, rows: np.ndarray | None = None
) -> Tensor:
    """Derivatives of the sum over points of weights x reflectivity, [B, R].

    Args:
        q, media, wanted, rows: as in `gradient`.
        weights: [B, N].
    """
    rows = np.arange(len(wanted)) if rows is None else rows
    height = int(rows.max(initial=-1)) + 1
    library = _library()
    if library is None or q.device.type != "cpu":
        _, slopes = _torch_gradient(q, media, wanted, rows)
        return (slopes @ weights[..., None])[..., 0]
    films, points = len(media.sld), q.shape[-1]
    out = torch.empty(films, height, dtype=torch.float64)
    held = [*_film_arrays(media), _points_of(q, films), _array(weights.expand(films, points))]
    _call(
        library.guidehall_pull,
        *_sizes(media),
        *held[:4],
        points,
        held[4],
        int(q.ndim == 2),
        _rows(media, wanted, rows),
        height,
        held[5],
        out,
    )
    return out


def blur(resolution: Resolution, curves: Tensor) -> Tensor:
    """Curves at the points of `resolution`, [..., C], as the instrument sees them, [..., N]."""
    if curves.shape[-1] != len(resolution.q):
        raise ValueError(
            f"curves of {curves.shape[-1]} points, of which the resolution has {len(resolution.q)}"
        )
    library = _library()
    if library is None or curves.device.type != "cpu":
        return resolution.apply(curves)
    rows, points = curves.shape[:-1], len(resolution.first)
    out = torch.empty(*rows, points, dtype=torch.float64)
    source, weights = _array(curves), _array(resolution.weights)
    _call(
        library.guidehall_blur,
        rows.numel(),
        curves.shape[-1],
        source,
        points,
        weights.shape[1],
        resolution.first_int32,
        weights,
        out,
    )
    return out


def sampled_profile(media: Media, values: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """As `kernel.sampled_profile`, without derivatives: z and profile, each [B, points]."""
    library = _library()
    if library is None or values.device.type != "cpu":
        with torch.no_grad():
            return kernel.sampled_profile(media, values, points)
    z = torch.empty(len(values), points, dtype=torch.float64)
    out = torch.empty_like(z)
    held = [_array(values), *_film_arrays(media)[2:]]
    _call(library.guidehall_profile, *_sizes(media), *held, points, z, out)
    return z, out


def _rows(media: Media, wanted: np.ndarray, rows: np.ndarray) -> Tensor:
    """Where the engine puts the derivative by each number of a film; -1 for nowhere."""
    places = np.full(4 * media.sld.shape[1] - 2, -1, dtype=np.int32)
    places[wanted] = rows
    return torch.from_numpy(places)


def _sizes(media: Media) -> tuple[int, int]:
    films, count = media.sld.shape
    return films, count


def _film_arrays(media: Media) -> list[Tensor]:
    films, count = media.sld.shape
    parts = (media.sld, media.isld, media.thickness, media.roughness)
    widths = (count, count, count - 2, count - 1)
    # The compiled engine trusts the sizes.
    return [_array(part.expand(films, width)) for part, width in zip(parts, widths, strict=True)]


def _points_of(q: Tensor, films: int) -> Tensor:
    return _array(q if q.ndim == 1 else q.expand(films, q.shape[1]))


def _array(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64).contiguous()


def _call(function: ctypes._NamedFuncPointer, *arguments: Tensor | int) -> None:
    """The caller keeps the tensors alive: only their addresses are passed."""
    if function(
        *(
            ctypes.c_void_p(item.data_ptr()) if isinstance(item, Tensor) else ctypes.c_int(item)
            for item in arguments
        )
    ):
        raise MemoryError


def _torch_gradient(q: Tensor, media: Media, wanted: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    # Each point is taken for a film of its own, so that one backward pass gives all derivatives.
    films, points = len(media.sld), q.shape[-1]
    q_each = q.expand(films, points).reshape(-1, 1)
    parts = [
        part[:, None, :].expand(-1, points, -1).reshape(films * points, part.shape[1])
        for part in (media.sld, media.isld, media.thickness, media.roughness)
    ]
    curves, slopes = [], []
    with torch.enable_grad():
        for start in range(0, films * points, _PIECE):
            leaves = [
                item[start : start + _PIECE].detach().clone().requires_grad_() for item in (*parts, q_each)
            ]
            r = kernel.reflectivity(leaves[4], Media(*leaves[:4]))
            # A film of two media has no thickness.
            found = torch.autograd.grad(r.sum(), leaves, allow_unused=True, materialize_grads=True)
            curves.append(r.detach()[:, 0])
            each = torch.cat(found, dim=1)[:, torch.as_tensor(wanted, device=q.device)]
            summed = each.new_zeros(len(each), int(rows.max(initial=-1)) + 1)
            slopes.append(summed.index_add_(1, torch.as_tensor(rows, device=q.device), each))
    r = torch.cat(curves).reshape(films, points)
    return r, torch.cat(slopes).reshape(films, points, -1).transpose(1, 2).contiguous()
