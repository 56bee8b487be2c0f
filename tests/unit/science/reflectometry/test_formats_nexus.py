"""Reduced curves in HDF5, made here by h5py and orsopy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import orsopy
import pytest
from orsopy.fileio import load_orso, save_nexus

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.formats import nexus, read_curves

FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
Q = np.array([0.01, 0.02, 0.03])
R = np.array([1.0, 0.0, -1e-7])
DR = np.array([0.1, 0.2, 3e-7])
DQ = 0.02 * Q


def hdf5(fill: Callable[[h5py.File], object], path: Path | None = None) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(path or buffer, "w") as file:
        fill(file)
    return path.read_bytes() if path else buffer.getvalue()


def one(data: bytes, **options: object) -> Curve:
    (curve,) = read_curves(data, **options)  # type: ignore[arg-type]
    return curve


def nxdata(file: h5py.File, units: str = "1/angstrom", scale: float = 1.0) -> h5py.Group:
    entry = file.create_group("entry")
    entry.attrs["NX_class"] = "NXentry"
    entry["title"] = "a film"
    entry["experiment_identifier"] = "P-17"
    entry["run_number"] = 4711
    entry["sample/name"] = "Ni"
    entry["instrument/name"] = "D17"
    entry["start_time"] = "2026-01-02T03:04:05"
    group = entry.create_group("data")
    group.attrs.update({"NX_class": "NXdata", "signal": "reflectivity", "axes": ["Qz"]})
    group["Qz"], group["reflectivity"] = Q * scale, R
    group["Qz"].attrs["units"] = units
    group["reflectivity_errors"], group["Qz_errors"] = DR, DQ * scale
    group["Qz_errors"].attrs["units"] = units
    return group


def check(curve: Curve, dq: np.ndarray | None = DQ) -> None:
    np.testing.assert_allclose(curve.q, Q)
    np.testing.assert_allclose(curve.r, R)
    np.testing.assert_allclose(curve.dr, DR)
    if dq is None:
        assert curve.dq is None
    else:
        np.testing.assert_allclose(curve.dq, dq)


@pytest.mark.parametrize(
    ("units", "scale"), [("1/angstrom", 1.0), ("1/nm", 10.0), (np.bytes_("nm^-1"), 10.0)]
)
def test_reads_an_nxdata_group(units: str, scale: float) -> None:
    """`_errors` of NXdata are standard deviations by definition."""
    curve = one(hdf5(lambda file: nxdata(file, units, scale)))
    check(curve)
    facts = curve.metadata
    assert (facts.title, facts.sample, facts.instrument) == ("a film", "Ni", "D17")
    assert (facts.proposal, facts.run, facts.start) == ("P-17", "4711", "2026-01-02T03:04:05")
    assert facts.data_set == "/entry/data"
    assert facts.notes == ()


def test_reads_a_cansas_group() -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("sasentry01/sasdata01")
        group.attrs.update({"canSAS_class": "SASdata", "signal": "I", "I_axes": "Q"})
        group["Q"], group["I"], group["Idev"], group["dQw"] = 10 * Q, R, DR, 10 * DQ
        group["Q"].attrs.update({"units": "1/nm", "resolutions": "dQw"})
        group["I"].attrs["uncertainties"] = "Idev"

    with pytest.raises(UserError, match="dq_convention"):
        one(hdf5(fill))
    check(one(hdf5(fill), dq="fwhm"), DQ / FWHM)


@pytest.mark.parametrize(
    ("attributes", "factor"),
    [({"value_is": "FWHM"}, 1 / FWHM), ({"long_name": "resolution (sigma)"}, 1.0), ({}, None)],
)
def test_reads_arrays_with_usual_names(attributes: dict[str, str], factor: float | None) -> None:
    def fill(file: h5py.File) -> None:
        file["Q"], file["R"], file["dR"], file["dQ"] = Q, R.astype(np.float32), DR, DQ
        file["dQ"].attrs.update(attributes)

    data = hdf5(fill)
    if factor is None:
        with pytest.raises(UserError, match="dq_convention"):
            one(data)
        factor = 1.0
    curve = one(data, dq="sigma")
    check(curve, DQ * factor)
    assert curve.metadata.notes[0] == "/Q has no units; 1/angstrom was taken"
    np.testing.assert_allclose(one(data, dq="sigma", q_unit="1/nm").q, 0.1 * Q)


def test_converts_percent_and_half_widths() -> None:
    def fill(file: h5py.File) -> None:
        file["Q"], file["R"], file["dR"] = Q, 100 * R, 100 * DR
        file["dQ"] = np.full(3, 1.0)
        file["dQ"].attrs.update({"units": "%", "value_is": "HWHM"})
        file["R"].attrs["units"] = "percent"

    curve = one(hdf5(fill))
    check(curve, 0.01 * Q * 2 / FWHM)
    assert "R is in percent; it was converted" in curve.metadata.notes
    assert "dq is in percent of q; it was converted" in curve.metadata.notes


def test_reads_each_group_and_each_curve_once() -> None:
    def fill(file: h5py.File) -> None:
        group = nxdata(file)
        other = file.create_group("entry/other")
        for name in ("Qz", "reflectivity"):
            other[name] = group[name]
        file["entry/second/q"], file["entry/second/r"] = Q, R
        file["loop"] = file["/"]
        file["soft"] = h5py.SoftLink("/entry/data")

    curves = read_curves(hdf5(fill))
    assert [curve.metadata.data_set for curve in curves] == ["/entry/data", "/entry/second"]
    assert curves[0].dr is not None
    assert curves[1].dr is None


@pytest.mark.parametrize("value_is", [None, "FWHM"])
def test_reads_what_orsopy_writes(value_is: str | None) -> None:
    sets = load_orso(str(Path(orsopy.__file__).parent / "fileio/tests/test_example2.ort"))
    for item in sets:
        item.info.columns[3].value_is = value_is
    buffer = io.BytesIO()
    save_nexus(sets, buffer)
    curves = read_curves(buffer.getvalue())
    by_name = {curve.metadata.data_set.split("/")[1]: curve for curve in curves}
    assert set(by_name) == {"spin_up", "spin_down"}
    for item in sets:
        curve, order = by_name[item.info.data_set], np.argsort(item.data[:, 0], kind="stable")
        np.testing.assert_array_equal(curve.r, item.data[order, 1])
        np.testing.assert_array_equal(curve.dr, item.data[order, 2])
        np.testing.assert_allclose(curve.dq, item.data[order, 3] / (FWHM if value_is else 1.0))
        assert (curve.metadata.sample, curve.metadata.instrument) == ("Ni1000", "Amor")
    assert by_name["spin_down"].metadata.polarization == "mo"


def test_says_which_groups_there_are() -> None:
    def fill(file: h5py.File) -> None:
        file["entry/detector/counts"] = np.zeros((4, 4))
        file["entry/data/Q"] = Q

    found = (
        r"the groups / \(entry\); /entry \(data, detector\); /entry/data \(Q\); /entry/detector \(counts\)"
    )
    with pytest.raises(UserError, match=found):
        read_curves(hdf5(fill))


def test_opens_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    hdf5(nxdata, secret)
    raw = tmp_path / "secret.raw"
    raw.write_bytes(Q.tobytes())

    def linked(file: h5py.File) -> None:
        file["entry"] = h5py.ExternalLink(str(secret), "/entry")
        file["Q"] = h5py.ExternalLink(str(secret), "/entry/data/Qz")
        file["R"] = R
        file["soft"] = h5py.SoftLink("/entry/data")

    with pytest.raises(UserError, match="must have a group with q and R"):
        read_curves(hdf5(linked))

    def outside(file: h5py.File) -> None:
        file.create_dataset("Q", (3,), "f8", external=[(str(raw), 0, 24)])
        file["R"] = R

    with pytest.raises(UserError, match="/Q: got numbers that lie in another file"):
        read_curves(hdf5(outside, tmp_path / "outside.h5"))

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "/entry/data/Qz", (3,))
        file.create_virtual_dataset("Q", layout)
        file["R"] = R

    with pytest.raises(UserError, match="/Q: got numbers that lie in another file"):
        read_curves(hdf5(virtual, tmp_path / "virtual.h5"))


# One chunk of it is unpacked whole.
PACKED = {"shape": (3,), "dtype": "f8", "chunks": (10**8,), "maxshape": (None,), "compression": "gzip"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (10**12,), "dtype": "f8", "chunks": (1000,)}, "must be 2 to 20000 numbers"),
        (PACKED, "chunks"),
        ({"shape": (3, 3), "dtype": "f8"}, r"float64 \[3, 3\]"),
        ({"shape": (), "dtype": "f8"}, r"float64 \[\]"),
        ({"shape": (3,), "dtype": h5py.string_dtype()}, "must be 2 to 20000 numbers"),
        ({"shape": (3,), "dtype": "c16"}, "complex128"),
        ({"dtype": h5py.Empty("f8").dtype, "data": h5py.Empty("f8")}, "must be 2 to 20000"),
    ],
)
def test_refuses_arrays_by_what_they_claim(options: dict[str, object], message: str) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("Q", **options)  # type: ignore[arg-type]
        file["R"] = R

    with pytest.raises(UserError, match=message):
        read_curves(hdf5(fill))


def test_refuses_broken_files() -> None:
    data = hdf5(nxdata)
    with pytest.raises(UserError, match="an HDF5 file that cannot be read"):
        read_curves(data[: len(data) // 2])
    with pytest.raises(UserError, match="an HDF5 file that cannot be read"):
        read_curves(data[:8] + bytes(64))
    with pytest.raises(UserError, match=r"/entry/data/Qz: got units deg; must be 1/angstrom or 1/nm"):
        read_curves(hdf5(lambda file: nxdata(file, "deg")))


def test_refuses_too_many_groups() -> None:
    def deep(file: h5py.File) -> None:
        group: h5py.Group = file
        for _ in range(40):
            group = group.create_group("a")

    with pytest.raises(UserError, match="a file of many groups"):
        read_curves(hdf5(deep))


def test_arrays_that_many_groups_share_count_as_often_as_they_stand() -> None:
    """Not a million numbers in the file, which are 12 million in its curves."""
    points = 20_000

    def fill(file: h5py.File) -> None:
        q = np.linspace(0.01, 0.3, points)
        for index in range(8):
            file.create_dataset(f"Q{index}", data=q, compression="gzip", shuffle=True)
        shared = [file.create_dataset(f"R{index}", data=q, compression="gzip") for index in range(40)]
        for index in range(300):
            group = file.create_group(f"g{index}")
            group["q"], group["r"] = file[f"Q{index % 8}"], shared[index // 8]

    with pytest.raises(UserError, match="file: got more than 8388608 numbers in 300 curves; at most 8388608"):
        read_curves(hdf5(fill))


def test_reading_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some damage holds the library for ever, and no exception comes out of it."""
    monkeypatch.setattr(nexus, "_MAX_SECONDS", 0.01)
    with pytest.raises(UserError, match="could not read it in the time"):
        read_curves(hdf5(nxdata))


def test_the_folder_that_it_runs_in_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("json", "numpy", "h5py"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)\n")
    check(one(hdf5(nxdata)))


def test_damage_is_refused_or_read() -> None:
    data, rng = hdf5(nxdata), np.random.default_rng(2)
    for _ in range(6):
        damaged = bytearray(data)
        for place in rng.integers(8, len(data), size=20):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(UserError):
            read_curves(bytes(damaged))[0].check()
