"""What a worker fetches from and leaves in storage for one job, with that job's token."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import grpc
from google.protobuf import struct_pb2

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.contracts.results.v1 import staging_pb2, staging_pb2_grpc
from guidehall.core.errors import DataLoss, OutOfRange
from services.trainer.worker.lease import CheckpointFile, LeasedJob
from services.trainer.worker.retry import calling
from services.trainer.worker.trainer_client import EOF, Metadata, StagedObject, call_metadata

CHUNK_BYTES = 1 << 20
# Kept of a data set's file name: readers tell formats apart by it.
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class StorageStubs:
    """The services of storage that a worker calls. Made once: that takes as long as a call."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.staging: Any = staging_pb2_grpc.StagingServiceStub(channel)
        self.datasets: Any = datasets_pb2_grpc.DatasetsServiceStub(channel)


class StorageClient:
    """Transfers for one lease; each raises `AppError`."""

    def __init__(
        self, stubs: StorageStubs, job: LeasedJob, *, timeout_seconds: float, transfer_seconds: float
    ) -> None:
        self._staging = stubs.staging
        self._datasets = stubs.datasets
        self._job = job
        self._timeout_seconds = timeout_seconds
        self._transfer_seconds = transfer_seconds

    def _metadata(self) -> Metadata:
        return call_metadata(self._job.token)

    async def download_dataset(self, name: str, target: Path, max_bytes: int) -> Path:
        """Fetches a dataset version, going on where an earlier try left `target`.

        Returns:
            `target`, with the suffix of the file that was uploaded.
        """

        def open_at(offset: int) -> Any:
            request = datasets_pb2.DownloadDatasetVersionRequest(name=name, offset_bytes=offset)
            return self._datasets.DownloadDatasetVersion(
                request, metadata=self._metadata(), timeout=self._transfer_seconds
            )

        header = await self._download(open_at, target, max_bytes)
        return _named_like(header.filename, target)

    async def read_checkpoint(self, checkpoint: CheckpointFile, target: Path, max_bytes: int) -> Path:
        """Fetches a committed checkpoint of this job, or of the one that it retries."""
        request = staging_pb2.ReadCheckpointRequest(
            job=checkpoint.job, lease_epoch=checkpoint.lease_epoch, ordinal=checkpoint.ordinal
        )

        def open_at(_: int) -> Any:
            return self._staging.ReadCheckpoint(
                request, metadata=self._metadata(), timeout=self._transfer_seconds
            )

        _remove(target)
        header = await self._download(open_at, target, max_bytes)
        if header.object.sha256 != checkpoint.sha256:
            raise DataLoss("the checkpoint is not the one that was committed")
        return target

    async def _download(
        self, open_at: Callable[[int], Any], target: Path, max_bytes: int
    ) -> common_pb2.ObjectHeader:
        call = open_at(_size(target))
        try:
            with target.open("ab") as file:
                header = await self._receive(call, file.write, max_bytes)
        finally:
            call.cancel()
        if await asyncio.to_thread(_sha256, target) != header.object.sha256:
            _remove(target)
            raise DataLoss("what arrived is not what is stored: the SHA-256 differs")
        return header

    async def _receive(
        self, call: Any, write: Callable[[bytes], Any], max_bytes: int
    ) -> common_pb2.ObjectHeader:
        async with calling(self._timeout_seconds):
            first = await call.read()
        if first is EOF or first.WhichOneof("message") != "header":
            raise DataLoss("a download must start with its header")
        header: common_pb2.ObjectHeader = first.header
        if header.object.size_bytes > max_bytes:
            size = header.object.size_bytes
            raise OutOfRange(f"the file has {size} bytes; this worker takes at most {max_bytes}")
        offset = header.offset_bytes
        while True:
            async with calling(self._timeout_seconds):
                message = await call.read()
            if message is EOF:
                break
            if message.chunk.offset_bytes != offset or offset + len(message.chunk.data) > max_bytes:
                raise DataLoss("the pieces of a download do not fit together")
            offset += len(message.chunk.data)
            await asyncio.to_thread(write, message.chunk.data)
        return header

    async def stage(
        self,
        kind: staging_pb2.StagedKind.ValueType,
        object_id: str,
        file: Path,
        described: StagedObject,
        manifest: Mapping[str, Any] | None = None,
    ) -> StagedObject:
        """Leaves a file, invisible until the trainer commits the attempt."""
        header = staging_pb2.StageObjectHeader(
            job=self._job.job,
            lease_epoch=self._job.epoch,
            kind=kind,
            object_id=object_id,
            object=described.message(),
            manifest=None if manifest is None else struct_of(manifest),
        )
        upload = _Upload(header, file)
        try:
            async with calling(self._transfer_seconds):
                answer = await self._staging.StageObject(
                    upload.messages(), metadata=self._metadata(), timeout=self._transfer_seconds
                )
        except asyncio.CancelledError:
            # gRPC cancels a call whose messages cannot be made.
            if upload.failure is None:
                raise
            raise DataLoss(f"{object_id} cannot be read any more") from upload.failure
        return _staged(answer.object, described)

    async def stage_checkpoint(self, ordinal: int, file: Path, described: StagedObject) -> StagedObject:
        """Leaves a checkpoint, of no effect until the trainer commits it."""
        return await self.stage(staging_pb2.STAGED_KIND_CHECKPOINT, str(ordinal), file, described)

    async def stage_artifact(self, name: str, file: Path, described: StagedObject) -> StagedObject:
        """Leaves a file of the result."""
        return await self.stage(staging_pb2.STAGED_KIND_ARTIFACT, name, file, described)

    async def stage_log(self, name: str, file: Path, described: StagedObject) -> StagedObject:
        """Leaves the log of an attempt that did not succeed."""
        return await self.stage(staging_pb2.STAGED_KIND_LOG, name, file, described)

    async def stage_model(
        self, name: str, file: Path, described: StagedObject, manifest: Mapping[str, Any]
    ) -> StagedObject:
        """Leaves a model version."""
        return await self.stage(staging_pb2.STAGED_KIND_MODEL, name, file, described, manifest)

    async def stage_result(self, document: struct_pb2.Struct) -> StagedObject:
        """Leaves the result document."""
        request = staging_pb2.StageResultRequest(
            job=self._job.job, lease_epoch=self._job.epoch, pipeline=self._job.pipeline, document=document
        )
        async with calling(self._timeout_seconds):
            answer = await self._staging.StageResult(request, metadata=self._metadata())
        stored = answer.object
        return StagedObject(stored.sha256, stored.size_bytes, stored.media_type)


def struct_of(document: Mapping[str, Any]) -> struct_pb2.Struct:
    """The document as the wire carries it."""
    struct = struct_pb2.Struct()
    struct.update(document)
    return struct


class _Upload:
    """The messages that carry a file."""

    def __init__(self, header: staging_pb2.StageObjectHeader, file: Path) -> None:
        self._header = header
        self._file = file
        self.failure: OSError | None = None

    async def messages(self) -> AsyncIterator[staging_pb2.StageObjectRequest]:
        yield staging_pb2.StageObjectRequest(header=self._header)
        try:
            # A link would lead out of the child's folder.
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as source:
                offset = 0
                while data := await asyncio.to_thread(source.read, CHUNK_BYTES):
                    chunk = common_pb2.Chunk(offset_bytes=offset, data=data)
                    yield staging_pb2.StageObjectRequest(chunk=chunk)
                    offset += len(data)
        except OSError as error:
            self.failure = error
            raise


def _staged(stored: common_pb2.ObjectRef, sent: StagedObject) -> StagedObject:
    if (stored.sha256, stored.size_bytes) != (sent.sha256, sent.size_bytes):
        raise DataLoss("storage holds something else than was sent")
    return StagedObject(stored.sha256, stored.size_bytes, stored.media_type)


def _named_like(filename: str, path: Path) -> Path:
    """The file, read-only and with the suffix of `filename`."""
    suffix = PurePosixPath(filename).suffix
    if _SUFFIX.fullmatch(suffix):
        path = path.rename(path.with_suffix(suffix))
    path.chmod(0o400)
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
