"""Files of the package pyreflect: weights and normalisation statistics, read with suspicion and written.

A hostile file can do no more than be refused: weights are tensors and nothing else, statistics are read by
`plain_pickle`, and sizes are checked before anything is made room for.
"""

from __future__ import annotations

import ast
import io
import json
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.cnn.params import MAX_WEIGHTS, Normalisation
from guidehall.science.reflectometry.cnn.plain_pickle import (
    MAX_PICKLE_BYTES,
    NotPlainError,
    PlainArray,
    read_plain,
)
from guidehall.science.reflectometry.formats.arrays import read_header

WEIGHTS_ALLOWED = (
    "allowed: a .pth file by torch.save(model.state_dict()) of torch 1.6 or newer, or a safetensors file"
)
STATISTICS_ALLOWED = (
    "allowed: the .npy file of pyreflect, an .npz file or JSON, with min and max of nr.x, nr.y, sld.x and"
    " sld.y"
)
MAX_STATISTICS_BYTES = MAX_PICKLE_BYTES
_MAX_FILE_BYTES = 4 * MAX_WEIGHTS + (16 << 20)
_MAX_TENSORS = 1000
_MAX_MEMBERS = _MAX_TENSORS + 20
_MAX_DIRECTORY_BYTES = 1 << 20
_MAX_HEADER_BYTES = 10_000
# Bytes of the length of an .npy header, by major version of the format.
_NPY_LENGTH_BYTES = {b"\x01": 2, b"\x02": 4}
# All that torch.save needs for a dict of tensors. Others are safe to torch, but may ask for any memory.
_TORCH_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
} | {f"torch {name}Storage" for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int")}
# Where training scripts put the weights among other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_NPZ_CHANNELS = ("nr.x", "nr.y", "sld.x", "sld.y")


def read_weights(path: Path, field: str = "inputs.weights") -> dict[str, Tensor]:
    """Named tensors of a .pth or safetensors file, on the CPU, as they are in the file.

    Raises:
        UserError: blames `field` and says what is allowed.
    """
    size = path.stat().st_size
    if size > _MAX_FILE_BYTES:
        raise UserError(field, f"{size} bytes", f"at most {_MAX_FILE_BYTES}; {WEIGHTS_ALLOWED}")
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path, field)
            found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            found = safetensors.torch.load_file(path)
    except UserError:
        raise
    # A damaged file may fail anywhere inside torch.
    except (Exception, MemoryError) as error:
        raise UserError(
            field, f"a file that cannot be read ({type(error).__name__})", WEIGHTS_ALLOWED
        ) from None
    return _check_tensors(_unwrap(found), field)


def _check_archive(path: Path, field: str) -> None:
    """Looks at a torch archive before torch does."""

    def refuse(found: str) -> NoReturn:
        raise UserError(field, found, WEIGHTS_ALLOWED)

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            refuse(f"an archive of {len(members)} files")
        if any(item.compress_type != zipfile.ZIP_STORED for item in members):
            refuse("a compressed archive, which torch does not write")
        if sum(item.file_size for item in members) > _MAX_FILE_BYTES:
            refuse("an archive of more bytes than a model has")
        directories = [item for item in members if item.filename.endswith("/data.pkl")]
        if len(directories) != 1 or directories[0].file_size > _MAX_DIRECTORY_BYTES:
            refuse("an archive that is none of torch")
        for opcode, argument, _ in pickletools.genops(archive.read(directories[0])):
            if opcode.name == "GLOBAL" and argument not in _TORCH_NAMES:
                refuse(f"{str(argument)[:100]} among its tensors")


def _unwrap(found: Any) -> Any:
    for name in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            return found[name]
    return found


def _check_tensors(found: Any, field: str) -> dict[str, Tensor]:
    if not isinstance(found, dict) or not 1 <= len(found) <= _MAX_TENSORS:
        raise UserError(field, "no dict of tensors", WEIGHTS_ALLOWED)
    numbers = 0
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise UserError(field, f"{str(name)[:80]}: no tensor", WEIGHTS_ALLOWED)
        # A tensor may be larger than what it is stored as.
        numbers += tensor.numel()
        if tensor.dim() > 4 or numbers > MAX_WEIGHTS + _MAX_TENSORS:
            raise UserError(
                field, f"{name[:80]}: shape {list(tensor.shape)}", f"at most {MAX_WEIGHTS} weights"
            )
    return found


def fit_weights(
    found: dict[str, Tensor], expected: dict[str, Tensor], field: str = "inputs.weights"
) -> dict[str, Tensor]:
    """`found` as the weights of a network, in its types and with memory of its own.

    Args:
        expected: names, shapes and types; on the device meta they cost nothing.

    Raises:
        UserError: a name or a shape is another, or a weight is not a finite number.
    """
    weights = {}
    for name in found.keys() - expected.keys():
        raise UserError(field, name[:80], "the network that the shapes tell of has no such tensor")
    for name, want in expected.items():
        if name not in found:
            raise UserError(field, f"no tensor {name}", "the network that the shapes tell of needs it")
        have = found[name]
        if have.shape != want.shape:
            raise UserError(field, f"{name}: shape {list(have.shape)}", f"must be {list(want.shape)}")
        weights[name] = have.detach().to(want.dtype, copy=True).contiguous()
        if not bool(weights[name].isfinite().all()):
            raise UserError(field, f"{name}: NaN or infinite", "weights must be finite numbers")
        if name.endswith("running_var") and bool((weights[name] < 0).any()):
            raise UserError(field, f"{name}: negative", "a variance must not be below 0")
    return weights


def read_document(
    path: Path, field: str, allowed: str, npz: Callable[[dict[str, np.ndarray]], Any] | None = None
) -> Any:
    """Plain data from a JSON file, from an .npy file that holds a dict, or from an .npz file.

    Args:
        npz: makes the data of the arrays of an .npz file; None refuses such files.

    Raises:
        UserError: blames `field`; it cannot be read as such.
    """
    size = path.stat().st_size
    if size > MAX_STATISTICS_BYTES:
        raise UserError(field, f"{size} bytes", f"at most {MAX_STATISTICS_BYTES}; {allowed}")
    data = path.read_bytes()
    try:
        if data.startswith(b"\x93NUMPY"):
            return _object_array(data)
        if npz is not None and data.startswith(b"PK"):
            return npz(_archive_arrays(data))
        return json.loads(data.decode("utf-8-sig"))
    except NotPlainError as error:
        raise UserError(field, str(error), allowed) from None
    except (ValueError, KeyError, RecursionError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile):
        raise UserError(field, "a file that cannot be read", allowed) from None


def _object_array(data: bytes) -> Any:
    """More strictly than numpy, which tries to understand what Python 2 wrote."""
    length_bytes = _NPY_LENGTH_BYTES.get(data[6:7])
    if length_bytes is None:
        raise NotPlainError("an .npy file of an unknown version")
    begin = 8 + length_bytes
    end = begin + int.from_bytes(data[8:begin], "little")
    if end - begin > _MAX_HEADER_BYTES:
        raise NotPlainError(f"an .npy file with a header of {end - begin} bytes")
    try:
        header = ast.literal_eval(data[begin:end].decode("latin-1").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise NotPlainError("an .npy file whose header makes no sense") from None
    if not isinstance(header, dict) or header.get("descr") != "|O" or header.get("shape") != ():
        raise NotPlainError("an .npy file that holds no dict")
    value = read_plain(data[end:])
    # numpy pickles the array that holds the dict.
    return value.value if isinstance(value, PlainArray) else value


def _archive_arrays(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        items = archive.infolist()
        if sum(item.file_size for item in items) > MAX_STATISTICS_BYTES:
            raise NotPlainError("an archive that is too large")
        found = {}
        for item in items:
            if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotPlainError("an archive that numpy does not write")
            try:
                member = archive.read(item)
            except (zlib.error, RuntimeError):
                # Damaged, or locked with a password.
                raise NotPlainError("an archive that cannot be read") from None
            found[item.filename.removesuffix(".npy")] = _two_numbers(member)
        return found


def _two_numbers(data: bytes) -> np.ndarray:
    """An .npy file; its header is believed only where the rest is as long."""
    try:
        header = read_header(data, "member")
    except UserError:
        raise NotPlainError("an archive of other files than .npy") from None
    rest = data[header.data_offset :]
    if header.dtype.kind not in "fiu" or header.shape != (2,) or header.data_bytes != len(rest):
        raise NotPlainError(f"an array of {header.dtype} {list(header.shape)}")
    return np.frombuffer(rest, header.dtype)


def read_statistics(path: Path, field: str = "inputs.statistics") -> Normalisation:
    """Normalisation statistics in pyreflect's own .npy file, in .npz or in JSON.

    Raises:
        UserError: blames `field` and says what is allowed.
    """
    document = read_document(path, field, STATISTICS_ALLOWED, _of_npz)
    try:
        channels = {
            curve: {
                axis: {end: _number(document[curve][axis][end]) for end in ("min", "max")}
                for axis in ("x", "y")
            }
            for curve in ("nr", "sld")
        }
        return Normalisation.model_validate(channels)
    except (KeyError, TypeError, IndexError):
        raise UserError(field, "other content", STATISTICS_ALLOWED) from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{field}.{where}", fault["input"], fault["msg"]) from None


def _of_npz(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """From arrays [2] of min and max, one for each channel."""
    document: dict[str, Any] = {"nr": {}, "sld": {}}
    for name in _NPZ_CHANNELS:
        low, high = arrays[name].astype(np.float64)
        curve, axis = name.split(".")
        document[curve][axis] = {"min": float(low), "max": float(high)}
    return document


def _number(value: Any) -> Any:
    if isinstance(value, PlainArray):
        value = value.value
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def weights_file(state: dict[str, Tensor]) -> bytes:
    """A .pth file."""
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in state.items()}, buffer)
    return buffer.getvalue()


def statistics_files(normalisation: Normalisation) -> dict[str, bytes]:
    """Statistics by file name: as pyreflect reads them (.npy), as .npz without objects, and as JSON."""
    document = normalisation.model_dump()
    old, plain = io.BytesIO(), io.BytesIO()
    np.save(old, np.array(document, dtype=object), allow_pickle=True)
    ends = {name: document[name.split(".")[0]][name.split(".")[1]] for name in _NPZ_CHANNELS}
    arrays: dict[str, Any] = {name: np.array([item["min"], item["max"]]) for name, item in ends.items()}
    np.savez(plain, **arrays)
    return {
        "normalization_stats.npy": old.getvalue(),
        "normalization_stats.npz": plain.getvalue(),
        "normalization_stats.json": normalisation.model_dump_json(indent=1).encode(),
    }
