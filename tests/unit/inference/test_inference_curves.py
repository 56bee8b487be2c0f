"""Curves of the wire: units, conventions, masks, and errors that name the caller's own points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from guidehall.contracts.reflectometry.v1 import curve_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.params import FWHM_PER_SIGMA
from services.inference.curves import Measurement, decode_curve

Q = (0.01, 0.02, 0.03, 0.04)
R = (1.0, 0.5, -0.001, 0.0)
SIGMA, FWHM = curve_pb2.RESOLUTION_CONVENTION_SIGMA, curve_pb2.RESOLUTION_CONVENTION_FWHM


def read(**fields: Any) -> Measurement:
    return decode_curve(curve_pb2.Curve(**{"q": Q, "r": R, **fields}), max_points=10)


def refused(**fields: Any) -> tuple[str, str]:
    """Field and message of the refusal."""
    with pytest.raises((InvalidArgument, UserError)) as caught:
        read(**fields)
    error = caught.value
    return (error.field if isinstance(error, UserError) else error.violations[0].field), str(error)


def test_the_plainest_curve() -> None:
    measurement = read()
    curve = measurement.curve
    assert curve.q.tolist() == list(Q)
    assert curve.r.tolist() == list(R)
    assert (curve.dr, curve.dq, curve.relative_dq, curve.beam_side) == (None, None, None, None)
    assert measurement.media == {}


def test_inverse_nanometres_and_fwhm_become_inverse_angstroms_and_sigma() -> None:
    q = [10 * value for value in Q]
    unit = curve_pb2.Q_UNIT_INVERSE_NANOMETRE
    curve = read(q=q, dq=[0.05] * 4, q_unit=unit, dq_convention=FWHM, relative_dq=0.1).curve
    np.testing.assert_allclose(curve.q, Q)
    assert curve.dq is not None
    np.testing.assert_allclose(curve.dq, 0.005 / FWHM_PER_SIGMA)
    assert curve.relative_dq == pytest.approx(0.1 / FWHM_PER_SIGMA)


def test_more_segments_than_points_are_refused() -> None:
    segment = curve_pb2.AngleSegment(first_point=0, end_point=4)
    read(segments=[segment] * 4)
    field, message = refused(segments=[segment] * 5)
    assert field == "curve.segments"
    assert "5 segments" in message


def test_segments_say_their_own_resolution() -> None:
    segments = [
        curve_pb2.AngleSegment(first_point=0, end_point=2, angle_degrees=0.5, relative_dq=0.1),
        curve_pb2.AngleSegment(first_point=2, end_point=4, angle_degrees=2.0),
    ]
    curve = read(segments=segments, relative_dq=0.02, dq_convention=SIGMA).curve
    assert curve.dq is not None
    np.testing.assert_allclose(curve.dq / curve.q, [0.1, 0.1, 0.02, 0.02])
    field, _ = refused(segments=segments, dq_convention=SIGMA)
    assert field == "curve.relative_dq"


def test_masked_points_are_left_out_and_cannot_be_wrong() -> None:
    nan = float("nan")
    measurement = read(q=[nan, 0.02, 0.01, 0.04], r=[nan, 0.5, nan, 0.1], mask=[True, False, True, False])
    assert measurement.points.tolist() == [1, 3]
    assert measurement.curve.q.tolist() == [0.02, 0.04]


def test_errors_name_the_callers_own_points() -> None:
    assert refused(q=[0.01, 0.02, 0.03, -0.04], mask=[True, False, False, False])[0] == "curve.q[3]"
    assert refused(q=[0.01, 0.03, 0.02, 0.04])[0] == "curve.q[2]"
    assert refused(r=[1.0, 0.5, float("nan"), 0.1], mask=[False, True, False, False])[0] == "curve.r[2]"
    assert refused(dr=[0.1, 0.0, 0.1, 0.1])[0] == "curve.dr[1]"
    field, message = refused(q=[0.1, 0.2, 0.3, -4.0], q_unit=curve_pb2.Q_UNIT_INVERSE_NANOMETRE)
    assert field == "curve.q[3]"
    assert "-4.0" in message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"r": R[:3]}, "curve.r"),
        ({"r": ()}, "curve.r"),
        ({"q": (), "r": ()}, "curve.q"),
        ({"q": [0.01] * 11, "r": [1.0] * 11}, "curve.q"),
        ({"dr": [0.1] * 5}, "curve.dr"),
        ({"mask": [True]}, "curve.mask"),
        ({"mask": [True, True, True, False]}, "curve.mask"),
        ({"dq": [0.1] * 4}, "curve.dq_convention"),
        ({"relative_dq": 0.1}, "curve.dq_convention"),
        ({"segments": [{"first_point": 0, "end_point": 4, "relative_dq": 0.1}]}, "curve.dq_convention"),
        ({"relative_dq": 0.9, "dq_convention": SIGMA}, "curve.relative_dq"),
        ({"dq": [-0.1] * 4, "dq_convention": SIGMA}, "curve.dq[0]"),
        ({"q_unit": 7}, "curve.q_unit"),
        ({"beam_side": 7}, "curve.beam_side"),
        ({"segments": [{"first_point": 2, "end_point": 2}]}, "curve.segments[0]"),
        ({"segments": [{"first_point": 0, "end_point": 5}]}, "curve.segments[0]"),
        ({"segments": [{"first_point": -1, "end_point": 2}]}, "curve.segments[0]"),
        ({"segments": [{"end_point": 2, "scale": 0.9}]}, "curve.segments[0].scale"),
        ({"segments": [{"end_point": 2, "background": 1e-6}]}, "curve.segments[0].background"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    assert refused(**fields)[0] == field


def test_a_medium_counts_only_with_its_number() -> None:
    media = read(fronting={"material": "mystery"}, backing={"material": "D2O", "sld": 6.36}).media
    assert list(media) == ["backing"]
    assert media["backing"].sld == 6.36
    assert read(fronting={}).media["fronting"].sld == 0.0
    assert read(fronting={"material": "Air"}).media["fronting"].sld == 0.0
