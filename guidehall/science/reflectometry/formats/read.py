"""The entry to all formats of curves: looks at the first bytes and hands on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import MAX_FILE_BYTES, Curve
from guidehall.science.reflectometry.formats import arrays, nexus, orso, text
from guidehall.science.reflectometry.formats.common import Given, QUnit, assemble
from guidehall.science.reflectometry.params import ResolutionConvention

_LOOKED_AT = 200
# How files begin that hold a curve only when they are unpacked.
_PACKED = {
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "in a zip archive (such as .npz, .xlsx or .zip)",
}


def read_curves(
    data: bytes,
    filename: str = "",
    *,
    dq: ResolutionConvention | None = None,
    q_unit: QUnit | None = None,
    field: str = "file",
) -> list[Curve]:
    """The curves of a file; what kind of file it is, its first bytes say.

    Points come out in the order of q. Where the file had them in several runs of ascending q, as measurements
    at several angles have, `Curve.segment` keeps the run of each point. Zero and negative R are kept.

    Args:
        data: the file: `.npy`, text in columns, ORSO text, or HDF5.
        filename: its name, kept with the curves.
        dq: what the resolution is, where the file does not say it: "sigma" for one standard deviation, "fwhm"
            for the full width at half maximum. The two differ by a factor of 2.355.
        q_unit: unit of q, where the file does not say it; without both, 1/angstrom is taken.
        field: what to call the file in errors.

    Returns:
        One or more curves, in 1/angstrom, dq as one standard deviation.

    Raises:
        UserError: names the line, point or group that is wrong; or `dq_convention`, when the file has a
            resolution and neither the file nor `dq` says what it is.
    """
    if len(data) > MAX_FILE_BYTES:
        raise UserError(field, f"{len(data)} bytes", f"at most {MAX_FILE_BYTES} are allowed")
    _refuse_packed(data, field)
    given = Given(field, filename, dq, q_unit)
    if data.startswith(arrays.MAGIC):
        sets = arrays.read(data, given)
    elif data.startswith(nexus.MAGIC):
        sets = nexus.read(data, given)
    elif orso.is_orso(data):
        sets = orso.read(data, given)
    else:
        sets = text.read(data, given)
    return [assemble(columns, given) for columns in sets]


def _refuse_packed(data: bytes, field: str) -> None:
    for start, how in _PACKED.items():
        if data.startswith(start):
            raise UserError(field, f"a file {how}", "unpack it first: text, .npy, ORSO or HDF5 is read")
    # Two bytes for each character, with the mark of it or, in ASCII, with every other byte 0.
    odd, even = data[1:_LOOKED_AT:2], data[:_LOOKED_AT:2]
    wide = len(odd) > 1 and ((not any(odd) and all(even[: len(odd)])) or (not any(even) and all(odd)))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or wide:
        raise UserError(field, "text in UTF-16", "save it as UTF-8")


def read_files(
    paths: Sequence[Path], dq: ResolutionConvention | None = None, q_unit: QUnit | None = None
) -> list[Curve]:
    """The curves of several files, in that order, each with a name of its own in `metadata.data_set`.

    That of a curve that is alone in its file is the file's, without its ending; those of one file that has
    several are their own.

    Raises:
        UserError: a file cannot be read, or is wrong.
    """
    found: list[Curve] = []
    for path in paths:
        try:
            content = _content(path)
        except OSError as error:
            raise UserError("data", path, f"cannot be read: {error.strerror}") from None
        curves = read_curves(content, path.name, dq=dq, q_unit=q_unit, field=path.name)
        for place, curve in enumerate(curves, start=1):
            name = curve.metadata.data_set or str(place)
            if len(paths) > 1 or len(curves) == 1:
                name = path.stem if len(curves) == 1 else f"{path.stem} {name}"
            while any(name == other.metadata.data_set for other in found):
                name += "'"
            found.append(replace(curve, metadata=replace(curve.metadata, data_set=name)))
    return found


def _content(path: Path) -> bytes:
    """What a file holds; of one that ends nowhere no more than what is too much."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise UserError(path.name, f"{size} bytes", f"at most {MAX_FILE_BYTES} are allowed")
        return file.read(MAX_FILE_BYTES + 1)
