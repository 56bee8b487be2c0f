"""From the columns of a file to a curve: units, what dq means, and the order of the points."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve, Metadata
from guidehall.science.reflectometry.params import (
    FWHM_PER_SIGMA,
    MAX_SEGMENTS,
    ResolutionConvention,
    sigma_of,
)

QUnit = Literal["1/angstrom", "1/nm"]

_LENGTHS = {
    "angstrom": 1.0, "angstroms": 1.0, "ångstrom": 1.0, "angst": 1.0, "ang": 1.0,
    "aa": 1.0, "a": 1.0, "å": 1.0,
    "nm": 0.1, "nanometer": 0.1, "nanometre": 0.1, "nanometers": 0.1, "nanometres": 0.1,
    "m": 1e-10,
}  # fmt: skip
_LENGTH = "|".join(_LENGTHS)
_POWER = r"(?:10(?:(?:\^|\*\*)([-+]?\d{1,2})|(-\d{1,2}))[*·]?)?"
_INVERSE = re.compile(rf"{_POWER}(?:(?:(?:1|rad)?/|per|inv(?:erse)?)({_LENGTH})|({_LENGTH})(?:\*\*|\^)?-1)")
# What nothing depends on: blanks, brackets, and what LaTeX needs around an exponent.
_UNSAID = re.compile(r"[\s{}()$\\]")
# Hyphens, dashes and the minus sign.
_MINUS = re.compile("[\u2010-\u2013\u2212]")
# Reflectometers end far below this, so a larger q without a unit is rather one in 1/nm.
_LARGEST_USUAL_Q = 0.8
# From half a width at half maximum to one standard deviation.
_HALF_WIDTH = 2.0 / FWHM_PER_SIGMA


@dataclass(frozen=True)
class Given:
    """What the caller says of a file; of dq and q_unit it counts only where the file says nothing."""

    field: str
    filename: str
    dq: ResolutionConvention | None
    q_unit: QUnit | None


@dataclass(frozen=True)
class Columns:
    """One data set as a file has it: arrays [N] float64, in the file's own order.

    Attributes:
        q, r, dr, dq: in the file's units; dr is one standard deviation.
        q_unit, dq_unit: factors to 1/angstrom; None where the file says nothing, dq then like q.
        dq_sigma: factor from dq to one standard deviation; None where the file does not say it.
        dq_is_relative: dq is a part of q.
        dr_is_relative: dr is a part of R.
        percent: which of r, dr and dq are in percent. dr in percent is one of R, unless R is in percent
            itself; dq is always one of q.
        place: what to call the data set in errors.
    """

    q: np.ndarray
    r: np.ndarray
    dr: np.ndarray | None
    dq: np.ndarray | None
    place: str
    q_unit: float | None = None
    dq_unit: float | None = None
    dq_sigma: float | None = None
    dq_is_relative: bool = False
    dr_is_relative: bool = False
    percent: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=Metadata)


def per_angstrom(unit: str) -> float | None:
    """The factor from an inverse length to 1/angstrom; None if it is none.

    Such as "nm^-1", "1/Å", "A-1", "$nm^{-1}$" and "10^10 m^-1".
    """
    # Of compatible signs one: a raised 1 is a 1, the sign of the angstrom an A with a ring.
    plain = unicodedata.normalize("NFKC", unit).lower().replace("ö", "o")
    found = _INVERSE.fullmatch(_MINUS.sub("-", _UNSAID.sub("", plain)))
    if found is None:
        return None
    return _LENGTHS[found[3] or found[4]] * 10.0 ** int(found[1] or found[2] or 0)


def assemble(columns: Columns, given: Given) -> Curve:
    """Brings a data set to our units and to the order of q, and checks it.

    Raises:
        UserError: it cannot be a measurement, or nobody says what dq is.
    """
    notes = list(columns.metadata.notes)
    q_unit = columns.q_unit
    if q_unit is None:
        q_unit = 0.1 if given.q_unit == "1/nm" else 1.0
        if given.q_unit is None and len(columns.q) and columns.q.max() > _LARGEST_USUAL_Q:
            notes.append(
                f"q reaches {columns.q.max():g} and the file has no unit: 1/angstrom was taken; if it is"
                " 1/nm, say so (q_unit, --q-unit 1/nm) or name the column Q (1/nm)"
            )
    q = columns.q * q_unit
    r, dr = _fractions(columns, notes)
    dq = _said(columns.dq)
    if dq is not None:
        own_unit = columns.dq_unit if columns.dq_unit is not None else q_unit
        in_percent = "dq" in columns.percent
        if in_percent:
            notes.append("dq is in percent of q; it was converted")
            dq = dq / 100.0
        dq = dq * (q if columns.dq_is_relative or in_percent else own_unit) * _sigma(columns, given, notes)
    # Before the points are moved, so that what is wrong is found where the file has it.
    Curve(q, r, dr, dq).check_values(columns.place)
    order, segment = _in_order(q, notes)

    def ordered(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[order], dtype=np.float64)

    return Curve(
        q=ordered(q),
        r=ordered(r),
        dr=None if dr is None else ordered(dr),
        dq=None if dq is None else ordered(dq),
        segment=segment,
        metadata=replace(columns.metadata, filename=given.filename, notes=tuple(notes)),
    )


def _fractions(columns: Columns, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """R and one standard deviation of it, both with 1 for total reflection."""
    r, dr = columns.r, _said(columns.dr)
    in_percent = "r" in columns.percent
    if in_percent:
        notes.append("R is in percent; it was converted")
        r = r / 100.0
    if dr is None:
        return r, None
    relative = columns.dr_is_relative or ("dr" in columns.percent and not in_percent)
    if relative:
        notes.append(f"dR is {'in percent' if 'dr' in columns.percent else 'a part'} of R; it was converted")
        dr = dr * np.abs(r)
    elif in_percent:
        notes.append("dR was taken in percent like R")
    return r, dr / 100.0 if "dr" in columns.percent or (in_percent and not relative) else dr


def is_percent(unit: str) -> bool:
    """Whether a unit is the percent."""
    return unit.strip().lower() in ("%", "percent", "per cent", "pct")


def to_sigma(kind: str) -> float | None:
    """The factor to one standard deviation from the width of this name; None for no such name."""
    return {"sigma": 1.0, "fwhm": 1.0 / FWHM_PER_SIGMA, "hwhm": _HALF_WIDTH}.get(kind.strip().lower())


def _said(column: np.ndarray | None) -> np.ndarray | None:
    """The column, or None when it is NaN throughout: that is how some files leave one out."""
    return None if column is None or bool(np.isnan(column).all()) else column


def _sigma(columns: Columns, given: Given, notes: list[str]) -> float:
    """From the file's dq to one standard deviation."""
    if columns.dq_sigma is not None:
        if given.dq is not None and not np.isclose(columns.dq_sigma, sigma_of(1.0, given.dq)):
            notes.append(f"the file itself says what its dq is, and not {given.dq}; the file counted")
        return columns.dq_sigma
    if given.dq is None:
        allowed = f"{columns.place} has a resolution and does not say what it is; say sigma or fwhm"
        raise UserError("dq_convention", "nothing", allowed)
    return sigma_of(1.0, given.dq)


def _in_order(q: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices that sort q, equal ones as they were, and which run of the file each sorted point is from."""
    points = np.arange(len(q))
    steps = np.diff(q)
    falling = int((steps < 0).sum())
    if not falling:
        return points, None
    if falling > int((steps > 0).sum()):
        # Written from high q to low: each run is turned, and stays the run that it was.
        points = points[::-1]
    run = np.concatenate([[0], np.cumsum(np.diff(q[points]) < 0)])
    if points[0]:
        run = run[-1] - run
    order = np.argsort(q[points], kind="stable")
    # No instrument measures at more angles; a file that jumps more often has its points in no order.
    if run.max() >= MAX_SEGMENTS:
        notes.append("the points of the file come in no order of q; they were sorted")
        return points[order], None
    return points[order], run[order] if run.max() > 0 else None
