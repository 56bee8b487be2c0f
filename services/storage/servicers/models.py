"""ModelsService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.models.v1 import models_pb2, models_pb2_grpc
from guidehall.core import names
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument
from services.storage import manifests
from services.storage.downloads import Downloads
from services.storage.manifests import TensorSpec
from services.storage.models import Models, ModelVersion, Publication
from services.storage.series import Series, changes
from services.storage.servicers import common
from services.storage.settings import TransferSettings

MODELS = "guidehall.models.v1.ModelsService"
WEIGHTS_MEDIA_TYPE = "application/octet-stream"


class ModelsServicer(models_pb2_grpc.ModelsServiceServicer):
    """Decode, call, encode."""

    def __init__(self, models: Models, downloads: Downloads, timing: TransferSettings) -> None:
        self._models = models
        self._timing = timing
        self._downloads = downloads

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.Model:
        return _model(await self._models.get(current_principal(), request.name))

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Any
    ) -> models_pb2.ListModelsResponse:
        found, token = await self._models.page(
            current_principal(),
            names.project_of(request.parent),
            request.filter,
            request.show_deleted,
            common.paging(request),
        )
        return models_pb2.ListModelsResponse(models=map(_model, found), next_page_token=token)

    async def UpdateModel(self, request: models_pb2.UpdateModelRequest, context: Any) -> models_pb2.Model:
        given = request.model
        values = changes("model", request.update_mask.paths, given.display_name, None, given.labels)
        caller = common.caller(MODELS, "UpdateModel")
        return _model(await self._models.update(caller, given.name, values, given.etag))

    async def DeleteModel(self, request: models_pb2.DeleteModelRequest, context: Any) -> models_pb2.Model:
        caller = common.caller(MODELS, "DeleteModel")
        return _model(await self._models.set_deleted(caller, request.name, True, request.etag))

    async def UndeleteModel(self, request: models_pb2.UndeleteModelRequest, context: Any) -> models_pb2.Model:
        caller = common.caller(MODELS, "UndeleteModel")
        return _model(await self._models.set_deleted(caller, request.name, False))

    async def ShareModel(self, request: models_pb2.ShareModelRequest, context: Any) -> models_pb2.Model:
        caller = common.caller(MODELS, "ShareModel")
        return _model(await self._models.share(caller, request.name, request.add, request.remove))

    async def SetModelTag(self, request: models_pb2.SetModelTagRequest, context: Any) -> models_pb2.Model:
        caller = common.caller(MODELS, "SetModelTag")
        return _model(
            await self._models.set_tag(caller, request.name, request.tag, request.version, request.etag)
        )

    async def DeleteModelTag(
        self, request: models_pb2.DeleteModelTagRequest, context: Any
    ) -> models_pb2.Model:
        caller = common.caller(MODELS, "DeleteModelTag")
        return _model(await self._models.delete_tag(caller, request.name, request.tag, request.etag))

    async def UpdateModelVersion(
        self, request: models_pb2.UpdateModelVersionRequest, context: Any
    ) -> models_pb2.ModelVersion:
        paths = list(request.update_mask.paths)
        if set(paths) != {"pinned"}:
            raise InvalidArgument.field("update_mask", ", ".join(paths), "pinned: all else is immutable")
        given, caller = request.model_version, common.caller(MODELS, "UpdateModelVersion")
        version = await self._models.set_pinned(caller, given.name, given.pinned)
        return await asyncio.to_thread(_version, version)

    async def GetModelVersion(
        self, request: models_pb2.GetModelVersionRequest, context: Any
    ) -> models_pb2.ModelVersion:
        version = await self._models.get_version(current_principal(), request.name)
        return await asyncio.to_thread(_version, version)

    async def ListModelVersions(
        self, request: models_pb2.ListModelVersionsRequest, context: Any
    ) -> models_pb2.ListModelVersionsResponse:
        found, token = await self._models.page_of_versions(
            current_principal(), request.parent, request.filter, common.paging(request)
        )
        return await asyncio.to_thread(
            lambda: models_pb2.ListModelVersionsResponse(versions=map(_version, found), next_page_token=token)
        )

    async def PublishModelVersion(
        self, request_iterator: AsyncIterator[models_pb2.PublishModelVersionRequest], context: Any
    ) -> models_pb2.ModelVersion:
        async with common.hearing_out(request_iterator, self._timing):
            header = await common.first_message(request_iterator)
            ids = names.MODEL.parse(header.parent, "header.parent")
            publication = Publication(
                ids["project"],
                ids["model"],
                await common.manifest("manifest", header.manifest),
                dict(header.labels),
                common.claim("header", WEIGHTS_MEDIA_TYPE, header.size_bytes, header.sha256, required=True),
                header.request_id and common.identifier("header.request_id", header.request_id),
            )
            caller = common.caller(MODELS, "PublishModelVersion")
            version = await self._models.publish(caller, publication, common.pieces(request_iterator))
            return await asyncio.to_thread(_version, version)

    async def DownloadModelVersion(
        self, request: models_pb2.DownloadModelVersionRequest, context: Any
    ) -> AsyncIterator[models_pb2.DownloadModelVersionResponse]:
        version = await self._models.get_version(current_principal(), request.name)
        answer = models_pb2.DownloadModelVersionResponse
        async with aclosing(
            common.send(self._downloads, version.content, request.offset_bytes, answer)
        ) as messages:
            async for message in messages:
                yield message

    async def CreateModelVersionUrl(
        self, request: models_pb2.CreateModelVersionUrlRequest, context: Any
    ) -> common_pb2.PresignedUrl:
        version = await self._models.get_version(current_principal(), request.name)
        return common.url(self._downloads, version.content, request.expires_in_seconds)


def _model(series: Series) -> models_pb2.Model:
    name = names.MODEL.format(project=series.project, model=series.id)
    return models_pb2.Model(**common.series_fields(series, name), tags=series.tags)


def _version(version: ModelVersion) -> models_pb2.ModelVersion:
    return models_pb2.ModelVersion(
        name=version.name,
        version=version.version,
        architecture=version.architecture,
        manifest=common.struct(version.manifest),
        manifest_sha256=version.manifest_sha256,
        weights=common.object_ref(version.content),
        inputs=map(_tensor, manifests.tensors(version.manifest, "inputs")),
        outputs=map(_tensor, manifests.tensors(version.manifest, "outputs")),
        metrics=manifests.metrics(version.manifest),
        job=version.job,
        owner=version.owner,
        readers=version.readers,
        tags=version.tags,
        pinned=version.pinned,
        labels=dict(version.labels),
        create_time=common.timestamp(version.create_time),
    )


def _tensor(spec: TensorSpec) -> common_pb2.TensorSpec:
    return common_pb2.TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=spec.shape,
        unit=spec.unit,
        description=spec.description,
    )
