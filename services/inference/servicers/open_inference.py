"""The Open Inference Protocol: decode, call, encode."""

# The protocol names methods and arguments.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from guidehall import __version__
from guidehall.contracts.inference import open_inference_pb2 as oip
from guidehall.contracts.inference import open_inference_pb2_grpc as oip_grpc
from guidehall.core.auth import current_principal
from guidehall.core.errors import FailedPrecondition, InvalidArgument, Unimplemented
from guidehall.core.names import DEFAULT_PROJECT
from guidehall.core.threads import by_size
from guidehall.science.pipeline import InvalidModel, Manifest, TensorSpec
from services.inference.audit import AuditLog
from services.inference.codec import decode_request, encode_response
from services.inference.dataplane import DataPlane
from services.inference.versions import ModelKey, Published, Reference

FULL_NAME = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class OpenInferenceServicer(oip_grpc.GRPCInferenceServiceServicer):
    """Everything the server advertises of the protocol."""

    def __init__(self, plane: DataPlane, audit: AuditLog) -> None:
        self._plane = plane
        self._audit = audit

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Any) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Any) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._plane.ready)

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: Any
    ) -> oip.ServerMetadataResponse:
        extensions = ["model_repository", "binary_tensor_data", "parameters"]
        return oip.ServerMetadataResponse(name="guidehall", version=__version__, extensions=extensions)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Any) -> oip.ModelReadyResponse:
        try:
            reference = Reference.of_protocol(request.name, request.version)
        except InvalidArgument:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=await self._plane.is_model_ready(current_principal(), reference))

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: Any
    ) -> oip.ModelMetadataResponse:
        reference = Reference.of_protocol(request.name, request.version)
        try:
            found = await self._plane.describe(current_principal(), reference)
        except InvalidModel as error:
            raise FailedPrecondition(f"{reference}: {error}", reason="MODEL_UNREADABLE") from error
        return oip.ModelMetadataResponse(
            name=request.name,
            versions=[str(version) for version in found.versions],
            platform=found.published.architecture,
            inputs=_metadata(found.manifest.inputs),
            outputs=_metadata(found.manifest.outputs),
            properties=_properties(found.published, found.manifest),
        )

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        reference = Reference.of_protocol(request.model_name, request.model_version)
        inference = decode_request(request)
        answer = await self._plane.infer(
            current_principal(), reference, inference.inputs, inference.outputs, inference.queue_seconds
        )
        encode = partial(
            encode_response,
            answer.outputs,
            raw=inference.raw,
            model_name=request.model_name,
            model_version=str(answer.published.version),
            request_id=request.id,
        )
        return await by_size(sum(tensor.array.nbytes for tensor in answer.outputs.values()), encode)

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Any
    ) -> oip.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        lines = self._plane.index(current_principal(), ready_only=request.ready)
        return oip.RepositoryIndexResponse(
            models=[
                oip.RepositoryIndexResponse.ModelIndex(
                    name=_protocol_name(line.published.key),
                    version=str(line.published.version),
                    state=line.state,
                    reason=line.reason,
                )
                for line in lines
            ]
        )

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Any
    ) -> oip.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        if request.parameters:
            got = ", ".join(sorted(request.parameters))
            raise InvalidArgument.field("parameters", got, "none: models are served as they were published")
        reference = Reference.of_protocol(request.model_name, "")
        await self._plane.load(current_principal(), reference)
        await self._record("RepositoryModelLoad", reference)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Any
    ) -> oip.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        # Nothing depends on another model here, so unload_dependents changes nothing.
        for name in request.parameters.keys() - {"unload_dependents"}:
            raise InvalidArgument.field("parameters", name, "unload_dependents")
        reference = Reference.of_protocol(request.model_name, "")
        await self._plane.unload(current_principal(), reference)
        await self._record("RepositoryModelUnload", reference)
        return oip.RepositoryModelUnloadResponse()

    async def _record(self, method: str, reference: Reference) -> None:
        await self._audit.record(current_principal(), f"/{FULL_NAME}/{method}", str(reference))

    # Part of the protocol and not offered. The generated stubs would answer with an error of our own.

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Any) -> oip.ModelConfigResponse:
        raise Unimplemented("ModelConfig is not offered")

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Any
    ) -> oip.ModelStatisticsResponse:
        raise Unimplemented("ModelStatistics is not offered")

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Any
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        raise Unimplemented("ModelStreamInfer is not offered")
        yield oip.ModelStreamInferResponse()  # type: ignore[unreachable]  # makes it a stream


def _metadata(specs: Sequence[TensorSpec]) -> list[oip.ModelMetadataResponse.TensorMetadata]:
    return [
        oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in specs
    ]


def _properties(published: Published, manifest: Manifest) -> dict[str, str]:
    """What the protocol has no field for."""
    properties = {"digest": published.digest, "model_version": published.name}
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.unit:
            properties[f"unit.{spec.name}"] = spec.unit
    optional = [spec.name for spec in manifest.inputs if spec.optional]
    if optional:
        properties["optional_inputs"] = ",".join(optional)
    return properties


def _protocol_name(key: ModelKey) -> str:
    """Short where the short name would find it."""
    return key.model if key.project == DEFAULT_PROJECT else str(key)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidArgument.field("repository_name", name, "empty: there is one repository")
