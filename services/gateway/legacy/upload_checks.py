"""What an uploaded file may be, by its role: told from its content, of which nothing is unpickled."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.lib import format as npy

from guidehall.core import plain_yaml
from guidehall.core.errors import InvalidArgument
from services.gateway.legacy.roles import ROLES, Kind, Role

NPY_MAGIC = npy.MAGIC_PREFIX
# Enough for the largest header of an array that is accepted.
HEAD_BYTES = 16 << 10
MAX_DOCUMENT_BYTES = 1 << 20
MAX_SETTINGS_BYTES = 64 << 10
ARRAY, WEIGHTS, STATISTICS, SETTINGS = (".npy",), (".pth", ".pt"), (".npz", ".json"), (".yml", ".yaml")
AUTOMATIC = ("", "auto")

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_CHANNELS = ("nr.x", "nr.y", "sld.x", "sld.y")
_SHAPES: Mapping[Kind, str] = {
    "curves": "an array of shape (N, 2, L)",
    "profiles": "an array of shape (2, L) or (N, 2, L)",
    "table": "an array of shape (N, params)",
}
STATISTICS_ALLOWED = (
    ".npz or .json with numeric arrays x and y, or with min and max of nr.x, nr.y, sld.x and sld.y"
)


@dataclass(frozen=True)
class Statistics:
    """Normalisation statistics.

    Attributes:
        document: plain JSON.
        complete: whether a network can be used with them: those of x and y alone do not say enough.
    """

    document: dict[str, Any]
    complete: bool


def shape_of(head: bytes) -> tuple[int, ...]:
    """Shape of an array of numbers, by the beginning of its file.

    Raises:
        InvalidArgument: it is none.
    """
    if not head.startswith(NPY_MAGIC):
        raise InvalidArgument("got no .npy file; allowed: one by numpy.save", reason="CONTENT_REFUSED")
    file = io.BytesIO(head)
    try:
        shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
    except Exception:
        # numpy lets through whatever Python's own parser makes of a damaged header.
        message = "got an .npy file whose header makes no sense; allowed: one by numpy.save"
        raise InvalidArgument(message, reason="CONTENT_REFUSED") from None
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InvalidArgument(
            f"got an array of {dtype.str[:40]!r}; allowed: numbers; nothing is unpickled",
            reason="CONTENT_REFUSED",
        )
    return shape


def role_of(name: str) -> Role:
    """A role by its name.

    Raises:
        InvalidArgument: there is none of that name.
    """
    if name not in ROLES:
        raise InvalidArgument.field("roles", name, ", ".join(ROLES))
    return ROLES[name]


def check_shape(role: Role, shape: tuple[int, ...]) -> None:
    """Refuses an array that its role has no use for.

    Raises:
        InvalidArgument: says the shape, and what is allowed.
    """
    pairs = len(shape) in (2, 3) and shape[-2] == 2
    fits = {"curves": pairs and len(shape) == 3, "profiles": pairs, "table": len(shape) == 2}
    if not fits.get(role.kind, False) or min(shape) < 1:
        raise InvalidArgument.field("shape", list(shape), f"{_SHAPES[role.kind]} for {role.name}")


def is_settings(filename: str) -> bool:
    """Whether a file is a settings file, by its name."""
    return filename.lower().startswith("settings") and filename.lower().endswith(SETTINGS)


def read_settings(data: bytes) -> dict[str, Any]:
    """A settings file.

    Raises:
        InvalidArgument: it is no plain YAML of names and values.
    """
    try:
        if len(data) > MAX_SETTINGS_BYTES:
            raise ValueError("too large")
        # Dates and names that are numbers are YAML, but no JSON.
        found = json.loads(json.dumps(plain_yaml.load(data), allow_nan=False))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError):
        found = None
    if not isinstance(found, dict):
        allowed = f"YAML of names and values, at most {MAX_SETTINGS_BYTES} bytes"
        raise InvalidArgument(f"got other content; allowed: {allowed}", reason="CONTENT_REFUSED")
    return found


def read_statistics(data: bytes) -> Statistics:
    """Normalisation statistics of an .npz or a JSON file.

    Raises:
        InvalidArgument: says what is allowed.
    """
    try:
        found = _arrays(data) if data.startswith(b"PK") else json.loads(data.decode("utf-8-sig"))
        if all(name in found for name in ("nr", "sld")):
            channels = {name: _ends(found[name.split(".")[0]][name.split(".")[1]]) for name in _CHANNELS}
            return Statistics(_nested(channels), True)
        if all(name in found for name in _CHANNELS):
            return Statistics(_nested({name: _ends(found[name]) for name in _CHANNELS}), True)
        return Statistics({name: _numbers(found[name]).tolist() for name in ("x", "y")}, False)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError, EOFError, OSError,
            NotImplementedError, zipfile.BadZipFile):  # fmt: skip
        message = f"got other content; allowed: {STATISTICS_ALLOWED}"
        raise InvalidArgument(message, reason="CONTENT_REFUSED") from None


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(item.file_size for item in archive.infolist()) > MAX_DOCUMENT_BYTES:
            raise ValueError("too large")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _numbers(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.ndim < 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("no array of finite numbers")
    return array.astype(np.float64)


def _ends(value: Any) -> dict[str, float]:
    low, high = (value["min"], value["max"]) if isinstance(value, dict) else _numbers(value).tolist()
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in (low, high)) or low > high:
        raise ValueError("no least and largest value")
    return {"min": float(low), "max": float(high)}


def _nested(channels: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, ends in channels.items():
        curve, axis = name.split(".")
        document.setdefault(curve, {})[axis] = ends
    return document
