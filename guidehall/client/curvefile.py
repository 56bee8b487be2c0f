"""Reads a measured reflectivity curve from a file: 2 to 4 columns of text, or a numpy array."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from guidehall.client._refusal import refusal
from guidehall.client.types import BeamSide, Curve, FloatArray, QUnit, Resolution
from guidehall.core.errors import InvalidArgument

LARGEST_FILE_BYTES = 8 << 20
_COLUMNS = "2 to 4 columns: q, R, dR, dq"
_GZIP = b"\x1f\x8b"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_FORTRAN = re.compile(r"[-+]?[\d.]+[dD][-+]?\d+")
# An index of the points stands before no fewer, nor before larger q (in 1/nm).
_LEAST_INDEXED, _LARGEST_INDEXED_Q = 5, 50.0
_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
# Between blanks or semicolons, in a line that has such.
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_NANOMETRES = re.compile(r"(?<![a-z])(?:nm|nanomet(?:er|re)s?)(?![a-z])", re.IGNORECASE)


def read_curve(
    path: str | Path,
    dq: Resolution | str | None = None,
    relative_dq: float | None = None,
    q_unit: QUnit | str | None = None,
    beam_side: BeamSide | str | None = None,
) -> Curve:
    """The curve in a file of columns q, R, dR and dq, of which the last two may be missing.

    Text columns are separated by blanks, commas or semicolons; `#` starts a comment, and one line of column
    names may come first. A `.npy` file holds the columns as an array of shape (points, columns) or (columns,
    points). Points are put in the order of q. A column of dR or dq that is NaN throughout is one that is not
    known.

    Args:
        path: the file.
        dq: what a fourth column, or `relative_dq`, means: "sigma" for one standard deviation, "fwhm" for the
            full width at half maximum. Files differ, so it is never guessed.
        relative_dq: resolution dq/q of a file without a fourth column.
        q_unit: "1/angstrom" or "1/nm"; of dq too. None is 1/angstrom, but for text that speaks of nanometres,
            which is refused.
        beam_side: "fronting" or "backing", the medium that the beam comes through; None takes the model's.

    Raises:
        InvalidArgument: names the file and the line.
    """
    path = Path(path).expanduser()
    data = _read(path)
    _refuse_packed(data)
    rows = _from_npy(data, path) if data.startswith(npy.MAGIC_PREFIX) else _from_text(data, path)
    if q_unit is None and not data.startswith(npy.MAGIC_PREFIX) and _NANOMETRES.search(_text(data)):
        raise refusal("q_unit", f"{path.name} speaks of nanometres: say whether q is in 1/nm or 1/angstrom")
    empty = np.empty(0)
    left_out = _not_known(rows)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    columns = [
        empty if missing else np.ascontiguousarray(column)
        for column, missing in zip(rows.T, left_out, strict=True)
    ]
    q, r, dr, dq_values = (*columns, empty, empty)[:4]
    convention = None if dq is None else _choice(Resolution, dq, "dq")
    _check_resolution(path, len(dq_values) > 0, convention, relative_dq)
    return Curve(
        q=q,
        r=r,
        dr=dr,
        dq=dq_values,
        q_unit=_choice(QUnit, q_unit or QUnit.INVERSE_ANGSTROM, "q_unit"),
        dq_convention=convention if len(dq_values) or relative_dq is not None else None,
        relative_dq=relative_dq,
        beam_side=None if beam_side is None else _choice(BeamSide, beam_side, "beam_side"),
    )


def _choice(kind: type[Any], value: Any, field: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidArgument.field(
            field, value, f"one of {', '.join(item.value for item in kind)}"
        ) from error


def _check_resolution(path: Path, has_dq: bool, dq: Resolution | None, relative_dq: float | None) -> None:
    if has_dq and relative_dq is not None:
        raise refusal("relative_dq", f"{path.name} has a fourth column, which says it already")
    if relative_dq is not None and not 0 < relative_dq < 1:
        raise InvalidArgument.field("relative_dq", relative_dq, "a number between 0 and 1")
    if dq is None and (has_dq or relative_dq is not None):
        what = f"{path.name} has a fourth column" if has_dq else f"the resolution is {relative_dq}"
        raise refusal("dq", f"{what}: say whether it is sigma or fwhm")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument.field(
            "file", str(path), f"a file that can be read ({error.strerror})"
        ) from error
    if len(data) > LARGEST_FILE_BYTES:
        raise InvalidArgument.field("file", str(path), f"at most {LARGEST_FILE_BYTES >> 20} MiB")
    return data


def _refuse_packed(data: bytes) -> None:
    if data.startswith(_GZIP):
        raise InvalidArgument.field("file", "a file compressed by gzip", "text or .npy: unpack it first")
    if data.startswith(_UTF_16):
        raise InvalidArgument.field("file", "text in UTF-16", "UTF-8: save it as that")


def _from_text(data: bytes, path: Path) -> FloatArray:
    rows: list[list[float]] = []
    written: list[tuple[str, list[str]]] = []
    may_be_heading = True
    for number, tokens in _lines(data):
        where = f"{path.name} line {number}"
        values = [_number(token) for token in tokens]
        is_heading = may_be_heading and all(value is None for value in values)
        may_be_heading = False
        if is_heading:
            if any("%" in token for token in tokens):
                allowed = "q, R, dR and dq without percent: convert them first"
                raise InvalidArgument.field(where, " ".join(tokens), allowed)
            continue
        for token, value in zip(tokens, values, strict=True):
            if value is None:
                raise InvalidArgument.field(where, token, "a number")
        expected = len(rows[0]) if rows else len(values)
        if len(values) != expected:
            raise InvalidArgument.field(
                where, f"{len(values)} columns", f"{expected}, as in the lines before"
            )
        if not 2 <= len(values) <= 4:
            raise InvalidArgument.field(where, f"{len(values)} columns", _COLUMNS)
        rows.append([value for value in values if value is not None])
        written.append((where, tokens))
    if len(rows) < 2:
        raise InvalidArgument.field(path.name, f"{len(rows)} points", "2 points or more")
    table = np.array(rows)
    for row, column in np.argwhere(_wrong(table))[:1]:
        where, tokens = written[row]
        raise InvalidArgument.field(where, tokens[column], "a finite number")
    if _is_indexed(table):
        raise InvalidArgument.field(
            path.name, "a first column that counts the points", f"{_COLUMNS}, without it"
        )
    return table


def _is_indexed(table: FloatArray) -> bool:
    """Whether the first of three columns or more only counts, from 0 or 1, and q stands in the second."""
    if table.shape[1] < 3 or len(table) < _LEAST_INDEXED or table[0, 0] not in (0.0, 1.0):
        return False
    q = table[:, 1]
    ascend = bool((np.diff(table[:, 0]) == 1.0).all()) and bool((np.diff(q) > 0).all())
    return ascend and bool(q[0] > 0 and q[-1] <= _LARGEST_INDEXED_Q)


def _not_known(table: FloatArray) -> NDArray[np.bool_]:
    """Which columns of [points, columns] are dR or dq and NaN throughout: so some files leave them out."""
    return np.isnan(table).all(axis=0) & (np.arange(table.shape[1]) >= 2)


def _wrong(table: FloatArray) -> NDArray[np.bool_]:
    """Which numbers are not finite, in columns that are known."""
    return np.logical_not(np.isfinite(table)) & np.logical_not(_not_known(table))


def _lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of each line that says something. Comments may be in any encoding."""
    for number, line in enumerate(_text(data).splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            parts = content.replace(";", " ").split()
            comma = next(filter(_DECIMAL_COMMA.fullmatch, parts), "") if len(parts) > 1 else ""
            if comma:
                raise InvalidArgument.field(f"line {number}", comma, "a number with a decimal point")
            # A separator at the end of the line makes no column.
            yield number, _SEPARATOR.split(content.rstrip(",; \t"))


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _number(token: str) -> float | None:
    # Python reads 1_0 and digits of other scripts, too.
    if "_" in token or not token.isascii():
        return None
    try:
        # Fortran writes 1.0D-2.
        return float(re.sub("[dD]", "e", token) if _FORTRAN.fullmatch(token) else token)
    except ValueError:
        return None


def _from_npy(data: bytes, path: Path) -> FloatArray:
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
    except (ValueError, KeyError) as error:
        raise InvalidArgument.field("file", str(path), "a numpy array that can be read") from error
    if dtype.kind not in "fiu":
        raise InvalidArgument.field(path.name, f"dtype {dtype}", "real numbers")
    # Before anything is allocated for it: the header may claim what it likes.
    if len(shape) != 2 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise InvalidArgument.field(path.name, f"shape {shape}", f"a whole array of {_COLUMNS}")
    file.seek(0)
    array: NDArray[Any] = np.load(file, allow_pickle=False)
    if array.shape[1] > 4:
        array = array.T
    if not 2 <= array.shape[1] <= 4 or array.shape[0] < 2:
        raise InvalidArgument.field(path.name, f"shape {shape}", f"{_COLUMNS}, and 2 points or more")
    rows = np.ascontiguousarray(array, dtype=np.float64)
    for index, _ in np.argwhere(_wrong(rows))[:1]:
        raise InvalidArgument.field(f"{path.name} point {index}", rows[index].tolist(), "finite numbers")
    return rows
