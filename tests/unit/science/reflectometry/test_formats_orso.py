"""ORSO text files, made by orsopy or shipped with it and with refnx."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orsopy
import pytest
import refnx
from orsopy.fileio import Column, ErrorColumn, Orso, OrsoDataset, load_orso, save_orso

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.formats import read_curves

SHIPPED = [
    Path(orsopy.__file__).parent / "fileio/tests/test_example.ort",
    Path(orsopy.__file__).parent / "fileio/tests/test_example2.ort",
    Path(refnx.__file__).parent / "dataset/tests/ORSO_data.ort",
]
FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
Q = np.array([0.01, 0.02, 0.03])
R = np.array([1.0, 0.0, -1e-7])
DR = np.array([0.1, 0.2, 3e-7])
DQ = 0.02 * Q
R_COLUMN, DR_COLUMN = Column("R"), ErrorColumn("R", "uncertainty", "sigma")
SIGN = "# # ORSO reflectivity data file | 1.1 standard | YAML encoding | https://www.reflectometry.org/\n"


def ort(columns: Sequence[object], *arrays: np.ndarray, sets: int = 1) -> bytes:
    datasets = []
    for index in range(sets):
        info = Orso.empty()
        info.columns = list(columns)
        info.data_source.sample.name = f"film {index}"
        info.data_source.experiment.instrument = "Amor"
        info.data_set = f"spin {index}"
        datasets.append(OrsoDataset(info, np.stack(arrays, axis=1)))
    buffer = io.StringIO()
    save_orso(datasets, buffer)
    return buffer.getvalue().encode()


def one(data: bytes, **options: object) -> Curve:
    (curve,) = read_curves(data, **options)  # type: ignore[arg-type]
    return curve


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_reads_what_others_ship(path: Path) -> None:
    curves = read_curves(path.read_bytes(), path.name)
    theirs = load_orso(str(path))
    assert [curve.metadata.data_set for curve in curves] == [str(item.info.data_set) for item in theirs]
    for curve, item in zip(curves, theirs, strict=True):
        order = np.argsort(item.data[:, 0], kind="stable")
        for index, column in enumerate((curve.q, curve.r, curve.dr, curve.dq)):
            np.testing.assert_array_equal(column, item.data[order, index])
        curve.check()
    facts = curves[0].metadata
    assert (facts.sample, facts.instrument, facts.proposal) == ("Ni1000", "Amor", "2020 0304")
    assert (facts.owner, facts.radiation, facts.polarization) == ("T. Proposer", "neutron", "po")
    assert facts.start == "2021-05-12T00:00:00"
    assert facts.run.startswith("amor2020n001925.hdf, ")
    assert facts.header["reduction"]["software"]["name"] == "eos.py"


def test_reads_several_data_sets_with_what_differs() -> None:
    curves = read_curves(SHIPPED[1].read_bytes())
    assert [curve.metadata.polarization for curve in curves] == ["po", "mo"]
    assert [len(curve.q) for curve in curves] == [2, 4]
    assert curves[1].segment is not None


def test_converts_inverse_nanometres_and_keeps_signs() -> None:
    columns = [Column("Qz", "1/nm"), R_COLUMN, DR_COLUMN, ErrorColumn("Qz", "resolution", "sigma")]
    curve = one(ort(columns, 10 * Q, R, DR, 10 * DQ))
    for got, expected in ((curve.q, Q), (curve.r, R), (curve.dr, DR), (curve.dq, DQ)):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("value_is", "distribution", "factor"),
    [
        (None, None, 1.0),
        ("sigma", None, 1.0),
        ("FWHM", None, 1 / FWHM),
        ("FWHM", "gaussian", 1 / FWHM),
        ("FWHM", "uniform", 1 / np.sqrt(12)),
        ("HWHM", None, 2 / FWHM),
        ("hwhm", "uniform", 2 / np.sqrt(12)),
        ("fwhm", None, 1 / FWHM),
    ],
)
def test_the_error_columns_say_what_they_are(
    value_is: str | None, distribution: str | None, factor: float
) -> None:
    """One standard deviation unless the header says otherwise, whatever the caller thinks; of R as of q."""
    known = value_is if value_is in (None, "sigma") else "FWHM"
    columns = [
        Column("Qz", "1/angstrom"),
        R_COLUMN,
        ErrorColumn("R", "uncertainty", known, distribution),  # type: ignore[arg-type]
        ErrorColumn("Qz", "resolution", known, distribution),  # type: ignore[arg-type]
    ]
    # orsopy itself does not write the other words.
    text = ort(columns, Q, R, DR, DQ).decode().replace("value_is: FWHM", f"value_is: {value_is}")
    curve = one(text.encode(), dq="sigma")
    np.testing.assert_allclose(curve.dq, DQ * factor)
    np.testing.assert_allclose(curve.dr, DR * factor)


def test_a_file_that_says_hwhm_counts_more_than_the_caller() -> None:
    columns = [Column("Qz", "1/angstrom"), R_COLUMN, ErrorColumn("Qz", "resolution", "FWHM")]
    curve = one(ort(columns, Q, R, DQ).replace(b"value_is: FWHM", b"value_is: HWHM"), dq="sigma")
    np.testing.assert_allclose(curve.dq, 2 * DQ / FWHM)
    said = "the file itself says what its dq is, and not sigma; the file counted"
    assert said in curve.metadata.notes


def test_converts_percent() -> None:
    data = ort([Column("Qz", "1/angstrom"), Column("R", "%"), DR_COLUMN], Q, 100 * R, 100 * DR)
    curve = one(data)
    np.testing.assert_allclose(curve.r, R)
    np.testing.assert_allclose(curve.dr, DR)
    assert "R is in percent; it was converted" in curve.metadata.notes
    columns = [Column("Qz", "1/angstrom"), R_COLUMN, ErrorColumn("Qz", "resolution", "FWHM")]
    text = ort(columns, Q, R, np.array([2.0, 2.0, 2.0])).decode()
    curve = one(text.replace("value_is: FWHM", "value_is: FWHM, unit: '%'").encode())
    np.testing.assert_allclose(curve.dq, 0.02 * Q / FWHM)
    assert "dq is in percent of q; it was converted" in curve.metadata.notes


def test_columns_go_by_their_names_and_may_be_missing_or_more() -> None:
    columns = [Column("lambda", "angstrom"), Column("Qz", "1/angstrom"), R_COLUMN, ErrorColumn("Qz")]
    curve = one(ort(columns, 5 + Q, Q, R, DQ))
    assert curve.dr is None
    np.testing.assert_allclose(curve.dq, DQ)
    columns = [Column("Qz", "1/angstrom"), R_COLUMN, DR_COLUMN, ErrorColumn("Qz")]
    curve = one(ort(columns, Q, R, DR, np.full(3, np.nan)))
    assert curve.dq is None


def test_a_file_of_numbers_that_only_ends_like_one() -> None:
    path = Path(orsopy.__file__).parent / "fileio/tests/not_orso.ort"
    assert len(one(path.read_bytes(), filename=path.name).q) == 3


def bomb() -> str:
    rows = "".join(f"# k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    return SIGN + "# k0: &a0 [x, x]\n" + rows + "0.01 1\n0.02 1\n"


COLUMNS = "# columns:\n# - {name: Qz, unit: 1/angstrom}\n# - {name: R}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), "YAML of more than 20000 values"),
        (SIGN + "# a: &a [*a]\n0.01 1\n0.02 1\n", "YAML of more than 20000 values"),
        (SIGN + "# a: " + "[" * 5000 + "\n0.01 1\n", "nested too deep"),
        (SIGN + "# a: !!python/object/apply:os.system [ls]\n0.01 1\n", "not plain YAML"),
        (SIGN + "# a: [\n0.01 1\n", "not plain YAML"),
        (SIGN + "# - a\n0.01 1\n", "file header: got list; must be a YAML mapping"),
        (SIGN + "# a: 1\n0.01 1\n", "an ORSO file that orsopy cannot read"),
        (SIGN + COLUMNS + "0.01 1\n", "an ORSO file that orsopy cannot read"),
        (SIGN, "file: got no points; 2 to 20000 lines of numbers must follow each header"),
        (SIGN + COLUMNS, "file: got no points"),
        (SIGN + "# data_set: a\n0.01 1\n0.02 1\n# data_set: b\n", "got a data set without points"),
        (SIGN + "# data_set: a\n# data_set: b\n0.01 1\n0.02 1\n", "got a data set without points"),
        (SIGN + "# a: 0x" + "f" * 5000 + "\n0.01 1\n", "a whole number of 5002 characters; at most 40"),
        (SIGN + COLUMNS + "0.01 1\n0.0_2 1\n", "file line 6: got 0.0_2; must be a number"),
        (SIGN + COLUMNS + "0.01 \u0661\n0.02 1\n", "file line 5: got \u0661; must be a number"),
        (SIGN + "# data_set: 1\n" * 300 + "0.01 1\n", "300 data sets; at most 256"),
        (SIGN + "# a: 1\n0.01 1\n0.02 x\n", "file line 4: got x; must be a number"),
        (SIGN + "# a: 1\n0.01 1\n0.02 1 2\n", "file line 4: got 3 columns; the lines before have 2"),
        (SIGN + "0.01 1\n" * 20_001, "more than 20000 points"),
        (SIGN + "# " + "a" * 20_000, "characters; at most"),
    ],
    ids=range(20),
)
def test_refuses_headers_that_could_hurt_and_files_that_are_broken(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_curves(text.encode())


def test_refuses_columns_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match="file columns: got Qx, R; must have Qz and R"):
        read_curves(ort([Column("Qx", "1/angstrom"), R_COLUMN], Q, R))
    with pytest.raises(UserError, match=r"file columns: got Qz in deg; q must be in"):
        read_curves(ort([Column("Qz", "deg"), R_COLUMN], Q, R))
    columns = [Column("Qz", "1/angstrom"), R_COLUMN, ErrorColumn("R", None, "FWHM", "lorentzian")]
    with pytest.raises(UserError, match="file columns: got sR; Lorentzian"):
        read_curves(ort(columns, Q, R, DR))
    columns = [Column("Qz", "1/angstrom"), R_COLUMN, ErrorColumn("R", None, "FWHM")]
    with pytest.raises(UserError, match="file columns: got sR: IQR; must be sigma, FWHM or HWHM"):
        read_curves(ort(columns, Q, R, DR).replace(b"value_is: FWHM", b"value_is: IQR"))
    data = ort([Column("Qz", "1/angstrom"), R_COLUMN], Q, R, sets=2).decode()
    head, tail = data.rsplit("0.0000000000000000e+00", 1)
    with pytest.raises(UserError, match=r"file data set spin 1\.r\[1\]: got nan"):
        read_curves(f"{head}nan{tail}".encode())


def test_a_header_may_not_replace_what_orsopy_calls() -> None:
    data = ort([Column("Qz", "1/angstrom"), R_COLUMN], Q, R).decode()
    assert one(data.encode()).metadata.sample == "film 0"
    hostile = data.replace("# data_set:", "# to_dict: x\n# to_yaml: x\n# data_set:", 1)
    with pytest.raises(UserError, match="orsopy cannot read"):
        read_curves(hostile.encode())
