"""Datasets, models, results."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import ARTIFACT, DATASET, DATASET_VERSION, MODEL, MODEL_VERSION, RESULT
from services.gateway import bundles
from services.gateway.api.common import (
    INT64,
    BackendsDep,
    Body,
    Filter,
    Offset,
    PageSize,
    PageToken,
    Streamed,
    Text,
    answer,
    download,
    resource,
    returns,
)
from services.gateway.api.control import Etag
from services.gateway.uploads import DatasetUpload, arriving

router = APIRouter()

BINARY = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}
}


class CreateDataset(Body):
    """A series of versions, empty at first."""

    dataset_id: Text = Field(
        "", max_length=63, description="Last part of the name; empty lets the server choose"
    )
    display_name: Text = Field("", max_length=200)
    description: Text = Field("", max_length=4000)
    labels: dict[Text, Text] = Field(default_factory=dict)
    request_id: Text = ""


class UpdateModel(Body):
    """What is to change; what is left out stays."""

    display_name: Text | None = Field(None, max_length=200)
    labels: dict[Text, Text] | None = Field(None, description="All of them: others go")
    etag: Etag = ""


class SetModelTag(Body):
    """Where a tag is to point."""

    version: int = Field(ge=1, lt=INT64, description="Number of a version")
    etag: Etag = ""


class UpdateModelVersion(Body):
    """What is to change; all else of a version is immutable."""

    pinned: bool = Field(description="Whether the inference service keeps it in memory")


class UpdateDataset(UpdateModel):
    """What is to change; what is left out stays."""

    description: Text | None = Field(None, max_length=4000)


@router.post("/datasets", status_code=201, tags=["datasets"], **returns(datasets_pb2.Dataset))
async def create_dataset(body: CreateDataset, backends: BackendsDep) -> JSONResponse:
    """Creates an empty dataset. Uploading a version creates it too."""
    dataset = datasets_pb2.Dataset(
        display_name=body.display_name, description=body.description, labels=body.labels
    )
    request = datasets_pb2.CreateDatasetRequest(
        dataset_id=body.dataset_id, dataset=dataset, request_id=body.request_id
    )
    return await answer(await backends.datasets.CreateDataset(request, timeout=backends.timeouts.call), 201)


@router.get("/datasets", tags=["datasets"], **returns(datasets_pb2.ListDatasetsResponse))
async def list_datasets(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = "", filter: Filter = ""
) -> JSONResponse:
    """Datasets, newest first."""
    request = datasets_pb2.ListDatasetsRequest(page_size=page_size, page_token=page_token, filter=filter)
    return await answer(await backends.datasets.ListDatasets(request, timeout=backends.timeouts.call))


@router.get("/datasets/{dataset}", tags=["datasets"], **returns(datasets_pb2.Dataset))
async def get_dataset(dataset: str, backends: BackendsDep) -> JSONResponse:
    """One dataset."""
    request = datasets_pb2.GetDatasetRequest(name=resource(DATASET, dataset=dataset))
    return await answer(await backends.datasets.GetDataset(request, timeout=backends.timeouts.call))


@router.patch("/datasets/{dataset}", tags=["datasets"], **returns(datasets_pb2.Dataset))
async def update_dataset(dataset: str, body: UpdateDataset, backends: BackendsDep) -> JSONResponse:
    """Changes name, description or labels."""
    changed = _changed(body, "display_name, description or labels")
    request = datasets_pb2.UpdateDatasetRequest(
        dataset=datasets_pb2.Dataset(name=resource(DATASET, dataset=dataset), etag=body.etag, **changed)
    )
    request.update_mask.paths.extend(changed)
    return await answer(await backends.datasets.UpdateDataset(request, timeout=backends.timeouts.call))


@router.delete("/datasets/{dataset}", tags=["datasets"], **returns(datasets_pb2.Dataset))
async def delete_dataset(dataset: str, backends: BackendsDep) -> JSONResponse:
    """Hides a dataset; versions that jobs pinned stay readable to them."""
    request = datasets_pb2.DeleteDatasetRequest(name=resource(DATASET, dataset=dataset))
    return await answer(await backends.datasets.DeleteDataset(request, timeout=backends.timeouts.call))


@router.post(
    "/datasets/{dataset}/versions",
    status_code=201,
    tags=["datasets"],
    openapi_extra=BINARY,
    **returns(datasets_pb2.DatasetVersion),
)
async def upload_dataset_version(
    dataset: str,
    http_request: Request,
    backends: BackendsDep,
    filename: Annotated[str, Query(min_length=1, max_length=255)],
    request_id: str = "",
    content_length: Annotated[int | None, Header(include_in_schema=False)] = None,
) -> JSONResponse:
    """Adds a version: the body is the file itself. It is passed on as it arrives and kept only when
    complete."""
    http = http_request.app.state.settings.http
    limit = http.max_upload_bytes
    if content_length is not None and content_length > limit:
        raise InvalidArgument.field("Content-Length", content_length, f"at most {limit} bytes")
    header = datasets_pb2.UploadDatasetVersionHeader(
        parent=resource(DATASET, dataset=dataset),
        filename=filename,
        media_type=http_request.headers.get("content-type", "application/octet-stream"),
        size_bytes=content_length or 0,
        request_id=request_id,
    )
    upload = DatasetUpload(backends, header, limit)
    try:
        await upload.send(arriving(http_request.stream(), http.idle_seconds))
        return await answer(await upload.finish(), 201)
    finally:
        upload.cancel()


@router.get(
    "/datasets/{dataset}/versions", tags=["datasets"], **returns(datasets_pb2.ListDatasetVersionsResponse)
)
async def list_dataset_versions(
    dataset: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Versions of a dataset, newest first."""
    request = datasets_pb2.ListDatasetVersionsRequest(
        parent=resource(DATASET, dataset=dataset), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.datasets.ListDatasetVersions(request, timeout=backends.timeouts.call))


@router.get(
    "/datasets/{dataset}/versions/{version}", tags=["datasets"], **returns(datasets_pb2.DatasetVersion)
)
async def get_dataset_version(dataset: str, version: str, backends: BackendsDep) -> JSONResponse:
    """One version; `latest` is the newest."""
    request = datasets_pb2.GetDatasetVersionRequest(
        name=resource(DATASET_VERSION, dataset=dataset, version=version)
    )
    return await answer(await backends.datasets.GetDatasetVersion(request, timeout=backends.timeouts.call))


@router.get(
    "/datasets/{dataset}/versions/{version}/content", tags=["datasets"], response_class=StreamingResponse
)
async def download_dataset_version(
    dataset: str, version: str, backends: BackendsDep, offset: Offset = 0
) -> StreamingResponse:
    """The bytes of a version."""
    request = datasets_pb2.DownloadDatasetVersionRequest(
        name=resource(DATASET_VERSION, dataset=dataset, version=version), offset_bytes=offset
    )
    return await download(
        backends.datasets.DownloadDatasetVersion(request, timeout=backends.timeouts.transfer)
    )


@router.get("/models", tags=["models"], **returns(models_pb2.ListModelsResponse))
async def list_models(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = "", filter: Filter = ""
) -> JSONResponse:
    """Models, newest first."""
    request = models_pb2.ListModelsRequest(page_size=page_size, page_token=page_token, filter=filter)
    return await answer(await backends.models.ListModels(request, timeout=backends.timeouts.call))


@router.get("/models/{model}", tags=["models"], **returns(models_pb2.Model))
async def get_model(model: str, backends: BackendsDep) -> JSONResponse:
    """One model."""
    request = models_pb2.GetModelRequest(name=resource(MODEL, model=model))
    return await answer(await backends.models.GetModel(request, timeout=backends.timeouts.call))


@router.patch("/models/{model}", tags=["models"], **returns(models_pb2.Model))
async def update_model(model: str, body: UpdateModel, backends: BackendsDep) -> JSONResponse:
    """Changes name or labels; the versions stay what they are."""
    changed = _changed(body, "display_name or labels")
    request = models_pb2.UpdateModelRequest(
        model=models_pb2.Model(name=resource(MODEL, model=model), etag=body.etag, **changed)
    )
    request.update_mask.paths.extend(changed)
    return await answer(await backends.models.UpdateModel(request, timeout=backends.timeouts.call))


def _changed(body: UpdateModel, allowed: str) -> dict[str, Any]:
    changed = body.model_dump(exclude={"etag"}, exclude_none=True)
    if not changed:
        raise InvalidArgument(f"nothing is to change: give {allowed}")
    return changed


@router.delete("/models/{model}", tags=["models"], **returns(models_pb2.Model))
async def delete_model(model: str, backends: BackendsDep) -> JSONResponse:
    """Hides a model from lists and from serving; `:undelete` brings it back. Refused while a version is
    pinned."""
    request = models_pb2.DeleteModelRequest(name=resource(MODEL, model=model))
    return await answer(await backends.models.DeleteModel(request, timeout=backends.timeouts.call))


@router.post("/models/{model}:undelete", tags=["models"], **returns(models_pb2.Model))
async def undelete_model(model: str, backends: BackendsDep) -> JSONResponse:
    """Brings a deleted model back."""
    request = models_pb2.UndeleteModelRequest(name=resource(MODEL, model=model))
    return await answer(await backends.models.UndeleteModel(request, timeout=backends.timeouts.call))


@router.put("/models/{model}/tags/{tag}", tags=["models"], **returns(models_pb2.Model))
async def set_model_tag(model: str, tag: str, body: SetModelTag, backends: BackendsDep) -> JSONResponse:
    """Makes a tag point to a version, whether it pointed to another before or not."""
    request = models_pb2.SetModelTagRequest(
        name=resource(MODEL, model=model), tag=tag, version=body.version, etag=body.etag
    )
    return await answer(await backends.models.SetModelTag(request, timeout=backends.timeouts.call))


@router.delete("/models/{model}/tags/{tag}", tags=["models"], **returns(models_pb2.Model))
async def delete_model_tag(model: str, tag: str, backends: BackendsDep) -> JSONResponse:
    """Takes a tag away; one that is not there is no error."""
    request = models_pb2.DeleteModelTagRequest(name=resource(MODEL, model=model), tag=tag)
    return await answer(await backends.models.DeleteModelTag(request, timeout=backends.timeouts.call))


@router.get("/models/{model}/versions", tags=["models"], **returns(models_pb2.ListModelVersionsResponse))
async def list_model_versions(
    model: str,
    backends: BackendsDep,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    filter: Filter = "",
) -> JSONResponse:
    """Versions of a model, newest first; `-` lists those of all models."""
    request = models_pb2.ListModelVersionsRequest(
        parent=resource(MODEL, model=model), page_size=page_size, page_token=page_token, filter=filter
    )
    return await answer(await backends.models.ListModelVersions(request, timeout=backends.timeouts.call))


@router.get("/models/{model}/versions/{version}", tags=["models"], **returns(models_pb2.ModelVersion))
async def get_model_version(model: str, version: str, backends: BackendsDep) -> JSONResponse:
    """One version with its manifest; `latest` is the newest, a tag the one that it points to."""
    request = models_pb2.GetModelVersionRequest(name=resource(MODEL_VERSION, model=model, version=version))
    return await answer(await backends.models.GetModelVersion(request, timeout=backends.timeouts.call))


@router.patch("/models/{model}/versions/{version}", tags=["models"], **returns(models_pb2.ModelVersion))
async def update_model_version(
    model: str, version: str, body: UpdateModelVersion, backends: BackendsDep
) -> JSONResponse:
    """Pins a version, or no longer: the inference service keeps it in memory, and its model cannot be
    deleted. For operators."""
    name = resource(MODEL_VERSION, model=model, version=version)
    request = models_pb2.UpdateModelVersionRequest(
        model_version=models_pb2.ModelVersion(name=name, pinned=body.pinned)
    )
    request.update_mask.paths.append("pinned")
    return await answer(await backends.models.UpdateModelVersion(request, timeout=backends.timeouts.call))


@router.get("/models/{model}/versions/{version}/content", tags=["models"], response_class=StreamingResponse)
async def download_model_version(
    model: str, version: str, backends: BackendsDep, offset: Offset = 0
) -> StreamingResponse:
    """The weights of a version, as safetensors."""
    request = models_pb2.DownloadModelVersionRequest(
        name=resource(MODEL_VERSION, model=model, version=version), offset_bytes=offset
    )
    return await download(backends.models.DownloadModelVersion(request, timeout=backends.timeouts.transfer))


@router.get("/results", tags=["results"], **returns(results_pb2.ListResultsResponse))
async def list_results(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = "", filter: Filter = ""
) -> JSONResponse:
    """Results without their documents, newest first."""
    request = results_pb2.ListResultsRequest(page_size=page_size, page_token=page_token, filter=filter)
    return await answer(await backends.results.ListResults(request, timeout=backends.timeouts.call))


@router.get("/results/{result}", tags=["results"], **returns(results_pb2.Result))
async def get_result(result: str, backends: BackendsDep) -> JSONResponse:
    """One result: its document and its artifacts. A result's id is its job's id."""
    request = results_pb2.GetResultRequest(name=resource(RESULT, result=result))
    return await answer(await backends.results.GetResult(request, timeout=backends.timeouts.call))


@router.get("/results/{result}/bundle", tags=["results"], response_class=StreamingResponse)
async def download_bundle(result: str, backends: BackendsDep) -> StreamingResponse:
    """A ZIP archive of a result, its job and all of its artifacts."""
    request = results_pb2.GetResultRequest(name=resource(RESULT, result=result))
    found = await backends.results.GetResult(request, timeout=backends.timeouts.call)
    bundle = await bundles.bundle(backends, found)
    name = found.name.rpartition("/")[2]
    return Streamed(bundle, bundle.pieces(), bundles.MEDIA_TYPE, f"{name}.zip")


@router.get("/results/{result}/artifacts/{artifact}", tags=["results"], response_class=StreamingResponse)
async def download_artifact(
    result: str, artifact: str, backends: BackendsDep, offset: Offset = 0
) -> StreamingResponse:
    """The bytes of one artifact."""
    request = results_pb2.DownloadArtifactRequest(
        name=resource(ARTIFACT, result=result, artifact=artifact), offset_bytes=offset
    )
    return await download(backends.results.DownloadArtifact(request, timeout=backends.timeouts.transfer))
