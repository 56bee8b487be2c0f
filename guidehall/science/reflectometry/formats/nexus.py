"""Curves in reduced NeXus files and others in HDF5.

Read are groups that hold q and R as one-dimensional arrays: an NXdata group whose attributes name its signal
and its axis, a canSAS or ORSO group, or any group with arrays under the usual names. Raw files with detector
counts are not. Only what the file itself holds is read: links to other files, virtual arrays and arrays whose
numbers lie in other files are left alone.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import MAX_FILE_BYTES, Metadata
from guidehall.science.reflectometry.formats.common import Columns, Given, is_percent, per_angstrom, to_sigma
from guidehall.science.reflectometry.params import MAX_POINTS

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 16
_MAX_CURVES = 1000
# In all curves together: as many as a file can hold that is not packed and names no array twice.
_MAX_NUMBERS = MAX_FILE_BYTES // 8
# A chunk is unpacked whole, whatever is read of it.
_MAX_CHUNK_BYTES = 16 << 20
_MAX_TEXT = 1000
_MAX_SECONDS, _MAX_MEMORY = 20, 4 << 30
_ARRAYS = ("q", "r", "dr", "dq")

_Q = ("q", "qz", "q_z", "momentum_transfer")
_R = ("r", "rqz", "reflectivity", "refl", "i")
_DR = (
    "dr",
    "sr",
    "drqz",
    "r_errors",
    "r_error",
    "rdev",
    "reflectivity_errors",
    "di",
    "idev",
    "i_errors",
    "errors",
)
# Of these a standard deviation by definition: in NXdata, in canSAS.
_DQ_SIGMA = ("q_errors", "qz_errors", "qdev")
_DQ = (*_DQ_SIGMA, "dq", "dqz", "sq", "sqz", "dqw", "q_resolution", "resolution", "dql")


@dataclass(frozen=True)
class _Parts:
    """The arrays of one curve."""

    group: h5py.Group
    q: h5py.Dataset
    r: h5py.Dataset
    dr: h5py.Dataset | None
    dq: h5py.Dataset | None


def read(data: bytes, given: Given) -> list[Columns]:
    """The curves of an HDF5 file, read in a process of its own: a damaged file can hold or break the library.

    Raises:
        UserError: there are none, with the groups that were found; or names the array that is wrong; or
            reading took too long.
    """
    # It finds modules where this process does, and not in whatever folder it happens to be started in.
    start = f"import sys; sys.path[:] = sys.argv[3:]; from {__name__} import _child; _child()"
    command = [sys.executable, "-I", "-c", start, given.field, given.q_unit or "", *sys.path]
    broken = "must be a whole file; the library could not read it in the time and memory allowed"
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=_MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(given.field, "an HDF5 file that cannot be read", broken) from None
    if child.returncode != 0:
        raise UserError(given.field, "an HDF5 file that cannot be read", broken)
    head, _, numbers = child.stdout.partition(b"\n")
    answer = json.loads(head)
    if "refused" in answer:
        raise UserError(*answer["refused"])
    table = np.frombuffer(numbers, dtype=np.float64)
    return list(_unpacked(answer["sets"], table))


def _unpacked(sets: list[dict[str, Any]], numbers: np.ndarray) -> Iterator[Columns]:
    start = 0
    for item in sets:
        arrays: dict[str, Any] = dict.fromkeys(_ARRAYS)
        for name, length in item.pop("lengths").items():
            arrays[name] = numbers[start : start + length]
            start += length
        metadata = item.pop("metadata")
        metadata["notes"] = tuple(metadata["notes"])
        item["percent"] = tuple(item["percent"])
        yield Columns(**arrays, **item, metadata=Metadata(**metadata))


def _child() -> None:
    """Reads the file that comes in; answers with a line of JSON and the numbers of all arrays behind it."""
    if sys.platform != "win32":
        import resource

        for limit, value in ((resource.RLIMIT_CPU, _MAX_SECONDS), (resource.RLIMIT_AS, _MAX_MEMORY)):
            resource.setrlimit(limit, (value, value))
    field, q_unit = sys.argv[1:3]
    given = Given(field, "", None, "1/nm" if q_unit == "1/nm" else "1/angstrom" if q_unit else None)
    try:
        sets = _read(sys.stdin.buffer.read(), given)
    except UserError as error:
        print(json.dumps({"refused": [error.field, str(error.value), error.allowed]}))
        return
    described, numbers = [], []
    for columns in sets:
        item = asdict(columns)
        arrays = {name: item.pop(name) for name in _ARRAYS}
        known = {name: array for name, array in arrays.items() if array is not None}
        numbers += list(known.values())
        described.append(item | {"lengths": {name: len(array) for name, array in known.items()}})
    sys.stdout.buffer.write(json.dumps({"sets": described}).encode() + b"\n")
    for array in numbers:
        sys.stdout.buffer.write(array.tobytes())


def _read(data: bytes, given: Given) -> list[Columns]:
    # A compiled library, which only who reads such a file needs.
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            groups = list(_groups(file, given.field))
            curves = list(_curves(groups))
            if not curves:
                allowed = "must have a group with q and R, such as an NXdata"
                raise UserError(given.field, _inventory(groups), allowed)
            if len(curves) > _MAX_CURVES:
                raise UserError(given.field, f"{len(curves)} curves", f"at most {_MAX_CURVES} are allowed")
            return list(_bounded(curves, given))
    except UserError:
        raise
    except Exception as error:
        # Of a damaged file, h5py raises whatever the damage makes of a number or a name.
        reason = " ".join(str(error).split())[:200]
        raise UserError(given.field, "an HDF5 file that cannot be read", reason) from None


def _bounded(curves: list[_Parts], given: Given) -> Iterator[Columns]:
    """The columns of all curves, as long as they are not too many numbers."""
    numbers = 0
    for parts in curves:
        columns = _columns(parts, given, len(curves) == 1)
        numbers += sum(len(array) for name in _ARRAYS if (array := getattr(columns, name)) is not None)
        if numbers > _MAX_NUMBERS:
            got = f"more than {_MAX_NUMBERS} numbers in {len(curves)} curves"
            raise UserError(given.field, got, f"at most {_MAX_NUMBERS} are allowed in all together")
        yield columns


def _groups(file: h5py.File, field: str) -> Iterator[h5py.Group]:
    """Every group once, the file's own root first; nothing behind links to elsewhere."""
    import h5py

    seen: set[int] = set()
    waiting: list[tuple[h5py.Group, int]] = [(file["/"], 0)]
    objects = 0
    while waiting:
        group, depth = waiting.pop()
        yield group
        for name in sorted(group, reverse=True):
            objects += 1
            if objects > _MAX_OBJECTS or depth > _MAX_DEPTH:
                allowed = f"at most {_MAX_OBJECTS} objects, {_MAX_DEPTH} groups deep"
                raise UserError(field, "a file of many groups", allowed)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            if group.get(name, getclass=True) is not h5py.Group:
                continue
            child = group[name]
            address = h5py.h5o.get_info(child.id).addr
            if address not in seen:
                seen.add(address)
                waiting.append((child, depth + 1))


def _arrays(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The arrays that a group holds itself, by name. A soft link could lead over one to another file."""
    import h5py

    found: dict[str, h5py.Dataset] = {}
    for name in group:
        direct = isinstance(group.get(name, getlink=True), h5py.HardLink)
        if direct and group.get(name, getclass=True) is h5py.Dataset:
            found[name] = group[name]
    return found


def _curves(groups: list[h5py.Group]) -> Iterator[_Parts]:
    """The curves of all groups; arrays that stand in two places once."""
    import h5py

    seen: set[tuple[int, int]] = set()
    # What a group says of its arrays counts more than names.
    for parts in sorted(
        filter(None, map(_parts, groups)), key=lambda parts: "signal" not in parts.group.attrs
    ):
        key = (h5py.h5o.get_info(parts.q.id).addr, h5py.h5o.get_info(parts.r.id).addr)
        if key not in seen:
            seen.add(key)
            yield parts


def _parts(group: h5py.Group) -> _Parts | None:
    arrays = _arrays(group)
    by_name = {name.lower(): array for name, array in arrays.items()}

    def first(*names: str) -> h5py.Dataset | None:
        return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)

    signal, axis = (
        _text(group.attrs.get("signal")),
        _text(group.attrs.get("axes") or group.attrs.get("I_axes")),
    )
    if axis.lower() not in _Q:
        axis = ""
    q, r = first(axis, *_Q), first(signal, *_R)
    if q is None or r is None or q == r:
        return None
    dr = first(_text(r.attrs.get("uncertainties")), f"{_name(r)}_errors", *_DR)
    said = (_text(q.attrs.get(key)) for key in ("resolutions", "uncertainties"))
    dq = first(*said, f"{_name(q)}_errors", *_DQ)
    return _Parts(group, q, r, dr, dq)


def _columns(parts: _Parts, given: Given, single: bool) -> Columns:
    place = given.field if single else f"{given.field} {parts.group.name}"
    q_unit = _unit(parts.q, place)
    metadata = _metadata(parts.group)
    if q_unit is None and given.q_unit is None:
        metadata = replace(metadata, notes=(f"{parts.q.name} has no units; 1/angstrom was taken",))
    measured = {"r": parts.r, "dr": parts.dr, "dq": parts.dq}
    percent = tuple(
        kind for kind, array in measured.items() if array is not None and is_percent(_said_unit(array))
    )
    return Columns(
        q=_numbers(parts.q, place),
        r=_numbers(parts.r, place),
        dr=None if parts.dr is None else _numbers(parts.dr, place),
        dq=None if parts.dq is None else _numbers(parts.dq, place),
        place=place,
        q_unit=q_unit,
        dq_unit=None if parts.dq is None or "dq" in percent else _unit(parts.dq, place),
        dq_sigma=_meaning(parts),
        percent=percent,
        metadata=metadata,
    )


def _numbers(array: h5py.Dataset, place: str) -> np.ndarray:
    field = f"{place} {array.name}"
    if array.dtype.kind not in "fiu" or len(array.shape or ()) != 1 or not 2 <= array.shape[0] <= MAX_POINTS:
        got = f"{array.dtype} {list(array.shape or ())}"
        raise UserError(field, got, f"must be 2 to {MAX_POINTS} numbers in one dimension")
    if array.is_virtual or array.external:
        raise UserError(field, "numbers that lie in another file", "must be in the file itself")
    if array.chunks and int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise UserError(field, f"chunks of {array.chunks}", f"at most {_MAX_CHUNK_BYTES} bytes are allowed")
    return np.asarray(array[()], dtype=np.float64)


def _said_unit(array: h5py.Dataset) -> str:
    return _text(array.attrs.get("units")) or _text(array.attrs.get("unit"))


def _unit(array: h5py.Dataset, place: str) -> float | None:
    said = _said_unit(array)
    if not said:
        return None
    factor = per_angstrom(said)
    if factor is None:
        raise UserError(f"{place} {array.name}", f"units {said}", "must be 1/angstrom or 1/nm")
    return factor


def _meaning(parts: _Parts) -> float | None:
    """Factor from dq to one standard deviation, where the file says or defines it."""
    if parts.dq is None:
        return None
    keys = ("value_is", "long_name", "description", "type")
    said = " ".join(_text(parts.dq.attrs.get(key)) for key in keys).lower()
    orso = _orso_entry(parts.group)
    if orso is not None:
        # Of both its groups, that for plotting names its errors otherwise.
        said += (_scalar(orso, f"info/columns/s{_name(parts.q)}/value_is") or "sigma").lower()
    for kind in ("fwhm", "hwhm"):
        if kind in said:
            return to_sigma(kind)
    if "sigma" in said or "standard deviation" in said or _name(parts.dq).lower() in _DQ_SIGMA:
        return 1.0
    return None


def _name(array: h5py.Dataset) -> str:
    return str(array.name.rpartition("/")[2])


def _orso_entry(group: h5py.Group) -> h5py.Group | None:
    """The data set of an ORSO file in HDF5 that this group is a part of."""
    for ancestor in _upwards(group):
        if _text(ancestor.attrs.get("ORSO_class")) == "OrsoDataset":
            return ancestor
    return None


def _upwards(group: h5py.Group) -> Iterator[h5py.Group]:
    while group.name != "/":
        yield group
        group = group.parent
    yield group


def _metadata(group: h5py.Group) -> Metadata:
    entry = next(
        (item for item in _upwards(group) if _text(item.attrs.get("NX_class")) in ("NXentry", "NXsubentry")),
        group,
    )
    # Where NeXus has it, and where ORSO does.
    places = {
        "title": ("title", "info/data_source/experiment/title"),
        "sample": ("sample/name", "sample", "info/data_source/sample/name"),
        "instrument": ("instrument/name", "instrument", "info/data_source/experiment/instrument"),
        "facility": ("info/data_source/experiment/facility",),
        "proposal": ("experiment_identifier", "info/data_source/experiment/proposalID"),
        "run": ("run_number", "run", "entry_identifier"),
        "owner": ("user/name", "info/data_source/owner/name"),
        "start": ("start_time", "info/data_source/experiment/start_date"),
        "radiation": ("info/data_source/experiment/probe",),
        "polarization": ("info/data_source/measurement/instrument_settings/polarization",),
    }
    facts: dict[str, Any] = {
        key: next(filter(None, (_scalar(entry, path) for path in paths)), "") for key, paths in places.items()
    }
    return replace(Metadata(data_set=group.name), **facts)


def _scalar(group: h5py.Group, path: str) -> str:
    """The text or number at a path of groups that the file itself holds; nothing where there is none."""
    import h5py

    item: Any = group
    for step in path.split("/"):
        if not isinstance(item, h5py.Group) or not isinstance(item.get(step, getlink=True), h5py.HardLink):
            return ""
        item = item[step]
    if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.itemsize > _MAX_TEXT:
        return ""
    if item.is_virtual or item.external or item.chunks:
        return ""
    return _text(item[()])


def _text(value: Any) -> str:
    """A string, a number, or the first of several."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value)[:_MAX_TEXT] if isinstance(value, str | int | float | np.number) else ""


def _inventory(groups: list[h5py.Group]) -> str:
    names = [f"{group.name} ({', '.join(sorted(group)[:6])})" for group in groups[:8]]
    return "the groups " + "; ".join(names) + (" …" if len(groups) > len(names) else "")
