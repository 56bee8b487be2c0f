"""The codec against the messages themselves. Run by test_inference_codec.py, in a process of its own."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guidehall.contracts.inference import open_inference_pb2 as oip
from guidehall.core.datatypes import DTYPES
from guidehall.core.errors import InvalidArgument, Unimplemented
from services.inference.codec import decode_request, encode_response
from services.inference.tensors import Tensor, bytes_tensor, encode_raw

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@st.composite
def tensors(draw: st.DrawFn, datatypes: tuple[str, ...] = (*DTYPES, "BF16", "BYTES")) -> Tensor:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    size = int(np.prod(shape))
    if datatype == "BYTES":
        return bytes_tensor(draw(st.lists(st.binary(max_size=5), min_size=size, max_size=size)), shape)
    if datatype == "BF16":
        halves = draw(hnp.arrays("<u2", shape, elements=st.integers(0, 0x7F7F)))
        return Tensor("BF16", (halves.astype(np.uint32) << 16).view(np.float32))
    return Tensor(datatype, draw(hnp.arrays(DTYPES[datatype], shape)))


batches = st.dictionaries(st.text("abc", min_size=1, max_size=3), tensors(), min_size=1, max_size=3)
typed_batches = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), tensors(tuple(CONTENTS)), min_size=1, max_size=3
)


def raw_request(batch: dict[str, Tensor]) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(raw_input_contents=[encode_raw(tensor) for tensor in batch.values()])
    for name, tensor in batch.items():
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
    return request


def typed_request(batch: dict[str, Tensor]) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest()
    for name, tensor in batch.items():
        entry = request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        getattr(entry.contents, CONTENTS[tensor.datatype]).extend(tensor.array.ravel().tolist())
    return request


def same(left: Tensor, right: Tensor) -> bool:
    return (left.datatype, left.shape, encode_raw(left)) == (right.datatype, right.shape, encode_raw(right))


@given(batches)
def test_raw_requests_give_their_tensors_and_raw_answers(batch: dict[str, Tensor]) -> None:
    decoded = decode_request(raw_request(batch))
    assert decoded.raw
    assert list(decoded.inputs) == list(batch)
    assert all(same(decoded.inputs[name].read(), tensor) for name, tensor in batch.items())
    answer = encode_response(batch, raw=True, model_name="m", model_version="1", request_id="i")
    assert [output.name for output in answer.outputs] == list(batch)
    assert list(answer.raw_output_contents) == [encode_raw(tensor) for tensor in batch.values()]
    assert not any(output.HasField("contents") for output in answer.outputs)


@given(typed_batches)
def test_typed_requests_give_their_tensors_and_typed_answers(batch: dict[str, Tensor]) -> None:
    decoded = decode_request(typed_request(batch))
    assert not decoded.raw
    for name, tensor in batch.items():
        if tensor.array.dtype.kind != "f":
            assert same(decoded.inputs[name].read(), tensor)
        else:
            np.testing.assert_array_equal(decoded.inputs[name].read().array, tensor.array)
    numbers = {name: tensor for name, tensor in batch.items() if tensor.datatype != "FP16"}
    answer = encode_response(numbers, raw=False, model_name="m", model_version="1", request_id="i")
    assert not answer.raw_output_contents
    for output in answer.outputs:
        assert len(getattr(output.contents, CONTENTS[output.datatype])) == np.prod(output.shape)


@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused(data: bytes) -> None:
    try:
        request = oip.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    try:
        for tensor in decode_request(request).inputs.values():
            assert tensor.read().shape == tensor.shape
    except (InvalidArgument, Unimplemented):
        return


def test_values_are_left_unread_until_somebody_takes_them() -> None:
    request = raw_request({"a": Tensor("FP32", np.ones(2, np.float32))})
    request.raw_input_contents[0] = b"\0"
    tensor = decode_request(request).inputs["a"]
    assert (tensor.datatype, tensor.shape, tensor.size_bytes) == ("FP32", (2,), 1)
    with pytest.raises(InvalidArgument, match="8 bytes"):
        tensor.read()


def test_more_inputs_than_a_model_has_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="65 tensors"):
        decode_request(
            raw_request({f"x{index}": Tensor("BOOL", np.ones(1, np.bool_)) for index in range(65)})
        )


def test_queue_time_is_read_in_microseconds() -> None:
    request = raw_request({"a": Tensor("BOOL", np.ones(1, np.bool_))})
    request.parameters["timeout"].int64_param = 2_500_000
    assert decode_request(request).queue_seconds == 2.5
    request.parameters["timeout"].uint64_param = 0
    assert decode_request(request).queue_seconds is None
    request.parameters["timeout"].int64_param = -1
    with pytest.raises(InvalidArgument):
        decode_request(request)


def test_more_wanted_outputs_than_a_model_has_are_refused() -> None:
    request = raw_request({"a": Tensor("BOOL", np.ones(1, np.bool_))})
    for index in range(64):
        request.outputs.add(name=f"y{index}")
    assert len(decode_request(request).outputs) == 64
    request.outputs.add(name="z")
    with pytest.raises(InvalidArgument, match="65 tensors"):
        decode_request(request)


def test_each_wanted_output_is_named_once() -> None:
    request = raw_request({"a": Tensor("BOOL", np.ones(1, np.bool_))})
    request.outputs.add(name="y")
    assert decode_request(request).outputs == ("y",)
    request.outputs.add(name="y")
    with pytest.raises(InvalidArgument, match=r"outputs\[1\]"):
        decode_request(request)
    request.outputs[1].name = "z"
    request.outputs[1].parameters["classification"].int64_param = 3
    with pytest.raises(Unimplemented):
        decode_request(request)
