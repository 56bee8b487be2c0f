"""PredictionService: tensors in, tensors out, by resource name."""

# The protocol names methods and arguments.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from typing import Any

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.prediction.v1 import prediction_pb2, prediction_pb2_grpc
from guidehall.core.auth import current_principal
from services.inference.dataplane import DataPlane
from services.inference.tensors import check_count, declare_raw, encode_raw
from services.inference.versions import Reference

FULL_NAME = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """The data plane in our own words."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def Predict(
        self, request: prediction_pb2.PredictRequest, context: Any
    ) -> prediction_pb2.PredictResponse:
        reference = Reference.of_resource(request.model, "model")
        check_count("inputs", len(request.inputs))
        inputs = {
            name: declare_raw(f"inputs.{name}", tensor.datatype, tensor.shape, tensor.content)
            for name, tensor in request.inputs.items()
        }
        answer = await self._plane.infer(current_principal(), reference, inputs, request.outputs)
        outputs = {
            name: common_pb2.Tensor(datatype=tensor.datatype, shape=tensor.shape, content=encode_raw(tensor))
            for name, tensor in answer.outputs.items()
        }
        return prediction_pb2.PredictResponse(
            model_version=answer.published.name, model_digest=answer.published.digest, outputs=outputs
        )
