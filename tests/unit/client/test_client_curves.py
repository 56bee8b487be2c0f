"""A curve between its value and its message."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from guidehall.client import AngleSegment, BeamSide, Curve, MeasurementInfo, Medium, QUnit, Resolution
from guidehall.client._prediction import _from_curve, _to_curve
from guidehall.contracts.reflectometry.v1 import curve_pb2

WHOLE = Curve(
    q=np.array([0.1, 0.2, 0.3]),
    r=np.array([1.0, 0.1, 0.01]),
    dr=np.array([0.1, 0.01, 0.001]),
    dq=np.array([0.01, 0.02, 0.03]),
    q_unit=QUnit.INVERSE_NANOMETRE,
    dq_convention=Resolution.FWHM,
    relative_dq=0.05,
    beam_side=BeamSide.BACKING,
    mask=np.array([False, True, False]),
    fronting=Medium(2.07, 0.01, "silicon"),
    backing=Medium(6.36),
    segments=(AngleSegment(0, 2, 0.5, 1.1, 1e-6, 0.04), AngleSegment(2, 3)),
    measurement=MeasurementInfo("s", "r", "p", "i", "f", "2026-03-01T09:30:00Z", {"operator": "ada"}),
)


def test_every_field_of_the_message_is_sent_and_comes_back() -> None:
    message = _to_curve(WHOLE)
    assert {field.name for field, _ in message.ListFields()} == set(curve_pb2.Curve.DESCRIPTOR.fields_by_name)
    info = message.measurement.ListFields()
    assert {field.name for field, _ in info} == set(curve_pb2.MeasurementInfo.DESCRIPTOR.fields_by_name)
    assert not message.segments[1].HasField("scale")
    again = _from_curve(message)
    for field in fields(Curve):
        np.testing.assert_equal(getattr(again, field.name), getattr(WHOLE, field.name), field.name)


def test_what_is_not_said_is_not_sent() -> None:
    message = _to_curve(Curve(q=np.array([0.1, 0.2]), r=np.array([1.0, 0.1])))
    assert {field.name for field, _ in message.ListFields()} == {"q", "r", "q_unit"}
