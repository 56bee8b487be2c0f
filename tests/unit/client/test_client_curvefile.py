"""Measured curves from files: every format that is promised, and a clear word on every other."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guidehall.client import BeamSide, QUnit, Resolution, curvefile, read_curve
from guidehall.client.errors import InvalidArgument
from guidehall.science.reflectometry.formats import read_curves


def _write(folder: Path, content: str | bytes, name: str = "curve.dat") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "0.01 1.0 0.1\n0.02 0.5 0.05\n",
        "0.01,1.0,0.1\n0.02,0.5,0.05",
        "0.01;1.0;0.1\r\n0.02;0.5;0.05\r\n",
        "0.01\t1.0\t0.1\n\n0.02  0.5  0.05\n",
        "# instrument 7 \u00c5\n0.01, 1.0, 0.1,\n0.02, 0.5, 0.05, # last\n",
        "\ufeffQ, R, dR\n0.01, 1.0, 0.1\n0.02, 0.5, 0.05\n",
        "0.02 0.5 0.05\n0.01 1.0 0.1\n",
    ],
)
def test_text_in_columns_is_read(tmp_path: Path, text: str) -> None:
    curve = read_curve(_write(tmp_path, text))

    np.testing.assert_array_equal(curve.q, [0.01, 0.02])
    np.testing.assert_array_equal(curve.r, [1.0, 0.5])
    np.testing.assert_array_equal(curve.dr, [0.1, 0.05])
    assert (len(curve.dq), curve.dq_convention) == (0, None)


def test_comment_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    curve = read_curve(_write(tmp_path, "# \u00c5ngstr\u00f6m\n1 2\n3 4\n".encode("latin-1")))

    np.testing.assert_array_equal(curve.r, [2, 4])


def test_options_go_into_the_curve(tmp_path: Path) -> None:
    path = _write(tmp_path, "0.1 1.0 0.1 0.005\n0.2 0.5 0.05 0.01\n")

    curve = read_curve(path, dq="fwhm", q_unit="1/nm", beam_side="backing")

    np.testing.assert_array_equal(curve.dq, [0.005, 0.01])
    assert curve.dq_convention is Resolution.FWHM
    assert (curve.q_unit, curve.beam_side) == (QUnit.INVERSE_NANOMETRE, BeamSide.BACKING)


@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["<f8", ">f4"])
def test_npy_is_read_in_both_orientations(tmp_path: Path, columns: int, transposed: bool, dtype: str) -> None:
    rows = np.arange(1, 6 * columns + 1, dtype=dtype).reshape(6, columns)
    path = _write(tmp_path, _npy(rows.T if transposed else rows), "curve.npy")

    curve = read_curve(path, dq="sigma")

    assert curve.q.dtype == np.float64
    np.testing.assert_array_equal(curve.r, rows[:, 1])
    assert len(curve.dq) == (6 if columns == 4 else 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.01 1\n0.02 oops\n", "line 2: got 'oops'"),
        ("0.01 1\n0.02 nan\n", "line 2: got 'nan'"),
        ("nan inf\n0.02 1\n", "line 1: got 'nan'"),
        ("0.01 1\n# note\n0.02 1 2\n", "line 3: got '3 columns'"),
        ("0.01\n0.02\n", "line 1: got '1 columns'"),
        ("1 2 3 4 5\n1 2 3 4 5\n", "line 1: got '5 columns'"),
        ("Q R\nq r\n0.01 1\n0.02 1\n", "line 2: got 'q'"),
        ("0.01 1\n", "1 points"),
        ("", "0 points"),
        ("# nothing\n", "0 points"),
    ],
)
def test_text_that_is_no_curve_is_refused_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_curve(_write(tmp_path, text))

    assert said in caught.value.message


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize("left_out", [(2,), (3,), (2, 3)])
def test_columns_of_nan_are_not_known_as_in_the_science(
    tmp_path: Path, left_out: tuple[int, ...], numpy: bool
) -> None:
    rows = np.array([[0.02, 0.5, 0.05, 0.001], [0.01, 1.0, 0.1, 0.0005], [0.03, 0.1, 0.01, 0.0015]])
    rows[:, left_out] = np.nan
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    data = _npy(rows) if numpy else text.encode()
    curve = read_curve(_write(tmp_path, data, "curve"), dq="sigma")
    (known,) = read_curves(data, "curve", dq="sigma")

    np.testing.assert_array_equal(curve.q, known.q)
    for ours, theirs in ((curve.dr, known.dr), (curve.dq, known.dq)):
        np.testing.assert_allclose(ours, [] if theirs is None else theirs)
    assert (len(curve.dr), len(curve.dq)) == (0 if 2 in left_out else 3, 0 if 3 in left_out else 3)


@pytest.mark.parametrize("text", ["0.01 1 nan\n0.02 1 0.1\n", "0.01 nan\n0.02 nan\n", "nan 1\nnan 1\n"])
def test_a_nan_among_numbers_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="line 1: got 'nan'"):
        read_curve(_write(tmp_path, text))


def test_resolution_is_never_guessed(tmp_path: Path) -> None:
    four = _write(tmp_path, "0.1 1.0 0.1 0.005\n0.2 0.5 0.05 0.01\n")
    two = _write(tmp_path, "0.1 1.0\n0.2 0.5\n", "two.dat")

    for path, relative_dq in ((four, None), (two, 0.05)):
        with pytest.raises(InvalidArgument, match="sigma or fwhm"):
            read_curve(path, relative_dq=relative_dq)
    with pytest.raises(InvalidArgument, match="relative_dq"):
        read_curve(four, dq="sigma", relative_dq=0.05)


@pytest.mark.parametrize("relative_dq", [0.0, -0.1, 1.0, float("nan")])
def test_resolution_must_be_a_fraction(tmp_path: Path, relative_dq: float) -> None:
    with pytest.raises(InvalidArgument, match="relative_dq"):
        read_curve(_write(tmp_path, "1 1\n2 2\n"), dq="sigma", relative_dq=relative_dq)


@pytest.mark.parametrize("option", ["dq", "q_unit", "beam_side"])
def test_unknown_words_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(InvalidArgument, match=option):
        read_curve(_write(tmp_path, "1 1\n2 2\n"), **{option: "furlong"})


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    trap = pickle.dumps({"q": [1.0]})

    for content in (_npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), trap):
        with pytest.raises(InvalidArgument):
            read_curve(_write(tmp_path, content, "curve.npy"))


def test_header_that_claims_more_than_is_there_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 2)}
    np.lib.format.write_array_header_1_0(file, claim)

    with pytest.raises(InvalidArgument, match="1000000000000"):
        read_curve(_write(tmp_path, file.getvalue() + bytes(160), "curve.npy"))


@pytest.mark.parametrize(
    "array",
    [
        np.ones(10),
        np.ones((2, 2, 2)),
        np.ones((5, 1)),
        np.ones((5, 2), dtype=complex),
        np.full((5, 2), np.inf),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: Any) -> None:
    with pytest.raises(InvalidArgument):
        read_curve(_write(tmp_path, _npy(array), "curve.npy"))


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, "0.01 1\n" * 100)
    monkeypatch.setattr(curvefile, "LARGEST_FILE_BYTES", 100)

    with pytest.raises(InvalidArgument, match="at most"):
        read_curve(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"gone\.dat"):
        read_curve(tmp_path / "gone.dat")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: b"\x93NUMPY\x01\x00" + tail)
)
def test_any_bytes_are_a_curve_or_refused(tmp_path: Path, content: bytes) -> None:
    path = _write(tmp_path, content)

    try:
        curve = read_curve(path, dq="sigma")
    except InvalidArgument:
        return
    assert len(curve.q) == len(curve.r) >= 2


def test_written_numbers_are_read_exactly(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).random((50, 3))
    rows = rows[np.argsort(rows[:, 0])]
    path = tmp_path / "curve.csv"
    np.savetxt(path, rows, fmt="%.17g", delimiter=", ")

    curve = read_curve(path)

    np.testing.assert_array_equal(np.column_stack([curve.q, curve.r, curve.dr]), rows)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"0.01 1\n0.02 1\n"), "a file compressed by gzip"),
        ("0.01 1\n0.02 1\n".encode("utf-16"), "text in UTF-16"),
        (b"Q R dR dQ/Q(%)\n0.01 1 0.1 0.2\n0.02 1 0.1 0.2\n", "without percent"),
        (b"".join(b"%d 0.0%d 1 0.1\n" % (n, n) for n in range(1, 7)), "counts the points"),
        (b"1e-2\t0,5\n2e-2\t0,4\n", "0,5"),
        (b"0.01;0,5\n0.02;0,4\n", "0,5"),
        (b"0.0_1 1\n0.02 1\n", "0.0_1"),
        (b"# Q (nm^{-1}) R\n0.1 1\n0.2 1\n", "speaks of nanometres"),
    ],
    ids=range(8),
)
def test_what_would_be_misread_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        read_curve(_write(tmp_path, content), dq="sigma")


def test_text_that_speaks_of_nanometres_is_read_when_the_unit_is_said(tmp_path: Path) -> None:
    file = _write(tmp_path, "# Q (1/nm), of a film of 20 nm\n0.1,1\n0.2,0.5\n")
    for unit in QUnit:
        assert read_curve(file, q_unit=unit).q_unit is unit


def test_exponents_as_fortran_writes_them(tmp_path: Path) -> None:
    curve = read_curve(_write(tmp_path, "1.0D-2 1.0d+0\n2D-2 0.5\n"))

    np.testing.assert_array_equal(curve.q, [0.01, 0.02])
