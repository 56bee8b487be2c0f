"""The Open Inference Protocol as a common third-party client sees it.

That client brings its own copy of the protocol, which cannot live in one process with ours: nothing in here
may import `guidehall.contracts.inference` or what imports it.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc
from tritonclient.utils import InferenceServerException

from tests.fixtures.inference import line_model, publish, reflectometry_model
from tests.fixtures.storage import StorageSite
from tests.processes import Server


@pytest.fixture(scope="module")
def models(storage: StorageSite, inference: Server) -> None:
    """`contract-line` and `contract-film` are there and ready."""
    publish(storage, "contract-line", line_model(slope=2.0, intercept=1.0))
    publish(storage, "contract-film", reflectometry_model())


@pytest.fixture
def client(inference: Server, models: None) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(inference.target) as client:
        yield client


@pytest.fixture
def stub(inference: Server, models: None) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    """For what the client's own checks would not let through."""
    with grpc.insecure_channel(inference.target) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def x_tensor(values: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("x", list(values.shape), triton.np_to_triton_dtype(values.dtype))
    return tensor.set_data_from_numpy(values)


def line_request(**fields: object) -> pb.ModelInferRequest:
    """A request of three rows, raw unless `fields` say otherwise."""
    x = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[3, 1])
    given = {
        "model_name": "contract-line",
        "inputs": [x],
        "raw_input_contents": [struct.pack("<3f", 0, 1, 2)],
    }
    return pb.ModelInferRequest(**{**given, **fields})


def refusal(
    stub: pb_grpc.GRPCInferenceServiceStub, request: pb.ModelInferRequest
) -> tuple[str, list[str], str]:
    """Code, blamed fields and message."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=10)
    status = rpc_status.from_call(caught.value)
    fields = []
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            fields = [violation.field for violation in bad.field_violations]
    return caught.value.code().name, fields, status.message


def test_the_platforms_client_and_this_one_live_in_one_process() -> None:
    code = "import guidehall.client, guidehall.contracts.jobs.v1.jobs_pb2, tritonclient.grpc; print('both')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr


def test_the_server_says_what_it_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "guidehall"
    assert set(metadata.extensions) == {"model_repository", "binary_tensor_data", "parameters"}


def test_models_are_listed_and_described(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("contract-line")
    assert client.is_model_ready("projects/default/models/contract-line", "1")
    listed = {model.name: model for model in client.get_model_repository_index().models}
    assert (listed["contract-line"].version, listed["contract-line"].state) == ("1", "READY")
    described = client.get_model_metadata("contract-film")
    assert described.platform == "reflectometry.physical/1"
    assert list(described.versions) == ["1"]
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in described.inputs}
    assert inputs["q"] == ("FP32", [-1, -1])
    assert {tensor.name for tensor in described.outputs} == {"parameters", "z", "sld", "reflectivity"}


@pytest.mark.parametrize(
    ("name", "version"), [("nobody", ""), ("contract-line", "9"), ("no name!", ""), ("", "x")]
)
def test_a_model_that_is_not_there_is_not_ready(
    client: triton.InferenceServerClient, name: str, version: str
) -> None:
    assert not client.is_model_ready(name, version)


def test_an_answer_carries_values_version_and_id(client: triton.InferenceServerClient) -> None:
    x = np.array([[0.0], [1.0], [-2.5]], np.float32)
    result = client.infer("contract-line", [x_tensor(x)], request_id="run-7")
    np.testing.assert_allclose(result.as_numpy("y"), 2 * x + 1, rtol=1e-6)
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("contract-line", "1", "run-7")


async def test_the_asyncio_client_gets_the_same(inference: Server, models: None) -> None:
    async with triton_aio.InferenceServerClient(inference.target) as client:
        x = np.ones((2, 1), np.float32)
        result = await client.infer("contract-line", [x_tensor(x)])
    np.testing.assert_allclose(result.as_numpy("y"), [[3.0], [3.0]])


def test_outputs_come_as_asked_for(client: triton.InferenceServerClient) -> None:
    q = np.geomspace(0.01, 0.2, 40, dtype=np.float32)[None]
    inputs = []
    for name, values in (("q", q), ("reflectivity", np.minimum(1, (0.01 / q) ** 4))):
        tensor = triton.InferInput(name, list(values.shape), "FP32")
        inputs.append(tensor.set_data_from_numpy(values.astype(np.float32)))
    wanted = [triton.InferRequestedOutput(name) for name in ("sld", "parameters")]
    result = client.infer("contract-film", inputs, outputs=wanted)
    assert [tensor.name for tensor in result.get_response().outputs] == ["sld", "parameters"]
    assert result.as_numpy("sld").shape == (1, 256)
    assert result.as_numpy("z") is None


def test_a_batch_without_rows_is_answered_by_one_without_rows(client: triton.InferenceServerClient) -> None:
    result = client.infer("contract-line", [x_tensor(np.zeros((0, 1), np.float32))])
    assert result.as_numpy("y").shape == (0, 1)


def test_errors_reach_the_client_with_their_code(client: triton.InferenceServerClient) -> None:
    x = x_tensor(np.ones((1, 1), np.float32))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nobody", [x])
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("contract-line", [x_tensor(np.ones((1, 1), np.float64))])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "inputs.x" in caught.value.message()
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_config("contract-line")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_typed_requests_get_typed_answers(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    x = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2, 1])
    x.contents.fp32_contents.extend([0.5, 1.5])
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name="contract-line", inputs=[x]), timeout=10)
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == [2.0, 4.0]


THREE = struct.pack("<3f", 0, 1, 2)
FLOATS = pb.InferTensorContents(fp32_contents=[0, 1, 2])
TOO_LARGE = pb.InferTensorContents(int_contents=[128])


def x(datatype: str, *shape: int, name: str = "x") -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)


def raw(tensor: pb.ModelInferRequest.InferInputTensor, content: bytes = THREE) -> dict[str, object]:
    return {"inputs": [tensor], "raw_input_contents": [content]}


def typed(
    tensor: pb.ModelInferRequest.InferInputTensor, contents: pb.InferTensorContents = FLOATS
) -> dict[str, object]:
    tensor.contents.CopyFrom(contents)
    return {"inputs": [tensor], "raw_input_contents": []}


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        # Raw and typed at once, or not one buffer for each input.
        ({**typed(x("FP32", 3, 1)), "raw_input_contents": [THREE]}, "inputs"),
        ({"raw_input_contents": [THREE, THREE]}, "raw_input_contents"),
        # A length that does not fit the shape; nothing is allocated for it.
        (raw(x("FP32", 3, 1), THREE[:-1]), "inputs.x"),
        (raw(x("FP32", 1 << 40, 1)), "inputs.x"),
        (raw(x("FP32", -3, -1)), "inputs.x.shape"),
        (raw(x("FP32", 0, 1 << 62, 1 << 62), b""), "inputs.x.shape"),
        (raw(x("FP8", 3, 1)), "inputs.x.datatype"),
        # Not what the model takes, though a cast would work.
        (raw(x("INT32", 3, 1)), "inputs.x"),
        (raw(x("FP16", 6, 1)), "inputs.x"),
        (raw(x("BF16", 6, 1)), "inputs.x"),
        (raw(x("FP32", 3)), "inputs.x"),
        (raw(x("FP32", 1, 3)), "inputs.x"),
        (raw(x("FP32", 3, 1, name="w")), "inputs.w"),
        ({"inputs": [], "raw_input_contents": []}, "inputs.x"),
        ({"inputs": [x("FP32", 3, 1)] * 2, "raw_input_contents": [THREE] * 2}, "inputs[1].name"),
        (raw(x("FP32", 5000, 1), bytes(4 * 5000)), "inputs.x"),
        # An element that ends too early.
        (raw(x("BYTES", 1), b"\x09\0\0\0ab"), "inputs.x"),
        # Too few, in the wrong field, of a type that exists raw only, out of range.
        (typed(x("FP32", 4, 1)), "inputs.x"),
        (typed(x("FP64", 3, 1)), "inputs.x"),
        (typed(x("FP16", 3, 1)), "inputs.x"),
        (typed(x("INT8", 1, 1), TOO_LARGE), "inputs.x"),
        ({"outputs": [pb.ModelInferRequest.InferRequestedOutputTensor(name="z")]}, "outputs"),
        ({"model_name": "no name!"}, "model_name"),
        ({"model_version": "Newest"}, "model_version"),
        ({"parameters": {"timeout": pb.InferParameter(string_param="1s")}}, "parameters.timeout"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_by_name(
    stub: pb_grpc.GRPCInferenceServiceStub, fields: dict[str, object], blamed: str
) -> None:
    code, named, message = refusal(stub, line_request(**fields))
    assert (code, named) == ("INVALID_ARGUMENT", [blamed])
    assert "Traceback" not in message
    assert "/" not in message.replace("projects/{project}/models/{model}", "")


def test_what_is_not_offered_says_so(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    sequence = line_request(parameters={"sequence_id": pb.InferParameter(int64_param=3)})
    assert refusal(stub, sequence)[0] == "UNIMPLEMENTED"
    shared = line_request()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert refusal(stub, shared)[0] == "UNIMPLEMENTED"
    calls = [
        lambda: stub.ModelStatistics(pb.ModelStatisticsRequest(name="contract-line"), timeout=10),
        lambda: stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), timeout=10),
        lambda: list(stub.ModelStreamInfer(iter([line_request()]), timeout=10)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_unloaded_model_takes_no_work_until_it_is_loaded(
    storage: StorageSite, inference: Server, client: triton.InferenceServerClient
) -> None:
    publish(storage, "contract-unload", line_model(slope=1.0))
    x = x_tensor(np.ones((1, 1), np.float32))
    client.infer("contract-unload", [x])
    client.unload_model("contract-unload")
    assert not client.is_model_ready("contract-unload")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("contract-unload", [x])
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    index = {model.name: model for model in client.get_model_repository_index().models}
    assert (index["contract-unload"].state, index["contract-unload"].reason) == (
        "UNAVAILABLE",
        "unloaded on request",
    )
    client.load_model("contract-unload")
    client.load_model("contract-unload")
    assert client.infer("contract-unload", [x]).as_numpy("y").tolist() == [[1.0]]
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("contract-unload", config="{}")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
