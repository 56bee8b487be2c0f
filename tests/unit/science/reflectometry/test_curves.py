from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.curves import MAX_FILE_BYTES, Curve, read_curve

THREE_COLUMNS = b"""# sample 7
0.01 1.0 0.01
0.02 5e-1 0.005   # edge

0.03,1e-3;1e-4
"""


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_reads_text_with_comments_and_mixed_separators() -> None:
    curve = read_curve(THREE_COLUMNS)
    np.testing.assert_array_equal(curve.q, [0.01, 0.02, 0.03])
    np.testing.assert_array_equal(curve.r, [1.0, 0.5, 1e-3])
    assert curve.dr is not None
    np.testing.assert_array_equal(curve.dr, [0.01, 0.005, 1e-4])
    assert curve.dq is None


def test_reads_one_line_of_column_names() -> None:
    assert len(read_curve(b"\xef\xbb\xbfQ, R\n0.01,1\n0.02,0.5\n").q) == 2
    with pytest.raises(UserError, match="file line 3: got Q; must be a number"):
        read_curve(b"Q R\n0.01 1\nQ R\n0.02 1\n")


def test_refuses_several_curves() -> None:
    with pytest.raises(UserError, match="file: got 3 curves; must hold one"):
        read_curve(npy(np.full((3, 2, 5), 0.1)))


def test_reads_npy() -> None:
    curve = read_curve(npy(np.array([[0.01, 1], [0.02, 0.5]], dtype=np.float32)))
    assert curve.q.dtype == np.float64
    assert curve.dr is None


def test_a_fourth_column_needs_its_convention() -> None:
    data = b"0.01 1 0.1 0.001\n0.02 1 0.1 0.002\n"
    with pytest.raises(UserError, match=r"dq_convention: got nothing; .* say sigma or fwhm"):
        read_curve(data)
    sigma, fwhm = read_curve(data, "sigma").dq, read_curve(data, "fwhm").dq
    assert sigma is not None
    assert fwhm is not None
    np.testing.assert_array_equal(sigma, [0.001, 0.002])
    np.testing.assert_allclose(sigma / fwhm, 2.354820045)


def test_keeps_points_that_are_not_positive() -> None:
    curve = read_curve(b"0.01 1 0.1\n0.02 0 0.1\n0.03 -1e-6 1e-6\n")
    assert curve.r.tolist() == [1.0, 0.0, -1e-6]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file: got no numbers"),
        (b"# only\n# comments\n", "file: got no numbers"),
        (b"0.01 1\n0.02 x\n", "file line 2: got x; must be a number"),
        (b"0.01 1\n0.02 1 0.1\n", "file line 2: got 3 columns; the lines before have 2"),
        (b"0.01\n", "file line 1: got 1 columns"),
        (b"1 2 3 4 5\n", "file: got 5 columns"),
        (b"0.01 1\n", r"file\.q: got 1 points"),
        (b"0.01 1\n0.02 nan\n", r"file\.r\[1\]: got nan"),
        (b"0.01 1\ninf 1\n", r"file\.q\[1\]: got inf"),
        (b"-0.01 1\n0.02 1\n", r"file\.q\[0\]: got -0\.01; must be positive"),
        (b"0.01 1 0.1\n0.02 1 0\n", r"file\.dr\[1\]: got 0\.0; must be positive"),
        (b"\xff\xfe\x00", "UTF-16"),
        pytest.param(b"0.01 1\n" * 20_001, "more than 20000 points", id="points"),
        pytest.param(b" " * (MAX_FILE_BYTES + 1), "at most", id="bytes"),
        (b"\x93NUMPY garbage", "numpy cannot read"),
        (npy(np.zeros((2, 2)))[:-8], "numpy cannot read"),
        (npy(np.array([{"a": 1}], dtype=object)), "numpy cannot read"),
        (npy(np.zeros(4)), r"float64 \[4\]"),
        (npy(np.zeros((5, 5))), r"float64 \[5, 5\]"),
        (npy(np.zeros((2, 2), dtype=complex)), "complex128"),
        (npy(np.array([["a", "b"]])), "must be numbers"),
        (pickle.dumps({"q": 1}), "not UTF-8"),
    ],
)
def test_refuses_and_says_where(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_curve(data)


def test_checks_lengths_and_resolution() -> None:
    q, r = np.array([0.01, 0.02]), np.ones(2)
    with pytest.raises(UserError, match=r"curve\.q\[1\]: got 0\.01; must not be smaller"):
        Curve(q[::-1], r).check()
    with pytest.raises(UserError, match=r"curve\.r: got 3 points; must have 2, like q"):
        Curve(q, np.ones(3)).check()
    with pytest.raises(UserError, match=r"scan\.dq\[1\]: got -0\.1"):
        Curve(q, r, dq=np.array([0.0, -0.1])).check("scan")
    with pytest.raises(UserError, match=r"curve\.relative_dq: got 0\.5"):
        Curve(q, r, relative_dq=0.5).check()
    with pytest.raises(UserError, match=r"curve\.dq\[0\]: got 0\.1; must be between 0 and 0\.3 q"):
        Curve(q, r, dq=np.array([0.1, 0.001])).check()
    with pytest.raises(UserError, match=r"curve\.r\[0\]: got 1e\+300; must be between -1000 and 1000"):
        Curve(q, 1e300 * r).check()
    with pytest.raises(UserError, match=r"curve\.dr\[0\]: got 1e-300"):
        Curve(q, r, dr=1e-300 * r).check()
    Curve(np.array([0.01, 0.01]), r).check()
