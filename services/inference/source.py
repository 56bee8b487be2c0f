"""Where models come from: storage, asked as this service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import replace

import grpc

from guidehall.contracts.models.v1 import models_pb2, models_pb2_grpc
from guidehall.core import names
from guidehall.core.errors import DeadlineExceeded, NotFound, Unavailable, from_rpc_error
from guidehall.core.structs import from_struct
from guidehall.science.pipeline import InvalidModel
from services.inference.settings import RepositorySettings
from services.inference.versions import ModelKey, Published, Reference

# All that is asked of it here only reads.
IDEMPOTENT = (models_pb2.DESCRIPTOR.services_by_name["ModelsService"].full_name,)
_PAGE_SIZE = 100


class StorageSource:
    """Lists, describes and downloads published model versions."""

    def __init__(self, channel: grpc.aio.Channel, settings: RepositorySettings) -> None:
        self._models = models_pb2_grpc.ModelsServiceStub(channel)
        self._settings = settings
        # What the last list of each parent told: a manifest is converted once, not at every round.
        self._known: dict[str, dict[str, Published]] = {}

    async def list(self, parent: str) -> list[Published]:
        """All versions below `parent`, a model or "projects/{project}/models/-", newest first.

        Raises:
            AppError: what storage answered; Unavailable when it does not.
        """
        found: list[Published] = []
        known = self._known.get(parent, {})
        request = models_pb2.ListModelVersionsRequest(parent=parent, page_size=_PAGE_SIZE)
        while True:
            try:
                page = await self._models.ListModelVersions(
                    request, timeout=self._settings.list_timeout_seconds
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            found.extend(await asyncio.to_thread(_published, page.versions, known))
            if not page.next_page_token:
                self._known[parent] = {published.name: published for published in found}
                return found
            request.page_token = page.next_page_token

    async def get(self, reference: Reference) -> Published | None:
        """One version by number or tag, or the newest of a model; None when there is none.

        Raises:
            Unavailable: storage does not answer, or not as it should.
            DeadlineExceeded: nor before the deadline of the request at hand.
        """
        version = "latest" if reference.version is None else reference.version
        ids = {"project": reference.key.project, "model": reference.key.model, "version": version}
        request = models_pb2.GetModelVersionRequest(name=names.MODEL_VERSION.format(**ids))
        try:
            answer = await self._models.GetModelVersion(request, timeout=self._settings.list_timeout_seconds)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, NotFound):
                return None
            if isinstance(failure, DeadlineExceeded):
                raise failure from error
            # Whatever storage has against this service is nothing that its callers could put right.
            raise Unavailable("storage cannot be asked for models", reason="STORAGE_UNAVAILABLE") from error
        (published,) = await asyncio.to_thread(_published, [answer], {})
        return published

    async def download(self, published: Published) -> AsyncGenerator[bytes]:
        """The weights in pieces.

        Raises:
            InvalidModel: pieces with gaps, or another file than the one announced.
            Unavailable: storage does not send them, or stops sending.
        """
        call = self._models.DownloadModelVersion(models_pb2.DownloadModelVersionRequest(name=published.name))
        messages = aiter(call)
        offset = 0
        try:
            while True:
                async with asyncio.timeout(self._settings.download_stall_seconds):
                    message = await anext(messages, None)
                if message is None:
                    return
                if message.WhichOneof("message") == "header":
                    _check_header(message.header.object.sha256, published)
                    continue
                if message.chunk.offset_bytes != offset:
                    raise InvalidModel(
                        f"weights: a piece at {message.chunk.offset_bytes} came; expected {offset}"
                    )
                offset += len(message.chunk.data)
                yield message.chunk.data
        except TimeoutError:
            raise Unavailable(f"storage stopped sending {published.name}") from None
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"storage does not send it: {from_rpc_error(error).message}") from error
        finally:
            call.cancel()


def _check_header(sha256: str, published: Published) -> None:
    if sha256 != published.weights_sha256:
        raise InvalidModel(f"weights: storage sends {sha256}; announced was {published.weights_sha256}")


def _published(
    versions: Iterable[models_pb2.ModelVersion], known: Mapping[str, Published]
) -> list[Published]:
    """Reads what storage says; takes milliseconds for each version that is not `known` as it is."""
    return [_same(version, known.get(version.name)) or _read(version) for version in versions]


def _same(version: models_pb2.ModelVersion, known: Published | None) -> Published | None:
    """What is known, with what may have changed of it; None where the version itself is another."""
    told = (version.manifest_sha256, version.weights.sha256)
    if known is None or told != (known.manifest_sha256, known.weights_sha256):
        return None
    return replace(
        known,
        owner=version.owner,
        readers=tuple(version.readers),
        tags=tuple(version.tags),
        pinned=version.pinned,
    )


def _read(version: models_pb2.ModelVersion) -> Published:
    ids = names.MODEL_VERSION.parse(version.name)
    return Published(
        key=ModelKey(ids["project"], ids["model"]),
        version=version.version,
        owner=version.owner,
        architecture=version.architecture,
        manifest=_manifest(version),
        manifest_sha256=version.manifest_sha256,
        weights_sha256=version.weights.sha256,
        weights_bytes=version.weights.size_bytes,
        published_at=version.create_time.ToMicroseconds() / 1e6,
        readers=tuple(version.readers),
        tags=tuple(version.tags),
        pinned=version.pinned,
    )


def _manifest(version: models_pb2.ModelVersion) -> bytes:
    """The manifest as JSON, as short as storage measured it; empty, and so refused at loading, if it is no
    JSON."""
    try:
        text = json.dumps(
            from_struct(version.manifest), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except ValueError:
        return b""
    return text.encode()
