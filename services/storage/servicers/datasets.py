"""DatasetsService and UploadRolesService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.core import names
from guidehall.core.auth import current_principal
from services.storage.datasets import Datasets, DatasetVersion, NewDataset, Upload
from services.storage.downloads import Downloads
from services.storage.series import Series, changes
from services.storage.servicers import common
from services.storage.settings import TransferSettings
from services.storage.upload_roles import UploadRoles, UploadRolesUseCases

DATASETS = "guidehall.datasets.v1.DatasetsService"
UPLOAD_ROLES = "guidehall.datasets.v1.UploadRolesService"


class DatasetsServicer(datasets_pb2_grpc.DatasetsServiceServicer):
    """Decode, call, encode."""

    def __init__(self, datasets: Datasets, downloads: Downloads, timing: TransferSettings) -> None:
        self._datasets = datasets
        self._timing = timing
        self._downloads = downloads

    async def CreateDataset(
        self, request: datasets_pb2.CreateDatasetRequest, context: Any
    ) -> datasets_pb2.Dataset:
        given = request.dataset
        new = NewDataset(
            names.project_of(request.parent),
            request.dataset_id,
            given.display_name,
            given.description,
            dict(given.labels),
        )
        caller = common.caller(DATASETS, "CreateDataset")
        return self._dataset(await self._datasets.create(caller, new, request.request_id))

    async def GetDataset(self, request: datasets_pb2.GetDatasetRequest, context: Any) -> datasets_pb2.Dataset:
        return self._dataset(await self._datasets.get(current_principal(), request.name))

    async def ListDatasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Any
    ) -> datasets_pb2.ListDatasetsResponse:
        found, token = await self._datasets.page(
            current_principal(),
            names.project_of(request.parent),
            request.filter,
            request.show_deleted,
            common.paging(request),
        )
        return datasets_pb2.ListDatasetsResponse(datasets=map(self._dataset, found), next_page_token=token)

    async def UpdateDataset(
        self, request: datasets_pb2.UpdateDatasetRequest, context: Any
    ) -> datasets_pb2.Dataset:
        given = request.dataset
        values = changes(
            "dataset", request.update_mask.paths, given.display_name, given.description, given.labels
        )
        caller = common.caller(DATASETS, "UpdateDataset")
        return self._dataset(await self._datasets.update(caller, given.name, values, given.etag))

    async def DeleteDataset(
        self, request: datasets_pb2.DeleteDatasetRequest, context: Any
    ) -> datasets_pb2.Dataset:
        caller = common.caller(DATASETS, "DeleteDataset")
        return self._dataset(await self._datasets.delete(caller, request.name, request.etag))

    async def ShareDataset(
        self, request: datasets_pb2.ShareDatasetRequest, context: Any
    ) -> datasets_pb2.Dataset:
        caller = common.caller(DATASETS, "ShareDataset")
        return self._dataset(await self._datasets.share(caller, request.name, request.add, request.remove))

    async def UploadDatasetVersion(
        self, request_iterator: AsyncIterator[datasets_pb2.UploadDatasetVersionRequest], context: Any
    ) -> datasets_pb2.DatasetVersion:
        async with common.hearing_out(request_iterator, self._timing):
            header = await common.first_message(request_iterator)
            ids = names.DATASET.parse(header.parent, "header.parent")
            upload = Upload(
                ids["project"],
                ids["dataset"],
                header.filename,
                dict(header.labels),
                common.claim("header", header.media_type, header.size_bytes, header.sha256, required=False),
                header.request_id and common.identifier("header.request_id", header.request_id),
            )
            caller = common.caller(DATASETS, "UploadDatasetVersion")
            return _version(await self._datasets.upload(caller, upload, common.pieces(request_iterator)))

    async def GetDatasetVersion(
        self, request: datasets_pb2.GetDatasetVersionRequest, context: Any
    ) -> datasets_pb2.DatasetVersion:
        return _version(await self._datasets.get_version(current_principal(), request.name))

    async def ListDatasetVersions(
        self, request: datasets_pb2.ListDatasetVersionsRequest, context: Any
    ) -> datasets_pb2.ListDatasetVersionsResponse:
        found, token = await self._datasets.page_of_versions(
            current_principal(), request.parent, common.paging(request)
        )
        return datasets_pb2.ListDatasetVersionsResponse(versions=map(_version, found), next_page_token=token)

    async def DownloadDatasetVersion(
        self, request: datasets_pb2.DownloadDatasetVersionRequest, context: Any
    ) -> AsyncIterator[datasets_pb2.DownloadDatasetVersionResponse]:
        version = await self._datasets.get_version(current_principal(), request.name)
        answer = datasets_pb2.DownloadDatasetVersionResponse
        async with aclosing(
            common.send(self._downloads, version.content, request.offset_bytes, answer)
        ) as messages:
            async for message in messages:
                yield message

    async def CreateDatasetVersionUrl(
        self, request: datasets_pb2.CreateDatasetVersionUrlRequest, context: Any
    ) -> common_pb2.PresignedUrl:
        version = await self._datasets.get_version(current_principal(), request.name)
        return common.url(self._downloads, version.content, request.expires_in_seconds)

    def _dataset(self, series: Series) -> datasets_pb2.Dataset:
        shared = common.series_fields(series, self._datasets.name(series))
        return datasets_pb2.Dataset(**shared, description=series.description)


class UploadRolesServicer(datasets_pb2_grpc.UploadRolesServiceServicer):
    """Decode, call, encode."""

    def __init__(self, upload_roles: UploadRolesUseCases, max_document_bytes: int) -> None:
        self._upload_roles = upload_roles
        self._max_document_bytes = max_document_bytes

    async def GetUploadRoles(
        self, request: datasets_pb2.GetUploadRolesRequest, context: Any
    ) -> datasets_pb2.UploadRoles:
        roles = await self._upload_roles.get(current_principal(), request.name)
        return await asyncio.to_thread(_upload_roles, roles)

    async def UpdateUploadRoles(
        self, request: datasets_pb2.UpdateUploadRolesRequest, context: Any
    ) -> datasets_pb2.UploadRoles:
        given = request.upload_roles
        replaced = await self._upload_roles.replace(
            common.caller(UPLOAD_ROLES, "UpdateUploadRoles"),
            given.name,
            dict(given.dataset_versions),
            dict(given.model_versions),
            await common.document("upload_roles.settings", given.settings, self._max_document_bytes),
            given.etag,
        )
        return await asyncio.to_thread(_upload_roles, replaced)


def _version(version: DatasetVersion) -> datasets_pb2.DatasetVersion:
    return datasets_pb2.DatasetVersion(
        name=version.name,
        version=version.version,
        object=common.object_ref(version.content),
        filename=version.content.filename,
        content_info=common.struct(version.content_info),
        labels=dict(version.labels),
        owner=version.owner,
        readers=version.readers,
        create_time=common.timestamp(version.create_time),
    )


def _upload_roles(roles: UploadRoles) -> datasets_pb2.UploadRoles:
    return datasets_pb2.UploadRoles(
        name=names.UPLOAD_ROLES.format(user=roles.user),
        dataset_versions=dict(roles.dataset_versions),
        model_versions=dict(roles.model_versions),
        settings=common.struct(roles.settings),
        update_time=common.timestamp(roles.update_time),
        etag=roles.etag,
    )
