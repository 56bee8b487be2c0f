"""The file of `guidehall predict`: whatever the science reads where it is installed, else text and .npy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from guidehall.cli._extras import NEEDS_SCIENCE, reads_all_curves
from guidehall.cli._output import clean

if TYPE_CHECKING:
    from guidehall.client import Curve
    from guidehall.science.reflectometry import curves as science

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ORSO = b"ORSO reflectivity data file"
# Few reflectometers get so far, in 1/angstrom.
_LARGEST_USUAL_Q = 0.8
# So many of a file's curves are named in a refusal.
_NAMED = 8


@dataclass(frozen=True)
class Said:
    """What the caller says of a file.

    Attributes:
        dq: what a resolution is, where the file does not say it.
        resolution: dq/q of a file without one; what it is, is in `dq`.
        q_unit: unit of q, where the file does not say it.
        beam_side: the medium that the beam comes through; None takes the model's.
        data_set: name or place, from 1, of one of the file's curves; None where there is one.
    """

    dq: Literal["sigma", "fwhm"] | None = None
    resolution: float | None = None
    q_unit: Literal["1/angstrom", "1/nm"] | None = None
    beam_side: Literal["fronting", "backing"] | None = None
    data_set: str | None = None


def read(file: Path, said: Said) -> tuple[Curve, tuple[str, ...]]:
    """The curve, and what a reader must know of how the file was understood.

    Raises:
        InvalidArgument: names the place in the file, or the field of `said`.
        Unimplemented: the file needs the extra `science`.
    """
    if reads_all_curves():
        return _read_all(file, said)
    curve = _read_plain(file, said)
    if said.q_unit is None and curve.q[-1] > _LARGEST_USUAL_Q:
        return curve, (f"q reaches {curve.q[-1]:g}: 1/angstrom was taken; if it is 1/nm, say --q-unit 1/nm",)
    return curve, ()


def _read_all(file: Path, said: Said) -> tuple[Curve, tuple[str, ...]]:
    from guidehall.client import BeamSide, Curve, Resolution
    from guidehall.client._refusal import refusal
    from guidehall.science.reflectometry.curves import MAX_FILE_BYTES
    from guidehall.science.reflectometry.formats.read import read_curves

    # One more than is allowed, which is then refused.
    data = _beginning(file, MAX_FILE_BYTES + 1)
    with science_refusals():
        curves = read_curves(data, file.name, dq=said.dq, q_unit=said.q_unit, field=file.name)
    found = _chosen(curves, said.data_set, file.name)
    if found.dq is not None and said.resolution is not None:
        raise refusal("relative_dq", f"{file.name} has a resolution, which says it already")
    curve = Curve(
        q=found.q, r=found.r, beam_side=None if said.beam_side is None else BeamSide(said.beam_side)
    )
    if found.dr is not None:
        curve = replace(curve, dr=found.dr)
    if found.dq is not None:
        curve = replace(curve, dq=found.dq, dq_convention=Resolution.SIGMA)
    elif said.resolution is not None:
        curve = replace(curve, relative_dq=said.resolution, dq_convention=Resolution(said.dq))
    return curve, found.metadata.notes


def _chosen(curves: Sequence[science.Curve], wanted: str | None, filename: str) -> science.Curve:
    from guidehall.client._refusal import refusal

    if wanted is None and len(curves) == 1:
        return curves[0]
    for curve in curves:
        if wanted is not None and curve.metadata.data_set == wanted:
            return curve
    if wanted is not None and wanted.isdecimal() and 1 <= int(wanted) <= len(curves):
        return curves[int(wanted) - 1]
    names = [
        f"{place} {curve.metadata.data_set}".rstrip() for place, curve in enumerate(curves[:_NAMED], start=1)
    ]
    names += [f"… {len(curves)}"] if len(curves) > _NAMED else []
    which = "say which" if wanted is None else f"none is {clean(wanted)!r}"
    count = "1 curve" if len(curves) == 1 else f"{len(curves)} curves"
    raise refusal("data_set", f"{filename} holds {count} ({clean(', '.join(names))}): {which}")


def _read_plain(file: Path, said: Said) -> Curve:
    from guidehall.client import read_curve
    from guidehall.core.errors import InvalidArgument, Unimplemented

    beginning, needs = _beginning(file, 200), ""
    if beginning.startswith(_HDF5):
        needs = f"{file.name} is an HDF5 file"
    elif _ORSO in beginning.split(b"\n")[0]:
        needs = f"{file.name} is an ORSO file"
    elif said.data_set is not None:
        needs = "--data-set is for files of several curves"
    if needs:
        raise Unimplemented(f"{needs}: {NEEDS_SCIENCE}", reason="NOT_INSTALLED")
    try:
        return read_curve(file, said.dq, said.resolution, said.q_unit, said.beam_side)
    except InvalidArgument as error:
        if not any(item.field.startswith(file.name) for item in error.violations):
            raise
        # Columns with names, units and comments of other kinds are no fault of the file.
        message = f"{error.message}; for more kinds of text {NEEDS_SCIENCE}"
        raise InvalidArgument(message, reason=error.reason, violations=error.violations) from error


def _beginning(file: Path, size: int) -> bytes:
    from guidehall.core.errors import InvalidArgument

    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        allowed = f"a file that can be read ({error.strerror})"
        raise InvalidArgument.field("file", str(file), allowed) from error


@contextmanager
def science_refusals() -> Iterator[None]:
    """Refusals of the science as those of a service."""
    from guidehall.client._refusal import refusal
    from guidehall.core.errors import InvalidArgument
    from guidehall.science.pipeline import UserError

    try:
        yield
    except UserError as error:
        if error.field == "dq_convention":
            # Nothing was said: the reason is all there is to tell.
            raise refusal(error.field, error.allowed) from error
        raise InvalidArgument.field(error.field, error.value, error.allowed) from error
