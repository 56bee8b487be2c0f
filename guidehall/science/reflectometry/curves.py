"""Measured curves: what they hold, and reading one from a file. Needs numpy and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.params import MAX_POINTS, BeamSide, ResolutionConvention

MAX_FILE_BYTES = 64 << 20
# Far beyond any measurement, and near enough that squares of residuals stay finite.
_LARGEST_R, _SMALLEST_DR = 1e3, 1e-15
_COLUMNS = ("q", "r", "dr", "dq")


@dataclass(frozen=True)
class Metadata:
    """What a file says of a curve; empty where it says nothing.

    Attributes:
        filename: of the file that was read.
        data_set: which one of several in the file.
        header: all that the file says, in its own words; of an ORSO file its whole header.
        notes: what a reader must know of how the file was understood.
    """

    filename: str = ""
    data_set: str = ""
    title: str = ""
    sample: str = ""
    instrument: str = ""
    facility: str = ""
    proposal: str = ""
    run: str = ""
    owner: str = ""
    start: str = ""
    radiation: str = ""
    polarization: str = ""
    header: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
        segment: integers [N], the run of ascending q in the file that each point is from, counted from 0: one
            per angle of the instrument. None when there was one run. Sorting by it, stably, gives the points
            as the file had them.
        metadata: what the file said.
    """

    q: np.ndarray
    r: np.ndarray
    dr: np.ndarray | None = None
    dq: np.ndarray | None = None
    relative_dq: float | None = None
    beam_side: BeamSide | None = None
    segment: np.ndarray | None = None
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def sigma(self) -> np.ndarray | None:
        """One standard deviation of each q, [N], in 1/angstrom; None when not known."""
        if self.dq is not None or self.relative_dq is None:
            return self.dq
        return self.relative_dq * self.q

    def check(self, field: str = "curve") -> None:
        """Refuses what cannot be a measurement; `field` goes in front of the name of what is wrong.

        Raises:
            UserError: names the array and the index.
        """
        self.check_values(field)
        descends = np.concatenate([[False], np.diff(self.q) < 0])
        _refuse_first(descends, self.q, f"{field}.q", "must not be smaller than the value before it")

    def check_values(self, field: str = "curve") -> None:
        """The same for points in any order.

        Raises:
            UserError: names the array and the index.
        """
        for name in _COLUMNS:
            column = getattr(self, name)
            if column is not None and not (isinstance(column, np.ndarray) and column.ndim == 1):
                raise UserError(f"{field}.{name}", type(column).__name__, "must be a numpy array of one axis")
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
    """The one curve of a file in any format that `formats.read_curves` knows.

    Args:
        data: the file.
        dq_convention: what a resolution means, where the file does not say it; the two differ by a factor of
            2.355.
        field: what to call the file in errors.

    Raises:
        UserError: names the line or the point that is wrong; or there are several curves.
    """
    # That package builds curves, so it imports this module.
    from guidehall.science.reflectometry.formats import read_curves

    curves = read_curves(data, dq=dq_convention, field=field)
    if len(curves) > 1:
        raise UserError(field, f"{len(curves)} curves", "must hold one")
    return curves[0]
