"""Curves of the wire: checked as they came, then brought to the units and conventions of the science."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from guidehall.contracts.reflectometry.v1 import curve_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.params import BeamSide, ResolutionConvention, sigma_of
from services.inference.tensors import Array

_PER_ANGSTROM = {
    curve_pb2.Q_UNIT_UNSPECIFIED: 1.0,
    curve_pb2.Q_UNIT_INVERSE_ANGSTROM: 1.0,
    curve_pb2.Q_UNIT_INVERSE_NANOMETRE: 0.1,
}
_CONVENTIONS: dict[int, ResolutionConvention] = {
    curve_pb2.RESOLUTION_CONVENTION_SIGMA: "sigma",
    curve_pb2.RESOLUTION_CONVENTION_FWHM: "fwhm",
}
_SIDES: dict[int, BeamSide | None] = {
    curve_pb2.BEAM_SIDE_UNSPECIFIED: None,
    curve_pb2.BEAM_SIDE_FRONTING: "fronting",
    curve_pb2.BEAM_SIDE_BACKING: "backing",
}
_COLUMNS = ("r", "dr", "dq", "mask")


@dataclass(frozen=True)
class MeasuredMedium:
    """What is known of a medium beside the film; 1e-6 per square angstrom."""

    sld: float
    isld: float


@dataclass(frozen=True)
class Measurement:
    """A curve as the science takes it, and what is needed to answer in the caller's terms.

    Attributes:
        curve: the points that are not masked.
        points: their indices in the request.
        q_scale: from the caller's unit of q to 1/angstrom.
        media: "fronting" and "backing", where the caller said what they are.
    """

    curve: Curve
    points: Array
    q_unit: curve_pb2.QUnit.ValueType
    q_scale: float
    media: dict[str, MeasuredMedium]


def decode_curve(message: curve_pb2.Curve, max_points: int, field: str = "curve") -> Measurement:
    """Reads a curve.

    Raises:
        InvalidArgument: names the array and the index, as they came.
        UserError: the same, from the science's own check.
    """
    _check_lengths(message, max_points, field)
    _check_enums(message, field)
    width = _sigma_factor(message, field)
    q, r = _column(message.q), _column(message.r)
    curve = Curve(
        q=q,
        r=r,
        dr=_column(message.dr) if message.dr else None,
        dq=_widths(message, q, width, field),
        relative_dq=message.relative_dq * width if message.HasField("relative_dq") else None,
        beam_side=_SIDES[message.beam_side],
    )
    kept = ~np.array(message.mask, dtype=np.bool_) if message.mask else np.ones(len(q), dtype=np.bool_)
    if kept.sum() < 2:
        raise InvalidArgument.field(f"{field}.mask", f"{int(kept.sum())} points left", "at least 2")
    # Checked whole, so that errors name the caller's own indices; what is masked cannot be wrong.
    _take(curve, _nearest_kept(kept)).check(field)
    scale = _PER_ANGSTROM[message.q_unit]
    points = np.flatnonzero(kept)
    used = _take(curve, points)
    used = replace(used, q=used.q * scale, dq=None if used.dq is None else used.dq * scale)
    unit = message.q_unit or curve_pb2.Q_UNIT_INVERSE_ANGSTROM
    return Measurement(used, points, unit, scale, _media(message))


def _check_lengths(message: curve_pb2.Curve, max_points: int, field: str) -> None:
    points = len(message.q)
    if not 2 <= points <= max_points:
        raise InvalidArgument.field(f"{field}.q", f"{points} points", f"2 to {max_points}")
    for name in _COLUMNS:
        length = len(getattr(message, name))
        if length != points and (length or name == "r"):
            raise InvalidArgument.field(f"{field}.{name}", f"{length} points", f"{points}, as many as q has")
    if len(message.segments) > points:
        allowed = f"at most {points}, as many as q has points"
        raise InvalidArgument.field(f"{field}.segments", f"{len(message.segments)} segments", allowed)


def _check_enums(message: curve_pb2.Curve, field: str) -> None:
    for name, known in (("q_unit", _PER_ANGSTROM), ("beam_side", _SIDES)):
        if getattr(message, name) not in known:
            allowed = f"one of {', '.join(str(value) for value in known)}"
            raise InvalidArgument.field(f"{field}.{name}", getattr(message, name), allowed)


def _sigma_factor(message: curve_pb2.Curve, field: str) -> float:
    """From the caller's resolution to one standard deviation; 1 when there is none to convert."""
    given = bool(message.dq) or message.HasField("relative_dq")
    if not given and not any(segment.HasField("relative_dq") for segment in message.segments):
        return 1.0
    convention = _CONVENTIONS.get(message.dq_convention)
    if convention is None:
        allowed = "sigma or FWHM: they differ by a factor of 2.355 and are never guessed"
        raise InvalidArgument.field(f"{field}.dq_convention", "unspecified", allowed)
    return sigma_of(1.0, convention)


def _widths(message: curve_pb2.Curve, q: Array, width: float, field: str) -> Array | None:
    """One standard deviation of each q in the caller's unit; None when only the whole curve's is known."""
    for index, segment in enumerate(message.segments):
        _check_segment(segment, len(q), f"{field}.segments[{index}]")
    if message.dq:
        return _column(message.dq) * width
    sections = [segment for segment in message.segments if segment.HasField("relative_dq")]
    if not sections:
        return None
    relative = np.full(len(q), message.relative_dq if message.HasField("relative_dq") else np.nan)
    for segment in sections:
        relative[segment.first_point : segment.end_point] = segment.relative_dq
    if bool(np.isnan(relative).any()):
        allowed = "relative_dq of the curve, for points in no segment that has one"
        raise InvalidArgument.field(f"{field}.relative_dq", "nothing", allowed)
    return relative * width * q


def _check_segment(segment: curve_pb2.AngleSegment, points: int, field: str) -> None:
    if not 0 <= segment.first_point < segment.end_point <= points:
        got = f"{segment.first_point} to {segment.end_point}"
        raise InvalidArgument.field(field, got, f"first_point below end_point, within 0 to {points}")
    for name in ("scale", "background"):
        if segment.HasField(name):
            allowed = "not set: correct the points of the segment for it before sending them"
            raise InvalidArgument.field(f"{field}.{name}", getattr(segment, name), allowed)
    if segment.HasField("relative_dq") and not 0 <= segment.relative_dq <= 1:
        raise InvalidArgument.field(f"{field}.relative_dq", segment.relative_dq, "0 to 1")


# Of these 0 is meant.
_WITHOUT_SLD = ("", "air", "vacuum")


def _media(message: curve_pb2.Curve) -> dict[str, MeasuredMedium]:
    """Media with numbers: most materials whose SLD was left at 0 say nothing that could be compared."""
    media = {}
    for name in ("fronting", "backing"):
        medium: curve_pb2.Medium = getattr(message, name)
        if message.HasField(name) and (medium.sld != 0 or medium.material.casefold() in _WITHOUT_SLD):
            media[name] = MeasuredMedium(medium.sld, medium.isld)
    return media


def _column(values: Sequence[float]) -> Array:
    return np.fromiter(values, dtype=np.float64, count=len(values))


def _nearest_kept(kept: Array) -> Array:
    """For each point itself if it is kept, else the last kept one before it, or the first kept one of all."""
    indices = np.where(kept, np.arange(len(kept)), -1)
    return np.maximum(np.maximum.accumulate(indices), int(np.argmax(kept)))


def _take(curve: Curve, points: Array) -> Curve:
    return replace(
        curve,
        q=curve.q[points],
        r=curve.r[points],
        dr=None if curve.dr is None else curve.dr[points],
        dq=None if curve.dq is None else curve.dq[points],
    )
