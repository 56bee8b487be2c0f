"""Measured curves: what they hold, and reading them from files. Needs numpy and no torch."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.params import MAX_POINTS, BeamSide, ResolutionConvention, sigma_of

MAX_FILE_BYTES = 8 << 20
_NPY_MAGIC = b"\x93NUMPY"
_SEPARATOR = re.compile(r"[,;\s]+")
# Far beyond any measurement, and near enough that squares of residuals stay finite.
_LARGEST_R, _SMALLEST_DR = 1e3, 1e-15
_COLUMNS = ("q", "r", "dr", "dq")


@dataclass(frozen=True)
class Curve:
    """A reflectivity curve; arrays of one length N, float64.

    Attributes:
        q: 1/angstrom, positive and not descending.
        r: reflectivity; zero and negative values are possible after background subtraction.
        dr: one standard deviation of r; None when not known.
        dq: one standard deviation of q, in 1/angstrom; None when not known.
        relative_dq: one standard deviation of q over q, used where `dq` is None.
        beam_side: the medium that the beam came through; None takes the model's.
    """

    q: np.ndarray
    r: np.ndarray
    dr: np.ndarray | None = None
    dq: np.ndarray | None = None
    relative_dq: float | None = None
    beam_side: BeamSide | None = None

    def check(self, field: str = "curve") -> None:
        """Refuses what cannot be a measurement; `field` goes in front of the name of what is wrong.

        Raises:
            UserError: names the array and the index.
        """
        if not 2 <= len(self.q) <= MAX_POINTS:
            raise UserError(
                f"{field}.q", f"{len(self.q)} points", f"between 2 and {MAX_POINTS} points are allowed"
            )
        for name in _COLUMNS:
            array: np.ndarray | None = getattr(self, name)
            if array is None:
                continue
            if array.shape != self.q.shape:
                raise UserError(f"{field}.{name}", f"{len(array)} points", f"must have {len(self.q)}, like q")
            _refuse_first(~np.isfinite(array), array, f"{field}.{name}", "must be a finite number")
        _refuse_first(self.q <= 0, self.q, f"{field}.q", "must be positive")
        descends = np.concatenate([[False], np.diff(self.q) < 0])
        _refuse_first(descends, self.q, f"{field}.q", "must not be smaller than the value before it")
        allowed = f"must be between {-_LARGEST_R:g} and {_LARGEST_R:g}"
        _refuse_first(np.abs(self.r) > _LARGEST_R, self.r, f"{field}.r", allowed)
        if self.dr is not None:
            allowed = f"must be positive and at least {_SMALLEST_DR:g}"
            _refuse_first(self.dr < _SMALLEST_DR, self.dr, f"{field}.dr", allowed)
        if self.dq is not None:
            wrong = (self.dq < 0) | (self.dq > 0.3 * self.q)
            allowed = "must be between 0 and 0.3 q, one standard deviation"
            _refuse_first(wrong, self.dq, f"{field}.dq", allowed)
        if self.relative_dq is not None and not 0 <= self.relative_dq <= 0.3:
            raise UserError(f"{field}.relative_dq", self.relative_dq, "must be between 0 and 0.3")


def _refuse_first(wrong: np.ndarray, array: np.ndarray, field: str, allowed: str) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise UserError(f"{field}[{index}]", float(array[index]), allowed)


def read_curve(data: bytes, dq_convention: ResolutionConvention | None = None, field: str = "file") -> Curve:
    """Reads text or `.npy` with 2 to 4 columns: q, R, dR and dq, in 1/angstrom.

    Text may separate columns by blanks, commas or semicolons; `#` starts a comment, and one line of column
    names may come first.

    Args:
        data: the file.
        dq_convention: what a fourth column means. Files do not say, and the two differ by a factor of 2.355.
        field: what to call the file in errors.

    Raises:
        UserError: names the line or the point that is wrong.
    """
    if len(data) > MAX_FILE_BYTES:
        raise UserError(field, f"{len(data)} bytes", f"at most {MAX_FILE_BYTES} are allowed")
    table = _npy_table(data, field) if data.startswith(_NPY_MAGIC) else _text_table(data, field)
    columns = dict(zip(_COLUMNS, np.ascontiguousarray(table.T), strict=False))
    if "dq" in columns:
        if dq_convention is None:
            raise UserError("dq_convention", "nothing", "the file has a fourth column; say sigma or fwhm")
        columns["dq"] = columns["dq"] * sigma_of(1.0, dq_convention)
    curve = Curve(**columns)
    curve.check(field)
    return curve


def _npy_table(data: bytes, field: str) -> np.ndarray:
    try:
        table: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError):
        raise UserError(
            field, "bytes numpy cannot read", "must be a .npy file without Python objects"
        ) from None
    if table.dtype.kind not in "fiu" or table.ndim != 2 or not 2 <= table.shape[1] <= 4:
        raise UserError(
            field, f"{table.dtype} {list(table.shape)}", "must be numbers of shape [points, 2 to 4]"
        )
    return table.astype(np.float64)


def _text_table(data: bytes, field: str) -> np.ndarray:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(field, "bytes that are not UTF-8", "must be a text file or .npy") from None
    rows: list[list[float]] = []
    named = False
    for number, line in enumerate(lines, start=1):
        words = [word for word in _SEPARATOR.split(line.partition("#")[0].strip()) if word]
        if not words:
            continue
        row = [_number(word) for word in words]
        if not rows and not named and all(value is None for value in row):
            named = True
            continue
        rows.append(_checked_row(row, words, rows, f"{field} line {number}"))
        if len(rows) > MAX_POINTS:
            raise UserError(field, f"more than {MAX_POINTS} points", f"at most {MAX_POINTS} are allowed")
    if not rows:
        raise UserError(field, "no numbers", "must hold 2 to 4 columns: q, R, dR, dq")
    return np.array(rows)


def _checked_row(
    row: list[float | None], words: list[str], rows: list[list[float]], place: str
) -> list[float]:
    values = [value for value in row if value is not None]
    if len(values) < len(row):
        word = words[row.index(None)]
        raise UserError(place, word, "must be a number")
    expected = len(rows[0]) if rows else None
    if expected is None and not 2 <= len(values) <= 4:
        raise UserError(place, f"{len(values)} columns", "2 to 4 are allowed: q, R, dR, dq")
    if expected is not None and len(values) != expected:
        raise UserError(place, f"{len(values)} columns", f"the lines before have {expected}")
    return values


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
