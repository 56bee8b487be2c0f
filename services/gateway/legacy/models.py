"""/api/models: weights as .pth, and the curves that a model was trained with."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import history_pb2, results_pb2
from guidehall.core.auth import current_principal
from guidehall.core.errors import NotFound, from_rpc_error
from guidehall.core.names import (
    DATASET,
    DATASET_VERSION,
    DEFAULT_PROJECT,
    JOB,
    MODEL,
    MODEL_VERSION,
    RESULT,
    USER,
)
from services.gateway.api.common import BackendsDep, Streamed, begun, chunks
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy.common import OldRouter, in_production, is_guest, user
from services.gateway.legacy.torch_files import to_torch

router = OldRouter()

T = TypeVar("T")

MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# The platform itself, for what came in nobody's name.
_NOBODY = ("", "gateway")
_MIB = 1 << 20
_KINDS = ("nr_train", "sld_train")


@dataclass(frozen=True)
class Found:
    """A model that the caller may have.

    Attributes:
        version: of the model; None for weights that were only put down here.
        upload: the dataset version with such weights.
        own: whether the caller sees it; if not, the platform asks for it in its own name.
    """

    version: models_pb2.ModelVersion | None
    upload: datasets_pb2.DatasetVersion | None
    own: bool

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        if self.version is not None:
            return self.version.weights.size_bytes
        return 0 if self.upload is None else self.upload.object.size_bytes

    @property
    def owner(self) -> str:
        """Whose it is."""
        if self.version is not None:
            return self.version.owner
        return "" if self.upload is None else self.upload.owner

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Calls in the block are made by somebody who sees it."""
        with nullcontext() if self.own else as_platform():
            yield


def dataset_of(id: str) -> str:
    """Id of the dataset that holds weights which were put down for a model."""
    return f"model-{id}"


@router.get("/models/{id}")
async def download_model(id: str, request: Request, backends: BackendsDep) -> Response:
    """The weights as a .pth file, made as they pass by."""
    found = await _find(request, backends, id)
    with found.asking():
        if found.version is not None:
            wanted = models_pb2.DownloadModelVersionRequest(name=found.version.name)
            call: Any = backends.models.DownloadModelVersion(wanted, timeout=backends.timeouts.transfer)
        else:
            assert found.upload is not None  # noqa: S101 (for the type checker)
            upload = datasets_pb2.DownloadDatasetVersionRequest(name=found.upload.name)
            call = backends.datasets.DownloadDatasetVersion(upload, timeout=backends.timeouts.transfer)
        try:
            file = await to_torch(_content(call))
        except BaseException:
            call.cancel()
            raise
    return _attachment(call, file.pieces, file.size_bytes, f"pyreflect_model_{id[:8]}.pth")


@router.get("/models/{id}/info")
async def model_info(id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Where the weights are. Only the gateway gives them, so that there is no other address."""
    try:
        found = await _find(request, backends, id)
    except HTTPException as error:
        if error.status_code != 404:
            raise
        unknown = {"size_mb": None, "source": "unknown", "download_url": None, "error": error.detail}
        return JSONResponse(unknown)
    return JSONResponse({"size_mb": _mib(found.size_bytes), "source": "local", "download_url": None})


@router.delete("/models/{id}")
async def delete_model(id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """Deletes a model; whoever may can bring it back by /api/v1."""
    found = await _find(request, backends, id)
    with found.asking():
        if found.version is not None:
            name = MODEL.format(project=DEFAULT_PROJECT, model=id)
            model = models_pb2.DeleteModelRequest(name=name)
            await backends.models.DeleteModel(model, timeout=backends.timeouts.call)
        upload = found.upload or await _upload(backends, id)
        # Somebody else may have put down weights under the id of a model.
        if upload is not None and _is_same(upload.owner, found.owner):
            name = DATASET.format(project=DEFAULT_PROJECT, dataset=dataset_of(id))
            dataset = datasets_pb2.DeleteDatasetRequest(name=name)
            await _or_none(backends.datasets.DeleteDataset(dataset, timeout=backends.timeouts.call))
    return JSONResponse({"status": "deleted", "model_id": id})


@router.get("/models/{id}/training-data-info")
async def training_data_info(id: str, request: Request, backends: BackendsDep) -> JSONResponse:
    """How large the curves are that it was trained with."""
    found = await _find(request, backends, id)
    sizes = {artifact.filename: artifact.object.size_bytes for artifact in await _artifacts(backends, found)}
    nr, sld = (sizes.get(f"{kind}.npy") for kind in _KINDS)
    answer = {"nr_size_mb": _mib(nr), "sld_size_mb": _mib(sld), "nr_url": None, "sld_url": None}
    return JSONResponse(answer)


@router.get("/models/{id}/training-data/{kind}")
async def training_data(id: str, kind: str, request: Request, backends: BackendsDep) -> Response:
    """The curves that it was trained with."""
    if kind not in _KINDS:
        raise HTTPException(400, f"type: got {kind[:80]!r}; allowed: {' or '.join(_KINDS)}")
    found = await _find(request, backends, id)
    for artifact in await _artifacts(backends, found):
        if artifact.filename == f"{kind}.npy":
            with found.asking():
                wanted = results_pb2.DownloadArtifactRequest(name=artifact.name)
                call: Any = backends.results.DownloadArtifact(wanted, timeout=backends.timeouts.transfer)
                _, messages = await begun(call)
            size = artifact.object.size_bytes
            return _attachment(call, chunks(messages), size, f"{kind}_{id[:8]}.npy")
    raise HTTPException(404, f"{id} has no {kind}.npy: its job made or kept none")


@router.get("/models/{id:path}")
@router.delete("/models/{id:path}")
async def no_model(id: str) -> Response:
    """No id has a slash."""
    raise HTTPException(400, f"model_id: got {id[:80]!r}; allowed: an id without slashes")


async def _find(request: Request, backends: Backends, id: str) -> Found:
    """A model, if the caller may have it.

    Raises:
        HTTPException: 400, 401, 403 or 404.
    """
    if not MODEL_ID.fullmatch(id):
        allowed = "1 to 63 of a-z, 0-9, -, _ and ., a letter or digit first"
        raise HTTPException(400, f"model_id: got {id[:80]!r}; allowed: {allowed}")
    if in_production(request):
        user()
    found = None if is_guest(current_principal()) else await _look(backends, id, own=True)
    if found is not None:
        return found
    with as_platform():
        found = await _look(backends, id, own=False)
    if found is None:
        raise HTTPException(404, f"model {id} does not exist")
    if found.owner not in _NOBODY:
        raise HTTPException(403, f"model {id} is somebody else's")
    if in_production(request) and not await _is_in_history(backends, found):
        raise HTTPException(403, f"model {id} is nobody's, and in none of your runs")
    return found


async def _look(backends: Backends, id: str, *, own: bool) -> Found | None:
    name = MODEL_VERSION.format(project=DEFAULT_PROJECT, model=id, version="latest")
    model = models_pb2.GetModelVersionRequest(name=name)
    version = await _or_none(backends.models.GetModelVersion(model, timeout=backends.timeouts.call))
    if version is not None:
        return Found(version, None, own)
    upload = await _upload(backends, id)
    return None if upload is None else Found(None, upload, own)


async def _upload(backends: Backends, id: str) -> datasets_pb2.DatasetVersion | None:
    """The weights that were put down under a model's id."""
    name = DATASET_VERSION.format(project=DEFAULT_PROJECT, dataset=dataset_of(id), version="latest")
    dataset = datasets_pb2.GetDatasetVersionRequest(name=name)
    upload: datasets_pb2.DatasetVersion | None = await _or_none(
        backends.datasets.GetDatasetVersion(dataset, timeout=backends.timeouts.call)
    )
    return upload


def _is_same(owner: str, other: str) -> bool:
    return owner == other or (owner in _NOBODY and other in _NOBODY)


async def _is_in_history(backends: Backends, found: Found) -> bool:
    """Whether a run of the caller's shows this model."""
    if found.version is None:
        return False
    parent = USER.format(user=current_principal().subject)
    request = history_pb2.ListHistoryEntriesRequest(
        parent=parent, page_size=1, filter=f'model_version = "{found.version.name}"'
    )
    page = await backends.history.ListHistoryEntries(request, timeout=backends.timeouts.call)
    return bool(page.entries)


async def _artifacts(backends: Backends, found: Found) -> list[results_pb2.Artifact]:
    """What the job that made a model left."""
    if found.version is None or not found.version.job:
        return []
    ids = JOB.parse(found.version.job)
    name = RESULT.format(project=ids["project"], result=ids["job"])
    request = results_pb2.GetResultRequest(name=name)
    with found.asking():
        result = await _or_none(backends.results.GetResult(request, timeout=backends.timeouts.call))
    return [] if result is None else list(result.artifacts)


async def _or_none(call: Any) -> Any:
    """What a call answers; None where there is no such thing."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if isinstance(from_rpc_error(error), NotFound):
            return None
        raise


def _attachment(call: Any, pieces: AsyncIterator[bytes], size_bytes: int, filename: str) -> Streamed:
    headers = {
        "Content-Length": str(size_bytes),
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    return Streamed(call, pieces, "application/octet-stream", filename, headers)


async def _content(call: Any) -> AsyncIterator[bytes]:
    _, messages = await begun(call)
    async for piece in chunks(messages):
        yield piece


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / _MIB, 2)
