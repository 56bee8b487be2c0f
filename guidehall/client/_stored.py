"""What storage keeps: datasets, models, results."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from guidehall.client import _decode, _jobs, _lists, _names, types
from guidehall.client._config import Config
from guidehall.client._patience import Patience
from guidehall.client._steps import Call, Operation, Pause, Requests, Rpc, Upload, Work
from guidehall.client._transfers import Source, download
from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.contracts.models.v1 import models_pb2, models_pb2_grpc
from guidehall.contracts.results.v1 import results_pb2, results_pb2_grpc
from guidehall.core import names
from guidehall.core.errors import Cancelled, InvalidArgument, NotFound, Unavailable

_DATASETS = Rpc("storage", datasets_pb2_grpc.DatasetsServiceStub, "ListDatasets")
_DATASET_VERSION = Rpc("storage", datasets_pb2_grpc.DatasetsServiceStub, "GetDatasetVersion")
_DATASET_VERSIONS = Rpc("storage", datasets_pb2_grpc.DatasetsServiceStub, "ListDatasetVersions")
_UPLOAD = Rpc("storage", datasets_pb2_grpc.DatasetsServiceStub, "UploadDatasetVersion")
_DOWNLOAD = Rpc("storage", datasets_pb2_grpc.DatasetsServiceStub, "DownloadDatasetVersion")
_MODELS = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "ListModels")
_MODEL_VERSION = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "GetModelVersion")
_MODEL_VERSIONS = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "ListModelVersions")
_SET_TAG = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "SetModelTag")
_DELETE_TAG = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "DeleteModelTag")
_UPDATE_MODEL_VERSION = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "UpdateModelVersion")
_DOWNLOAD_MODEL = Rpc("storage", models_pb2_grpc.ModelsServiceStub, "DownloadModelVersion")
_RESULT = Rpc("storage", results_pb2_grpc.ResultsServiceStub, "GetResult")
_ARTIFACT = Rpc("storage", results_pb2_grpc.ResultsServiceStub, "DownloadArtifact")
_JOB_LOG = Rpc("storage", results_pb2_grpc.ResultsServiceStub, "DownloadJobLog")


def datasets(config: Config, filter: str, limit: int | None) -> Operation[None]:
    """Emits datasets."""
    request = datasets_pb2.ListDatasetsRequest(parent=f"projects/{config.project}", filter=filter)
    return _lists.items(config, _DATASETS, request, "datasets", _decode.dataset, limit)


def dataset_versions(config: Config, dataset: str, limit: int | None) -> Operation[None]:
    """Emits the versions of one dataset."""
    request = datasets_pb2.ListDatasetVersionsRequest(parent=_names.dataset(config, dataset))
    return _lists.items(config, _DATASET_VERSIONS, request, "versions", _decode.dataset_version, limit)


def dataset_version(config: Config, dataset: str) -> Operation[types.DatasetVersion]:
    """One version, or the newest."""
    request = datasets_pb2.GetDatasetVersionRequest(name=_names.dataset_version(config, dataset))
    message = yield Call(_DATASET_VERSION, request, config.timeouts.call_seconds)
    return _decode.dataset_version(message)


def upload_dataset(
    config: Config,
    content: str | Path | bytes,
    dataset: str,
    *,
    filename: str,
    media_type: str,
    labels: Mapping[str, str] | None,
) -> Operation[types.DatasetVersion]:
    """Adds a version to a dataset, which is made when it is not there."""
    source: Source = yield Work(lambda: Source(content))
    parent = _names.dataset(config, dataset)
    if "/versions/" in parent:
        raise InvalidArgument.field("dataset", dataset, "a dataset without a version")
    filename = filename or source.filename or parent.rpartition("/")[2]
    header = datasets_pb2.UploadDatasetVersionHeader(
        parent=parent,
        filename=filename,
        media_type=media_type or mimetypes.guess_type(filename)[0] or "application/octet-stream",
        size_bytes=(yield Work(source.size)),
        labels=dict(labels or {}),
        # The same for every attempt: the second of two that both arrive adds nothing.
        request_id=str(uuid.uuid4()),
    )
    patience = Patience(config.timeouts)
    while True:
        try:
            message = yield Upload(
                _UPLOAD, Requests(_pieces(header, source)), config.timeouts.transfer_seconds
            )
            return _decode.dataset_version(message)
        except (Unavailable, Cancelled):
            if patience.exhausted:
                raise
        yield Pause(patience.next_pause())


def _pieces(
    header: datasets_pb2.UploadDatasetVersionHeader, source: Source
) -> Iterator[datasets_pb2.UploadDatasetVersionRequest]:
    yield datasets_pb2.UploadDatasetVersionRequest(header=header)
    digest, offset = hashlib.sha256(), 0
    for data in source.pieces():
        chunk = common_pb2.Chunk(offset_bytes=offset, data=data)
        yield datasets_pb2.UploadDatasetVersionRequest(chunk=chunk)
        digest.update(data)
        offset += len(data)
    end = datasets_pb2.UploadEnd(size_bytes=offset, sha256=digest.hexdigest())
    yield datasets_pb2.UploadDatasetVersionRequest(end=end)


def download_dataset(config: Config, dataset: str, path: str | Path) -> Operation[Path]:
    """Writes one version, or the newest, to a file."""
    request = datasets_pb2.DownloadDatasetVersionRequest(name=_names.dataset_version(config, dataset))
    return download(config, _DOWNLOAD, request, path)


def dataset_from_result(
    config: Config, job: str, filename: str, dataset: str, labels: Mapping[str, str] | None
) -> Operation[types.DatasetVersion]:
    """Adds a file of a result to a dataset; it goes through a file of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = yield from download_artifact(config, job, filename, folder)
        return (
            yield from upload_dataset(config, path, dataset, filename=filename, media_type="", labels=labels)
        )


def models(config: Config, filter: str, limit: int | None) -> Operation[None]:
    """Emits models."""
    request = models_pb2.ListModelsRequest(parent=f"projects/{config.project}", filter=filter)
    return _lists.items(config, _MODELS, request, "models", _decode.model, limit)


def model_versions(config: Config, model: str | None, filter: str, limit: int | None) -> Operation[None]:
    """Emits the versions of one model, or of all."""
    parent = (
        names.MODEL.format(project=config.project, model="-")
        if model is None
        else _names.model(config, model)
    )
    request = models_pb2.ListModelVersionsRequest(parent=parent, filter=filter)
    return _lists.items(config, _MODEL_VERSIONS, request, "versions", _decode.model_version, limit)


def model_version(config: Config, model: str) -> Operation[types.ModelVersion]:
    """One version, or the newest."""
    request = models_pb2.GetModelVersionRequest(name=_names.model_version(config, model))
    message = yield Call(_MODEL_VERSION, request, config.timeouts.call_seconds)
    return _decode.model_version(message)


def set_model_tag(config: Config, model: str, tag: str, version: int) -> Operation[types.Model]:
    """Makes a tag point to a version."""
    request = models_pb2.SetModelTagRequest(name=_names.model_series(config, model), tag=tag, version=version)
    return _decode.model((yield Call(_SET_TAG, request, config.timeouts.call_seconds)))


def delete_model_tag(config: Config, model: str, tag: str) -> Operation[types.Model]:
    """Takes a tag away."""
    request = models_pb2.DeleteModelTagRequest(name=_names.model_series(config, model), tag=tag)
    return _decode.model((yield Call(_DELETE_TAG, request, config.timeouts.call_seconds)))


def set_pinned(config: Config, model: str, pinned: bool) -> Operation[types.ModelVersion]:
    """Pins one version, or no longer."""
    name = _names.model(config, model)
    if "/versions/" not in name:
        raise InvalidArgument.field("model", model, "a version, such as film@3")
    request = models_pb2.UpdateModelVersionRequest(
        model_version=models_pb2.ModelVersion(name=name, pinned=pinned)
    )
    request.update_mask.paths.append("pinned")
    message = yield Call(_UPDATE_MODEL_VERSION, request, config.timeouts.call_seconds)
    return _decode.model_version(message)


def download_model(config: Config, model: str, folder: str | Path) -> Operation[types.ModelVersion]:
    """Writes model.safetensors and manifest.json into a folder."""
    version = yield from model_version(config, model)
    path = Path(folder).expanduser()
    yield Work(lambda: path.mkdir(parents=True, exist_ok=True))
    # The version that was just read, even if a newer one has come since.
    request = models_pb2.DownloadModelVersionRequest(name=version.name)
    yield from download(config, _DOWNLOAD_MODEL, request, path / "model.safetensors")
    manifest = json.dumps(version.manifest, indent=2, ensure_ascii=False) + "\n"
    yield Work(lambda: (path / "manifest.json").write_text(manifest, encoding="utf-8"))
    return version


def _result_name(config: Config, text: str) -> Operation[str]:
    if "/results/" in text:
        names.RESULT.parse(text, "job")
        return text
    ids = names.JOB.parse((yield from _jobs.resolve(config, text)))
    return names.RESULT.format(project=ids["project"], result=ids["job"])


def result(config: Config, job: str) -> Operation[types.Result]:
    """What a job left."""
    name = yield from _result_name(config, job)
    message = yield Call(_RESULT, results_pb2.GetResultRequest(name=name), config.timeouts.call_seconds)
    return _decode.result(message)


def download_artifact(config: Config, job: str, filename: str, path: str | Path) -> Operation[Path]:
    """Writes one of the files that a job left."""
    found = yield from result(config, job)
    artifact = next((item for item in found.artifacts if item.filename == filename), None)
    if artifact is None:
        there = ", ".join(item.filename for item in found.artifacts) or "none"
        raise NotFound(
            f"{found.name} has no file {filename!r}; it has: {there}", metadata={"resource": filename}
        )
    request = results_pb2.DownloadArtifactRequest(name=artifact.name)
    return (yield from download(config, _ARTIFACT, request, path))


def download_log(config: Config, job: str, path: str | Path) -> Operation[Path]:
    """Writes the log of a job that has ended."""
    name = yield from _jobs.resolve(config, job)
    return (yield from download(config, _JOB_LOG, results_pb2.DownloadJobLogRequest(job=name), path))
