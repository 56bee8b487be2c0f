"""A curve as a JSON body and as a message."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError

from guidehall.contracts.reflectometry.v1 import curve_pb2
from services.gateway.api.inference import CurveBody

WHOLE: dict[str, Any] = {
    "q": [0.1, 0.2, 0.3],
    "r": [1.0, 0.1, 0.01],
    "dr": [0.1, 0.01, 0.001],
    "dq": [0.01, 0.02, 0.03],
    "q_unit": "INVERSE_NANOMETRE",
    "dq_convention": "FWHM",
    "relative_dq": 0.05,
    "beam_side": "BACKING",
    "fronting": {"material": "silicon", "sld": 2.07, "isld": 0.01},
    "backing": {"material": "water", "sld": 6.36, "isld": 0.5},
    "mask": [False, True, False],
    "segments": [
        {"first_point": 1, "end_point": 3, "angle_degrees": 0.5, "scale": 1.1, "background": 1e-6,
         "relative_dq": 0.04}
    ],
    "measurement": {
        "sample": "s", "run": "r", "proposal": "p", "instrument": "i", "facility": "f", "start_time": "t",
        "other": {"operator": "ada"},
    },
}  # fmt: skip
PREFIXED = {"q_unit": "Q_UNIT_", "dq_convention": "RESOLUTION_CONVENTION_", "beam_side": "BEAM_SIDE_"}


def test_every_field_of_the_message_can_be_given() -> None:
    for name, message in (
        ("", curve_pb2.Curve),
        ("fronting", curve_pb2.Medium),
        ("segments", curve_pb2.AngleSegment),
        ("measurement", curve_pb2.MeasurementInfo),
    ):
        body = WHOLE[name] if name else WHOLE
        assert set(body[0] if isinstance(body, list) else body) == set(message.DESCRIPTOR.fields_by_name)
    expected = WHOLE | {name: prefix + WHOLE[name] for name, prefix in PREFIXED.items()}

    sent = MessageToDict(CurveBody.model_validate(WHOLE).message(), preserving_proto_field_name=True)

    # 64-bit integers are text in the JSON of protobuf.
    sent["segments"] = [{**item, "first_point": int(item["first_point"]), "end_point": int(item["end_point"])}
                        for item in sent["segments"]]  # fmt: skip
    assert sent == expected


def test_what_a_segment_does_not_say_stays_unset() -> None:
    curve = CurveBody.model_validate(
        {"q": [1, 2], "r": [1, 1], "segments": [{"first_point": 0, "end_point": 2}]}
    ).message()
    assert {field.name for field, _ in curve.segments[0].ListFields()} == {"end_point"}
    assert not curve.HasField("measurement")


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_point": -1, "end_point": 2},
        {"end_point": 2},
        {"first_point": 0, "end_point": 2, "relative_dq": 2},
    ],
)
def test_a_segment_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="segments"):
        CurveBody.model_validate({"q": [1, 2], "r": [1, 1], "segments": [wrong]})
