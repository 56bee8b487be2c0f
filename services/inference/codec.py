"""Requests and answers of the Open Inference Protocol, from its messages to plain tensors and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from guidehall.contracts.inference import open_inference_pb2 as oip
from guidehall.core.datatypes import DTYPES
from guidehall.core.errors import InvalidArgument, Unimplemented
from services.inference.tensors import (
    Declared,
    Tensor,
    bytes_tensor,
    check_count,
    check_shape,
    declare_raw,
    encode_raw,
)

# Field of InferTensorContents that holds each type; FP16 and BF16 have none and travel raw only.
_CONTENTS_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Request parameters that ask for what is not offered. Ignoring one would give a wrong answer.
_REFUSED_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")
_REFUSED_TENSOR_PARAMETERS = ("shared_memory_region", "classification")
_TIMEOUT = "timeout"


@dataclass(frozen=True)
class Inference:
    """One decoded request.

    Attributes:
        outputs: wanted outputs in order; empty for all.
        raw: whether the inputs came raw, and the reply must.
        queue_seconds: how long the request may wait for its turn; None when it does not say.
    """

    inputs: Mapping[str, Declared]
    outputs: tuple[str, ...]
    raw: bool
    queue_seconds: float | None = field(default=None)


def decode_request(request: oip.ModelInferRequest) -> Inference:
    """Reads a request by the rules of the protocol, before any model is touched; its values are left unread.

    Raises:
        InvalidArgument: names the tensor, what was expected and what came.
        Unimplemented: asks for shared memory, sequences or classification.
    """
    _refuse_parameters("parameters", request.parameters, _REFUSED_PARAMETERS)
    check_count("inputs", len(request.inputs))
    raw = bool(request.raw_input_contents)
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        got = "both raw_input_contents and contents"
        raise InvalidArgument.field("inputs", got, "either every input is raw or every input is typed")
    if raw and len(request.raw_input_contents) != len(request.inputs):
        got = f"{len(request.raw_input_contents)} buffers"
        raise InvalidArgument.field(
            "raw_input_contents", got, f"one for each of {len(request.inputs)} inputs"
        )
    inputs: dict[str, Declared] = {}
    for index, tensor in enumerate(request.inputs):
        name = f"inputs.{tensor.name}"
        if not tensor.name or tensor.name in inputs:
            raise InvalidArgument.field(f"inputs[{index}].name", tensor.name, "a name, each only once")
        _refuse_parameters(f"{name}.parameters", tensor.parameters, _REFUSED_TENSOR_PARAMETERS)
        if raw:
            buffer = request.raw_input_contents[index]
            inputs[tensor.name] = declare_raw(name, tensor.datatype, tensor.shape, buffer)
        else:
            check_shape(name, tensor.datatype, tensor.shape)
            shape, size_bytes = tuple(tensor.shape), tensor.contents.ByteSize()
            read = partial(_decode_typed, name, tensor)
            inputs[tensor.name] = Declared(tensor.datatype, shape, size_bytes, read)
    return Inference(inputs, _wanted_outputs(request.outputs), raw, _queue_seconds(request.parameters))


def encode_response(
    outputs: Mapping[str, Tensor], *, raw: bool, model_name: str, model_version: str, request_id: str
) -> oip.ModelInferResponse:
    """The reply to a request: raw when the request was, else typed."""
    response = oip.ModelInferResponse(model_name=model_name, model_version=model_version, id=request_id)
    for name, tensor in outputs.items():
        entry = response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(encode_raw(tensor))
        else:
            contents = getattr(entry.contents, _CONTENTS_FIELD[tensor.datatype])
            contents.extend(tensor.array.ravel().tolist())
    return response


def _decode_typed(name: str, tensor: oip.ModelInferRequest.InferInputTensor) -> Tensor:
    count = check_shape(name, tensor.datatype, tensor.shape)
    wanted = _CONTENTS_FIELD.get(tensor.datatype)
    if wanted is None:
        got = f"typed contents of {tensor.datatype}"
        raise InvalidArgument.field(name, got, f"{tensor.datatype} exists only in raw_input_contents")
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != wanted:
            raise InvalidArgument.field(name, descriptor.name, f"{tensor.datatype} goes into {wanted}")
    values = getattr(tensor.contents, wanted)
    if len(values) != count:
        allowed = f"{count} for {tensor.datatype} {list(tensor.shape)}"
        raise InvalidArgument.field(name, f"{len(values)} elements", allowed)
    if tensor.datatype == "BYTES":
        return bytes_tensor(list(values), tensor.shape)
    return _numbers(name, tensor.datatype, values, tensor.shape)


def _numbers(name: str, datatype: str, values: Sequence[float], shape: Sequence[int]) -> Tensor:
    dtype = DTYPES[datatype]
    # The message carries small integers as 32-bit ones: those that would wrap around are refused.
    if dtype.kind in "iu" and dtype.itemsize < 4 and len(values) > 0:
        limits = np.iinfo(dtype)
        outside = next((value for value in values if not limits.min <= value <= limits.max), None)
        if outside is not None:
            raise InvalidArgument.field(name, outside, f"{datatype} holds {limits.min} to {limits.max}")
    return Tensor(datatype, np.fromiter(values, dtype=dtype, count=len(values)).reshape(tuple(shape)))


def _wanted_outputs(outputs: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> tuple[str, ...]:
    check_count("outputs", len(outputs))
    names: list[str] = []
    for index, output in enumerate(outputs):
        if not output.name or output.name in names:
            raise InvalidArgument.field(f"outputs[{index}].name", output.name, "a name, each only once")
        _refuse_parameters(f"outputs.{output.name}.parameters", output.parameters, _REFUSED_TENSOR_PARAMETERS)
        names.append(output.name)
    return tuple(names)


def _refuse_parameters(
    where: str, parameters: Mapping[str, oip.InferParameter], refused: Sequence[str]
) -> None:
    for name in refused:
        if name in parameters:
            raise Unimplemented(
                f"{where}.{name}: this server does not offer it", metadata={"parameter": name}
            )


def _queue_seconds(parameters: Mapping[str, oip.InferParameter]) -> float | None:
    if _TIMEOUT not in parameters:
        return None
    parameter = parameters[_TIMEOUT]
    kind = parameter.WhichOneof("parameter_choice")
    microseconds = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if microseconds < 0:
        allowed = "microseconds as a whole number from 0; 0 for no limit"
        raise InvalidArgument.field("parameters.timeout", str(parameter).strip(), allowed)
    return microseconds / 1e6 if microseconds else None
