"""Curves in ORSO text files (`.ort`), read with the package orsopy."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Metadata
from guidehall.science.reflectometry.formats import safe_yaml
from guidehall.science.reflectometry.formats.common import Columns, Given, is_percent, per_angstrom, to_sigma
from guidehall.science.reflectometry.params import MAX_POINTS

_SIGN = b"ORSO reflectivity data file"
# Each data set repeats the header of the first, so both together decide how large it all becomes.
_MAX_DATA_SETS = 256
_MAX_HEADER_COPIES = 32 << 20
_MAX_COLUMNS = 64
_MAX_LINES, _MAX_LINE_LENGTH = 1_000_000, 10_000


def is_orso(data: bytes) -> bool:
    """Whether the first line is that of an ORSO file."""
    return _SIGN in data[:200].partition(b"\n")[0]


def read(data: bytes, given: Given) -> list[Columns]:
    """The data sets of an ORSO file.

    Raises:
        UserError: names the line or the data set.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(given.field, "bytes that are not UTF-8", "an ORSO file must be text") from None
    _look_through(text, given.field)
    # orsopy changes how PyYAML reads dates and writes tags in this process: only who reads such a file pays.
    from orsopy.fileio import Orso, load_orso

    try:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            sets = load_orso(io.StringIO(text))
            for item in sets:
                # What it cannot write again must not be carried along.
                Orso.from_dict(item.info.to_dict()).to_yaml()
    except Exception as error:
        # Whatever a header may do to it: orsopy calls what it finds there.
        reason = " ".join(str(error).split())[:200]
        raise UserError(given.field, "an ORSO file that orsopy cannot read", reason) from None
    notes = tuple(dict.fromkeys(" ".join(str(doubt.message).split())[:200] for doubt in doubts))
    return [
        _columns(item.info, np.asarray(item.data, dtype=np.float64), given, notes, len(sets) == 1)
        for item in sets
    ]


def _look_through(text: str, field: str) -> None:
    """Refuses, before orsopy sees it, what would take long, need much memory or lose numbers silently."""
    header: list[str] = []
    sets = 0
    points, width = 0, 0
    empty = False
    for number, line in enumerate(io.StringIO(text), start=1):
        if number > _MAX_LINES or len(line) > _MAX_LINE_LENGTH:
            allowed = f"at most {_MAX_LINES} lines of {_MAX_LINE_LENGTH} characters"
            raise UserError(f"{field} line {number}", f"{len(line)} characters", allowed)
        if line.startswith("#"):
            if line.startswith("# data_set"):
                sets += 1
                empty = empty or (sets > 1 and not points)
                points, width = (points, width) if sets == 1 else (0, 0)
                header += ["---\n"] if sets > 1 else []
            header.append(line[1:])
        elif line.strip():
            width = _check_row(line.split(), width, f"{field} line {number}")
            points += 1
            if points > MAX_POINTS:
                raise UserError(field, f"more than {MAX_POINTS} points", f"at most {MAX_POINTS} are allowed")
    if sets > _MAX_DATA_SETS or sum(map(len, header)) * max(sets, 1) > _MAX_HEADER_COPIES:
        allowed = f"at most {_MAX_DATA_SETS}, and fewer under a long header"
        raise UserError(field, f"{sets} data sets", allowed)
    if empty or not points:
        got = "a data set without points" if sets > 1 else "no points"
        raise UserError(field, got, f"2 to {MAX_POINTS} lines of numbers must follow each header")
    for document in safe_yaml.load_all("".join(header), f"{field} header"):
        if not isinstance(document, dict):
            raise UserError(f"{field} header", type(document).__name__, "must be a YAML mapping")


def _check_row(words: list[str], width: int, place: str) -> int:
    for word in words:
        try:
            # Python would also read 1_0 and the digits of other scripts.
            float(word if word.isascii() and "_" not in word else "")
        except ValueError:
            raise UserError(place, word, "must be a number") from None
    if len(words) > _MAX_COLUMNS or (width and len(words) != width):
        allowed = f"the lines before have {width}" if width else f"at most {_MAX_COLUMNS}"
        raise UserError(place, f"{len(words)} columns", allowed)
    return len(words)


def _columns(info: Any, table: np.ndarray, given: Given, notes: tuple[str, ...], single: bool) -> Columns:
    name = "" if info.data_set is None else str(info.data_set)
    place = given.field if single else f"{given.field} data set {name[:40]}"
    found = list(info.columns)
    names = [getattr(column, "name", None) for column in found]
    q, r = _index(names, ("Qz", "Q", "q", "qz")), _index(names, ("R", "Rqz", "RQz", "r"))
    if q is None or r is None:
        said = ", ".join(map(str, names))[:100]
        raise UserError(f"{place} columns", said, "must have Qz and R")
    errors = {column.error_of: index for index, column in enumerate(found) if hasattr(column, "error_of")}
    dr, dq = errors.get(names[r]), errors.get(names[q])
    measured = {"r": r, "dr": dr, "dq": dq}
    percent = tuple(
        kind
        for kind, index in measured.items()
        if index is not None and is_percent(str(getattr(found[index], "unit", None)))
    )
    return Columns(
        q=table[:, q],
        r=table[:, r],
        dr=None if dr is None else table[:, dr] * _to_sigma(found[dr], place),
        dq=None if dq is None else table[:, dq],
        place=place,
        q_unit=_unit(found[q], place),
        dq_unit=None if dq is None or "dq" in percent else _unit(found[dq], place),
        dq_sigma=None if dq is None else _to_sigma(found[dq], place),
        percent=percent,
        metadata=_metadata(info, name, notes),
    )


def _index(names: list[Any], wanted: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _unit(column: Any, place: str) -> float | None:
    unit = getattr(column, "unit", None)
    if unit is None:
        return None
    factor = per_angstrom(str(unit))
    if factor is None:
        raise UserError(f"{place} columns", f"{column.name} in {unit}", "q must be in 1/angstrom or 1/nm")
    return factor


def _to_sigma(column: Any, place: str) -> float:
    """From an error column to one standard deviation, which it is unless the header says otherwise."""
    value_is = "sigma" if column.value_is is None else str(column.value_is)
    if to_sigma(value_is) is None:
        raise UserError(f"{place} columns", f"{column.name}: {value_is}", "must be sigma, FWHM or HWHM")
    if value_is.strip().lower() == "sigma":
        return 1.0
    try:
        # Of a distribution too, which orsopy knows for FWHM alone.
        full = float(replace(column, value_is="FWHM").to_sigma)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{place} columns", column.name, str(error)) from None
    return 2.0 * full if value_is.strip().lower() == "hwhm" else full


def _metadata(info: Any, data_set: str, notes: tuple[str, ...]) -> Metadata:
    def text(*path: str) -> str:
        value: Any = info.data_source
        for step in path:
            value = value.get(step) if isinstance(value, dict) else getattr(value, step, None)
        value = getattr(value, "value", value)
        return "" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)

    files = getattr(getattr(info.data_source, "measurement", None), "data_files", None) or []
    runs = [str(getattr(item, "file", item)) for item in files] if isinstance(files, list) else []
    return Metadata(
        data_set=data_set,
        title=text("experiment", "title"),
        sample=text("sample", "name"),
        instrument=text("experiment", "instrument"),
        facility=text("experiment", "facility"),
        proposal=text("experiment", "proposalID") or text("experiment", "ID"),
        run=", ".join(runs),
        owner=text("owner", "name"),
        start=text("experiment", "start_date"),
        radiation=text("experiment", "probe"),
        polarization=text("measurement", "instrument_settings", "polarization"),
        header=info.to_dict(),
        notes=notes,
    )
