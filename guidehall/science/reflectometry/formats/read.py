"""The entry to all formats of curves: looks at the first bytes and hands on."""

from __future__ import annotations

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import MAX_FILE_BYTES, Curve
from guidehall.science.reflectometry.formats import arrays, nexus, orso, text
from guidehall.science.reflectometry.formats.common import Given, QUnit, assemble
from guidehall.science.reflectometry.params import ResolutionConvention


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
