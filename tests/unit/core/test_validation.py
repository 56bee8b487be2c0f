"""Rules that hold for every request."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from guidehall.contracts.common.v1.common_pb2 import Chunk
from guidehall.contracts.jobs.v1.jobs_pb2 import ListJobsRequest, SubmitJobRequest
from guidehall.core.errors import InvalidArgument
from guidehall.core.validation import MAX_STRING_BYTES, MAX_STRUCT_DEPTH, validate

MOST = 2000


def with_params(params: dict[str, Any]) -> SubmitJobRequest:
    request = SubmitJobRequest()
    request.params.update(params)
    return request


@pytest.mark.parametrize(
    "request_",
    [
        SubmitJobRequest(),
        ListJobsRequest(page_size=5, page_token="x" * 1024),
        SubmitJobRequest(request_id="7f0e9f5c-2f0a-4a35-9d42-1f2f3a4b5c6d"),
        SubmitJobRequest(display_name="x" * MAX_STRING_BYTES),
        SubmitJobRequest(display_name="é" * (MAX_STRING_BYTES // 2)),
        SubmitJobRequest(labels={"a": "b"}),
        with_params({"a": [1, {"b": None}], "c": "d"}),
        Chunk(data=b"x" * (10 * MAX_STRING_BYTES)),
    ],
)
def test_what_is_sound_passes(request_: Message) -> None:
    validate(request_, MOST)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ListJobsRequest(page_size=-1), "page_size"),
        (ListJobsRequest(page_token="x" * 1025), "page_token"),
        (SubmitJobRequest(request_id="7"), "request_id"),
        (SubmitJobRequest(display_name="x" * (MAX_STRING_BYTES + 1)), "display_name"),
        (SubmitJobRequest(display_name="é" * (MAX_STRING_BYTES // 2 + 1)), "display_name"),
        (with_params({"a": {"b": [1, math.nan]}}), "params.a.b[1]"),
        (with_params({"a": [[-math.inf]]}), "params.a[0][0]"),
    ],
)
def test_what_is_not_is_named(request_: Message, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate(request_, MOST)

    assert [violation.field for violation in caught.value.violations] == [field]
    assert len(caught.value.message) < 500


def test_a_text_in_a_list_is_named_by_its_place() -> None:
    from guidehall.contracts.models.v1 import models_pb2
    from guidehall.contracts.results.v1 import results_pb2
    from guidehall.contracts.workers.v1 import workers_pb2

    repeated = next(
        (message, field)
        for module in (workers_pb2, models_pb2, results_pb2)
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.is_repeated and field.type == field.TYPE_STRING
    )
    request = repeated[0]._concrete_class()
    getattr(request, repeated[1].name).extend(["fine", "x" * (MAX_STRING_BYTES + 1)])

    with pytest.raises(InvalidArgument, match=rf"{repeated[1].name}\[1\]"):
        validate(request, MOST)


def test_nesting_is_bounded() -> None:
    params: dict[str, Any] = {}
    for _ in range(MAX_STRUCT_DEPTH + 1):
        params = {"a": params}

    with pytest.raises(InvalidArgument, match="nested more than"):
        validate(with_params(params), MOST)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_exactly_the_finite_structs_pass(params: dict[str, Any]) -> None:
    request = with_params(params)

    if _finite(params):
        validate(request, MOST)
    else:
        with pytest.raises(InvalidArgument):
            validate(request, MOST)
