"""Text in columns and arrays, among them the measured files that the package refnx carries."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import refnx
from refnx.dataset import ReflectDataset

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.formats import read_curves
from guidehall.science.reflectometry.formats.common import per_angstrom
from guidehall.science.reflectometry.formats.read import read_files

MEASURED = Path(refnx.__file__).parent / "analysis/tests"
DATASETS = Path(refnx.__file__).parent / "dataset/tests"
FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def one(data: bytes | str, **options: object) -> Curve:
    raw = data.encode() if isinstance(data, str) else data
    (curve,) = read_curves(raw, **options)  # type: ignore[arg-type]
    return curve


@pytest.mark.parametrize("name", ["e361r.txt", "e365r.txt", "e366r.txt"])
def test_reads_the_measured_films_of_refnx_as_refnx_does(name: str) -> None:
    curve, theirs = one((MEASURED / name).read_bytes(), filename=name), ReflectDataset(MEASURED / name)
    assert curve.dr is not None
    np.testing.assert_array_equal(curve.q, theirs.x)
    np.testing.assert_array_equal(curve.r, theirs.y)
    np.testing.assert_array_equal(curve.dr, theirs.y_err)
    assert curve.dq is None
    assert curve.segment is None
    assert curve.metadata.filename == name
    curve.check()


@pytest.mark.parametrize("name", ["c_PLP0000708.dat", "c_PLP0000708_header.dat", "c_PLP0000708_header2.dat"])
def test_reads_four_columns_as_refnx_does(name: str) -> None:
    """refnx holds widths at half maximum; with and without lines of words above the numbers."""
    data, theirs = (DATASETS / name).read_bytes(), ReflectDataset(DATASETS / name)
    with pytest.raises(
        UserError, match=r"dq_convention: got nothing; file has a resolution .* sigma or fwhm"
    ):
        read_curves(data)
    curve = one(data, dq="fwhm")
    assert curve.dq is not None
    np.testing.assert_array_equal(curve.r, theirs.y)
    np.testing.assert_allclose(curve.dq * FWHM, theirs.x_err, rtol=1e-12)


def test_believes_a_heading_that_says_what_dq_is() -> None:
    """Q (1/A), Ref, dRef (SD), dq(FWHM, 1/A): the SD of dRef says nothing of dq."""
    data = (DATASETS / "c_PLP0033831.txt").read_bytes()
    curve = one(data)
    assert curve.dq is not None
    np.testing.assert_allclose(curve.dq[0] * FWHM, 0.000652996)
    assert curve.metadata.notes == ()
    again = one(data, dq="sigma")
    np.testing.assert_array_equal(again.dq, curve.dq)
    assert again.metadata.notes == ("the file itself says what its dq is, and not sigma; the file counted",)


def test_keeps_what_an_instrument_says_above_its_table() -> None:
    curve = one((DATASETS / "dot.refl").read_bytes())
    assert (curve.metadata.instrument, curve.metadata.start) == ("NG-7", "2006-05-28")
    assert curve.metadata.title.startswith("may06")
    assert "#wavelength 4.760"[1:] in curve.metadata.header["lines"]
    assert curve.dr is not None
    curve = one((DATASETS / "dot.mft").read_bytes(), dq="sigma")
    assert curve.metadata.instrument == "D17"


@pytest.mark.parametrize(
    ("heading", "factor"),
    [
        ("# q r dr dq_fwhm", 1 / FWHM),
        ("# Q, R, dR, dQ (FWHM)", 1 / FWHM),
        ("Qz;R;dR;sigmaQ", 1.0),
        ("# q (1/A)\tR\tdR\tdq (1/A, sigma)", 1.0),
        ("# q r dr dq\n# dq: full width at half maximum", 1 / FWHM),
        ("# dQ is 1 sigma, dR as well", 1.0),
        ("# resolution is FWHM", 1 / FWHM),
        ("! Q R sR sQ [standard deviation]", 1.0),
        ("#Q   R   dR   δQ (σ)", 1.0),
    ],
)
def test_takes_the_meaning_of_dq_from_headers(heading: str, factor: float) -> None:
    curve = one(f"{heading}\n0.01 1 0.1 0.001\n0.02 0.5 0.1 0.002\n")
    assert curve.dq is not None
    np.testing.assert_allclose(curve.dq, [0.001 * factor, 0.002 * factor])


@pytest.mark.parametrize(
    "heading", ["", "# q r dr dq\n", "# dR is one sigma\n# Q R dR dQ\n", "# FWHM of peak 3\n"]
)
def test_never_guesses_the_meaning_of_dq(heading: str) -> None:
    with pytest.raises(UserError, match="dq_convention"):
        one(f"{heading}0.01 1 0.1 0.001\n0.02 0.5 0.1 0.002\n")


def test_a_relative_resolution() -> None:
    curve = one("# Q R dR dQ/Q (FWHM)\n0.01 1 0.1 0.05\n0.02 0.5 0.1 0.05\n")
    np.testing.assert_allclose(curve.dq, np.array([0.01, 0.02]) * 0.05 / FWHM)


def test_columns_go_by_their_names() -> None:
    curve = one(
        "# lambda, Q (1/nm), dQ (1/nm; sigma), R, dR, model\n5,0.1,0.01,1,0.1,9\n4,0.2,0.02,0.5,0.2,9\n"
    )
    np.testing.assert_allclose(curve.q, [0.01, 0.02])
    np.testing.assert_allclose(curve.dq, [0.001, 0.002])
    np.testing.assert_array_equal(curve.r, [1, 0.5])
    np.testing.assert_array_equal(curve.dr, [0.1, 0.2])
    assert curve.metadata.notes == ("left out, for nothing says that they are q, R, dR or dq: lambda, model",)
    # The fourth of four columns is dq only where no name says otherwise.
    curve = one("# q R dR theory\n0.01 1 0.1 0.9\n0.02 1 0.1 0.9\n")
    assert curve.dq is None
    curve = one("Q R dQ_sigma\n0.01 1 0.001\n0.02 1 0.002\n")
    assert curve.dr is None
    np.testing.assert_array_equal(curve.dq, [0.001, 0.002])


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("1/nm", 0.1),
        ("nm^-1", 0.1),
        ("nm-1", 0.1),
        ("1 / nanometre", 0.1),
        ("1/Å", 1),
        ("Å⁻¹", 1),
        ("1/\u212b", 1),
        ("A^(-1)", 1),
        ("1/angstrom", 1),
        ("Angstrom**-1", 1),
        ("1/m", 1e-10),
        ("nm^{-1}", 0.1),
        ("nm$^{-1}$", 0.1),
        ("/nm", 0.1),
        ("nm^\u22121", 0.1),
        ("nm\u20131", 0.1),
        ("rad/nm", 0.1),
        ("inverse nanometers", 0.1),
        ("Ångström⁻¹", 1),
        (r"$\AA^{-1}$", 1),
        ("10^10 m^-1", 1),
        ("10^-1 Å^-1", 0.1),
        ("10⁻¹ Å⁻¹", 0.1),
    ],
)
def test_units_of_q(unit: str, factor: float) -> None:
    assert per_angstrom(unit) == pytest.approx(factor)
    curve = one(f"# Q ({unit})\tR\n{0.01 / factor!r}\t1\n{0.02 / factor!r}\t0.5\n")
    np.testing.assert_allclose(curve.q, [0.01, 0.02])


@pytest.mark.parametrize("unit", ["", "nm", "1/furlong", "deg", "1/nm^2", "cm-1", "1/µm", "10 nm^-1"])
def test_what_is_no_unit_of_q(unit: str) -> None:
    assert per_angstrom(unit) is None


def test_the_unit_of_the_caller_counts_where_the_file_has_none() -> None:
    text = "0.1 1 0.1 0.01\n0.2 0.5 0.1 0.02\n"
    curve = one(text, q_unit="1/nm", dq="sigma")
    np.testing.assert_allclose(curve.q, [0.01, 0.02])
    np.testing.assert_allclose(curve.dq, [0.001, 0.002])
    np.testing.assert_allclose(one("# q (1/A)  R\n0.1 1\n0.2 1\n", q_unit="1/nm").q, [0.1, 0.2])


def test_points_that_are_not_positive_are_kept_with_their_errors() -> None:
    curve = one("0.01 1 0.1\n0.02 0 0.2\n0.03 -1e-6 3e-6\n")
    assert curve.r.tolist() == [1.0, 0.0, -1e-6]
    assert curve.dr is not None
    assert curve.dr.tolist() == [0.1, 0.2, 3e-6]


def test_segments_of_several_angles_are_sorted_and_told_apart() -> None:
    q = [0.01, 0.02, 0.03, 0.02, 0.03, 0.04, 0.025, 0.05]
    curve = one("".join(f"{value} {index + 1}\n" for index, value in enumerate(q)))
    curve.check()
    assert curve.segment is not None
    assert curve.q.tolist() == sorted(q)
    # Equal q stay in the order of the file.
    assert curve.r.tolist() == [1, 2, 4, 7, 3, 5, 6, 8]
    assert curve.segment.tolist() == [0, 0, 1, 2, 0, 1, 1, 2]
    back = np.argsort(curve.segment, kind="stable")
    assert curve.q[back].tolist() == q


def test_files_from_high_to_low_q() -> None:
    curve = one("0.03 3\n0.02 2\n0.01 1\n")
    assert (curve.r.tolist(), curve.segment) == ([1, 2, 3], None)
    curve = one("0.03 3\n0.02 2\n0.01 1\n0.05 6\n0.04 5\n0.02 4\n")
    assert curve.r.tolist() == [1, 4, 2, 3, 5, 6]
    assert curve.segment is not None
    assert curve.segment.tolist() == [0, 1, 0, 0, 1, 1]


def test_points_in_no_order_have_no_segments() -> None:
    q = np.random.default_rng(1).permutation(np.linspace(0.01, 0.2, 200))
    curve = one("".join(f"{value!r} 1\n" for value in q.tolist()))
    np.testing.assert_array_equal(curve.q, np.sort(q))
    assert curve.segment is None
    assert "no order" in curve.metadata.notes[0]


def test_duplicates_are_kept() -> None:
    assert one("0.01 1\n0.01 2\n0.01 3\n").r.tolist() == [1, 2, 3]


def test_text_in_one_byte_signs_and_old_line_ends() -> None:
    curve = one("# q (1/Å)\tR\r0.01\t1\r0.02\t0.5\r".encode("latin-1"))
    assert curve.q.tolist() == [0.01, 0.02]
    # A separator at the end of the line, as spreadsheets leave it.
    assert one("q,R,\n0.01,1,\n0.02,0.5,\n").r.tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.01,,1\n0.02,,1\n", "file line 1: got nothing between two separators; must be a number"),
        ("0,01;1,0\n0,02;0,5\n", "file line 1: got 0,01; must be written with a decimal point"),
        ("0,01 1,0\n", "decimal point"),
        ("1e-2\t0,5\n2e-2\t0,4\n3e-2\t0,3\n", "file line 1: got 0,5; must be written with a decimal point"),
        ("0.01;0.5\n0.02;4,0E-1\n", "file line 2: got 4,0E-1; must be written with a decimal point"),
        ("0.0_1 0.5\n0.02 0.4\n", "file line 1: got 0.0_1; must be a number"),
        ("0.01 \u0665\n0.02 0.4\n", "file line 1: got \u0665; must be a number"),
        ("0.01 1 0.1\n0.02 nan 0.1\n", r"file\.r\[1\]: got nan"),
        ("0.03 1\n0.01 1\n0.02 1e9\n", r"file\.r\[2\]: got 1000000000.0"),
        ("0.01 1 0.1 0.1\n0.02 1 0.1 0.001\n", r"file\.dq\[0\]: got 0.1; must be between 0 and 0.3 q"),
        ("1 2 3 4 5\n1 2 3 4 5\n", "file: got 5 columns"),
        (" ".join(["1"] * 100), "file line 1: got 100 columns"),
        ("Q R\n0.01 1 # note\n0.02 one\n", "file line 3: got one; must be a number"),
        ("<html>", "no numbers"),
        ("# Q R dR sigmaR\n0.01 1 0.1 0.1\n", r"file, columns: got dR, sigmaR; only one column may be dr"),
        ("0.01 50%\n0.02 40%\n", "file line 1: got 50%; must be a number"),
    ],
)
def test_refuses_text(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        one(text, dq="sigma")


def test_commas_that_separate_are_no_decimal_commas() -> None:
    for data in ("1,100, 3\n2,50, 3\n", "1 ,100 ,3\n2 ,50 ,3\n", "1,100,3\n2,50,3\n"):
        assert one(data).r.tolist() == [100.0, 50.0]
    # In words above the numbers they may stand.
    assert one("Temperature 23,5 C\n0.01 1\n0.02 1\n").q.tolist() == [0.01, 0.02]


def test_reads_arrays_of_every_shape() -> None:
    q, rng = np.geomspace(0.008, 0.2, 308), np.random.default_rng(0)
    many = np.stack([np.stack([q, row]) for row in rng.random((7, 308))])
    curves = read_curves(npy(many.astype(np.float32)), "nr.npy")
    assert [curve.metadata.data_set for curve in curves] == list("0123456")
    np.testing.assert_allclose(curves[6].r, many[6, 1], rtol=1e-6)
    assert curves[0].q.dtype == np.float64
    np.testing.assert_array_equal(one(npy(many[0])).r, many[0, 1])
    np.testing.assert_array_equal(one(npy(many[0].T)).r, many[0, 1])
    np.testing.assert_array_equal(one(npy(np.asfortranarray(many[0]))).q, q)
    four = np.stack([q, many[0, 1], 0 * q + 0.1, 0.02 * q])
    np.testing.assert_array_equal(one(npy(four), dq="sigma").dq, 0.02 * q)
    with pytest.raises(UserError, match="dq_convention"):
        one(npy(four))
    # A column that is not known.
    four[2:] = np.nan
    assert (one(npy(four)).dr, one(npy(four)).dq) == (None, None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1" + b" " * 100_000 + b"2\n", "file line 1: got 100003 characters"),
        (b"\n" * 300_000, "more than 200000 lines"),
        ((b"# " + b" (" * 900 + b"\n") * 1500 + b"0.01 1\n", "1 points; between 2"),
        (b"9" * 5000 + b" 1\n0.1 1\n", r"file\.q\[0\]: got inf"),
        (b"word\n" * 1001 + b"0.01 1\n0.02 1\n", "file: got more than 1000 lines that begin with a word"),
        ((b" " * 9990 + b"x\n") * 6000, "more than 1000 lines that begin with a word"),
        ((b"0.01" + b" " * 9980 + b"1 //\n") * 1000 + b"x\n", "line 1001: got x"),
    ],
    ids=range(7),
)
def test_text_that_would_take_long_does_not(data: bytes, message: str) -> None:
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        read_curves(data)
    assert time.process_time() - start < 5.0


def test_of_many_comments_the_last_name_the_columns() -> None:
    curve = one("# once more\n" * 1500 + "# R, Q (1/nm)\n1, 0.1 # first\n0.5, 0.2\n" + "# below\n" * 1500)
    np.testing.assert_allclose(curve.q, [0.01, 0.02])
    assert len(curve.metadata.header["lines"]) == 1000


def test_reading_and_writing_load_what_they_need_and_no_more() -> None:
    heavy = ("torch", "h5py", "orsopy", "matplotlib")
    code = (
        "import sys; from guidehall.science.reflectometry import export, formats;"
        "from guidehall.science.reflectometry.formats import project;"
        "formats.read_curves(b'0.01 1\\n0.02 1\\n');"
        f"assert not [name for name in {heavy} if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _header(shape: tuple[int, ...], descr: object = "<f8") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_header((10**6, 2, 10**6)) + bytes(64), "in 192 bytes, which numpy cannot read"),
        (_header((2, 10**15)), "numpy cannot read"),
        (_header((5, 2), "|O") + pickle.dumps([1]), "Python objects, which numpy cannot read"),
        (npy(np.array({"nr": 1}, dtype=object)), "nothing is unpickled"),
        (npy(np.zeros(3, dtype=[("q", "f8"), ("r", "f8")])), "must be numbers of shape"),
        (npy(np.full((2, 5, 7), 0.1)), "2 to 4, points"),
        (npy(np.full((10_001, 2, 2), 0.1, dtype=np.float32)), "1 to 10000 curves"),
        (npy(np.full((2, 20_001), 0.1)), "2 to 20000 points"),
        (npy(np.empty((0, 2, 5))), "1 to 10000 curves"),
        (npy(np.full((2, 9), 0.1)) + b"more", "numpy cannot read"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr': " + b"[" * 60_000, "numpy cannot read"),
        (b"\x93NUMPY\x01\x00\x05\x00{'a':", "numpy cannot read"),
        (b"\x93NUMPY\x09\x00", "numpy cannot read"),
        (b"\x93NUMPY", "numpy cannot read"),
        (npy(np.array([[[0.01, 0.02], [1, 1]], [[0.01, -0.02], [1, 1]]])), r"file\[1\]\.q\[1\]: got -0.02"),
        (pickle.dumps({"q": np.ones(3)}), "not UTF-8 text"),
        (b"PK\x03\x04" + bytes(30), "in a zip archive .* unpack it first"),
    ],
    ids=range(17),
)
def test_refuses_arrays_and_pickles(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_curves(data)


ROWS = "".join(f"{0.08 + 0.01 * place} {1 / (place + 1)} 0.01\n" for place in range(10))


@pytest.mark.parametrize(
    "heading",
    [
        "# Q/nm^-1 R dR",
        "# q_nm R dR",
        "# q_nm-1,R,dR",
        "# Qz_invnm R dR",
        "# units: nm^-1\n# Q R dR",
        "# units: nm^{-1}, none, none\n# Q R dR",
        "# unit of q is 1/nm\n# Q R dR",
        "# q in nm^-1",
        "# Q in inverse nanometers, R, dR",
        "# Q nm^{-1}, R, dR",
        "# Q / nm^(-1), R, dR",
        # For other columns than there are.
        "# Q (1/nm), R, dR, dQ",
    ],
)
def test_units_that_are_written_to_the_name_or_above_it_count(heading: str) -> None:
    (curve,) = read_curves(f"{heading}\n{ROWS}".encode())
    assert curve.q[0] == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("heading", "place", "unit"),
    [
        ("Q (1/µm), R, dR", "column Q (1/µm)", "1/µm"),
        ("Q [cm-1], R, dR", "column Q [cm-1]", "cm-1"),
        ("Q (deg), R, dR", "column Q (deg)", "deg"),
        ("Q cm^-1, R, dR", "column Q cm^-1", "cm^-1"),
        ("Q/cm-1 R dR", "units", "cm-1"),
        ("units: 1/furlong\n# Q R dR", "units", "1/furlong"),
        ("q in 1/µm\n# Q R dR", "units", "1/µm"),
    ],
)
def test_a_unit_that_is_not_known_is_no_angstrom(heading: str, place: str, unit: str) -> None:
    data = f"# {heading}\n{ROWS}".encode()
    said = f"file, {place}: got {unit}; must be 1/angstrom or 1/nm, or say which of the two it is"
    with pytest.raises(UserError, match=re.escape(said)):
        read_curves(data)
    (curve,) = read_curves(data, q_unit="1/nm")
    assert curve.q[0] == pytest.approx(0.008)


@pytest.mark.parametrize(
    "heading", ["Q (1/A, sigma), R, dR", "Q (FWHM), R, dR", "Q in order, R, dR", "q in ascending order"]
)
def test_what_is_said_of_q_and_no_unit_hurts_nothing(heading: str) -> None:
    assert one(f"# {heading}\n{ROWS}").q[0] == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("heading", "culprit"),
    [
        ("2theta intensity error", "2theta"),
        ("Q^2 R dR", "Q^2"),
        ("Q RQ4 dRQ4", "RQ4"),
        ("Q log10(R) err", "log10(R)"),
    ],
)
def test_what_is_neither_q_nor_r_is_refused(heading: str, culprit: str) -> None:
    with pytest.raises(UserError, match=f"column {re.escape(culprit)}: .*convert it first"):
        read_curves(f"# {heading}\n{ROWS}".encode())


def test_names_that_nobody_knows_are_told() -> None:
    (curve,) = read_curves(f"# alpha beta gamma\n{ROWS}".encode())
    assert "alpha, beta, gamma" in curve.metadata.notes[0]


def test_of_a_square_array_the_ascending_q_counts() -> None:
    rows = np.array([[0.01, 0.02, 0.03], [0.9, 0.5, 0.2], [0.01, 0.02, 0.01]])
    for array in (rows, rows.T):
        (curve,) = read_curves(npy(array))
        np.testing.assert_array_equal(curve.q, rows[0])


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("# Q R dQ dR(sigma)", "0.01 1 0.0005 0.05"),
        ("# Q R dQ sigmaR", "0.01 1 0.0005 0.05"),
        ("# Q R dQ stdR", "0.01 1 0.0005 0.05"),
        ("# Q R dR dQ stdR_is_col3", "0.01 1 0.05 0.0005"),
        ("# dQ as measured and sigma of R", "0.01 1 0.05 0.0005"),
        ("# dQ, standard deviation of R", "0.01 1 0.05 0.0005"),
    ],
)
def test_what_is_said_of_the_error_of_r_is_none_of_dq(heading: str, columns: str) -> None:
    """Of a line that names the columns, nothing but the name of dq."""
    data = f"{heading}\n{columns}\n{columns.replace('0.01', '0.02')}\n"
    curve = one(data, dq="fwhm")
    assert curve.dq is not None
    assert curve.dq[0] == pytest.approx(0.0005 / FWHM)
    with pytest.raises(UserError, match="dq_convention"):
        one(data)


@pytest.mark.parametrize("name", ["dQ (HWHM)", "dq_hwhm", "dQ (half width at half maximum)"])
def test_half_a_width(name: str) -> None:
    curve = one(f"# Q\tR\tdR\t{name}\n0.01 1 0.1 0.001\n0.02 0.5 0.1 0.002\n")
    np.testing.assert_allclose(curve.dq, [0.002 / FWHM, 0.004 / FWHM])


@pytest.mark.parametrize("name", ["dRQ4", "dR*Q^4", "sRq^4", "dRQz4"])
def test_the_error_of_r_times_q4_is_not_that_of_r(name: str) -> None:
    curve = one(f"# Q R RQ4 {name}\n0.01 1 1e-8 1e-9\n0.02 0.5 8e-8 1e-9\n")
    assert curve.dr is None
    assert curve.metadata.notes == (f"left out, for nothing says that they are q, R, dR or dq: RQ4, {name}",)


@pytest.mark.parametrize(
    "heading",
    [
        "# Q R dR dQ/Q(%)",
        "Q R dR dQ/Q(%)",
        "# Q R dR dQ/Q_%",
        "# Q, R, dR, dQ/Q [%]",
        "Q,R,dR,dQ/Q %",
        "# Q R dR dQ_percent",
        "# Q, R, dR, dQ (%, sigma)",
    ],
)
def test_a_resolution_in_percent(heading: str) -> None:
    curve = one(f"{heading}\n0.01 1 0.1 0.2\n0.02 0.5 0.1 0.4\n", dq="sigma")
    np.testing.assert_allclose(curve.dq, [0.01 * 0.002, 0.02 * 0.004])
    np.testing.assert_array_equal(curve.dr, [0.1, 0.1])
    assert curve.metadata.notes == ("dq is in percent of q; it was converted",)


@pytest.mark.parametrize(
    ("heading", "r", "dr", "notes"),
    [
        ("# Q R(%) dR(%)", 0.5, 0.1, 2),
        ("Q,R [%],dR", 0.5, 0.1, 2),
        ("# Q R(%) dR/R(%)", 0.5, 0.05, 2),
        ("# Q R dR/R", 50.0, 500.0, 1),
        ("# Q R dR(%)", 50.0, 5.0, 1),
    ],
)
def test_reflectivity_and_its_error_in_percent(heading: str, r: float, dr: float, notes: int) -> None:
    curve = one(f"{heading}\n0.01 50 10\n0.02 50 10\n")
    np.testing.assert_allclose(curve.r, [r, r])
    np.testing.assert_allclose(curve.dr, [dr, dr])
    assert len(curve.metadata.notes) == notes


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("heading", ["", "# q R dR\n"])
def test_a_first_column_that_counts_is_left_out(first: int, heading: str) -> None:
    q = [0.01, 0.02, 0.03, 0.04, 0.05]
    rows = "".join(f"{first + place} {value} {1 - value} 0.1\n" for place, value in enumerate(q))
    curve = one(heading + rows)
    np.testing.assert_array_equal(curve.q, q)
    np.testing.assert_array_equal(curve.dr, [0.1] * 5)
    assert curve.metadata.notes == ("the first column counts the points; it was left out",)
    five = one("".join(f"{line} 0.001\n" for line in rows.splitlines()), dq="sigma")
    np.testing.assert_array_equal(five.dq, [0.001] * 5)


@pytest.mark.parametrize(
    "rows",
    [
        [(place, 0.1 * place, 0.1) for place in range(1, 5)],
        [(place, 1.0 / place, 0.1) for place in range(1, 9)],
        [(place, 100.0 * place, 0.1) for place in range(1, 9)],
        [(place, 0.1 * place) for place in range(1, 9)],
        [(2.0 * place - 1, 0.1 * place, 0.1) for place in range(1, 9)],
    ],
    ids=["few", "R falls", "beyond q", "two columns", "in steps of 2"],
)
def test_a_first_column_that_may_be_q_stays(rows: list[tuple[float, ...]]) -> None:
    curve = one("".join(" ".join(map(str, row)) + "\n" for row in rows))
    np.testing.assert_array_equal(curve.q, [row[0] for row in rows])


def test_exponents_as_fortran_writes_them() -> None:
    curve = one("1.0D-2 1.0D+00 .1d0\n2.0D-2 5D-1 1.d-1\n")
    assert (curve.q.tolist(), curve.r.tolist()) == ([0.01, 0.02], [1.0, 0.5])
    assert curve.dr is not None
    assert curve.dr.tolist() == [0.1, 0.1]
    with pytest.raises(UserError, match=r"line 2: got 1\.0D-x"):
        one("0.01 1\n0.02 1.0D-x\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"0.01 1\n0.02 1\n"), "file: got a file compressed by gzip; unpack it first"),
        (bz2.compress(b"0.01 1\n"), "compressed by bzip2"),
        (lzma.compress(b"0.01 1\n"), "compressed by xz"),
        ("0.01 1\n0.02 1\n".encode("utf-16"), "file: got text in UTF-16; save it as UTF-8"),
        ("0.01 1\n0.02 1\n".encode("utf-16-le"), "UTF-16"),
        ("0.01 1\n0.02 1\n".encode("utf-16-be"), "UTF-16"),
    ],
    ids=range(6),
)
def test_files_that_need_something_first_say_what(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_curves(data)


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "film.dat"
    with file.open("wb") as stream:
        # Its size alone: on the disk there is next to nothing.
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match=r"film\.dat: got 1099511627776 bytes; at most 67108864 are allowed"):
        read_files([file])
    with pytest.raises(UserError, match="zero: got 67108865 bytes; at most 67108864 are allowed"):
        read_files([Path("/dev/zero")])


def test_a_large_q_without_a_unit_is_told() -> None:
    rows = "0.1 1\n3 0.5\n"
    for data in (rows.encode(), npy(np.array([[0.1, 1.0], [3.0, 0.5], [3.1, 0.4]]))):
        (note,) = one(data).metadata.notes
        assert re.search(r"q reaches 3.* no unit: .*may|if it is 1/nm, say so \(q_unit", note)
        assert one(data, q_unit="1/nm").metadata.notes == ()
    assert one("# Q(1/A) R\n" + rows).metadata.notes == ()
    assert one("0.1 1\n0.7 0.5\n").metadata.notes == ()


@pytest.mark.parametrize(
    "line", ["# dq " + "," * 1990, "# dq " + "dR," * 600, "%" * 1999, "# " + "dq " * 600]
)
def test_lines_about_dq_take_no_time(line: str) -> None:
    start = time.process_time()
    one(f"{line}\n" * 1000 + "0.01 1\n0.02 1\n")
    assert time.process_time() - start < 5.0
