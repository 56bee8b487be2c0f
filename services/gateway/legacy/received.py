"""Files of a form as they come in: looked at, brought to a kind that holds only numbers, sent to storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import grpc
from starlette.exceptions import HTTPException

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.core.errors import AppError, Code, InvalidArgument, NotFound, from_rpc_error
from guidehall.core.names import DATASET, DEFAULT_PROJECT
from services.gateway.backends import Backends
from services.gateway.legacy import roles, upload_checks
from services.gateway.legacy.forms import CLOSE
from services.gateway.legacy.roles import Role
from services.gateway.legacy.torch_files import (
    ALLOWED,
    TORCH_MAGIC,
    checked_safetensors,
    to_safetensors,
)
from services.gateway.legacy.upload_checks import ARRAY, AUTOMATIC, STATISTICS, WEIGHTS, Statistics
from services.gateway.uploads import DatasetUpload

# Of a dataset version with statistics: whether a network can be used with them.
COMPLETE_LABEL = "complete"
_ORIGIN = {"origin": "web"}
_ALLOWED_NAMES = f"names that end in {', '.join((*ARRAY, *WEIGHTS, *STATISTICS))}, and settings*.yml"
_REFUSALS = {Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS}


@dataclass
class ReceivedFile:
    """A file that has arrived. Until its upload is finished nothing of it stays.

    Attributes:
        upload: its way to storage; None for what is not kept as a file.
        shape: of an array.
        statistics, settings: what the file says, of these kinds.
    """

    filename: str
    upload: DatasetUpload | None = None
    shape: tuple[int, ...] | None = None
    statistics: Statistics | None = None
    settings: dict[str, Any] | None = None

    @property
    def stored_name(self) -> str:
        """What the old app would have called it: that kept statistics as an array."""
        return self.filename if self.statistics is None else f"{PurePosixPath(self.filename).stem}.npy"

    @property
    def content_name(self) -> str:
        """What it is: statistics are kept as JSON, whatever they came as."""
        return self.filename if self.statistics is None else f"{PurePosixPath(self.filename).stem}.json"

    def role(self, name: str) -> Role | None:
        """What the file is for; None for a settings file, which is for all.

        Raises:
            InvalidArgument: it cannot be that.
        """
        if name in AUTOMATIC:
            if self.settings is None:
                allowed = f"{', '.join(roles.ROLES)}; none for settings*.yml"
                raise InvalidArgument.field("roles", name, allowed)
            return None
        role = upload_checks.role_of(name)
        wanted = {"statistics": STATISTICS, "weights": WEIGHTS}.get(role.kind, ARRAY)
        if self.settings is not None or _extension(self.filename) not in wanted:
            raise InvalidArgument.field("filename", self.filename, f"{' or '.join(wanted)} for {role.name}")
        if self.shape is not None:
            upload_checks.check_shape(role, self.shape)
        return role

    def told(self, role: Role | None) -> dict[str, Any]:
        """What the answer says about it."""
        about: dict[str, Any] = {
            "filename": self.filename,
            "role": "settings" if role is None else role.name,
            "path": self.filename if role is None else role.path_of(self.stored_name),
        }
        if self.shape is not None:
            about["shape"] = list(self.shape)
        if self.statistics is not None:
            about |= {"type": "dict", "stored_as": self.stored_name}
        return about


class Intake:
    """Takes the files of one request.

    Args:
        backends: has storage.
        user: whose files they are.
        limit_bytes: of all together.

    Attributes:
        files: what has come, in order.
    """

    def __init__(self, backends: Backends, user: str, limit_bytes: int) -> None:
        self._backends = backends
        self._user = user
        self._left_bytes = limit_bytes
        self.files: list[ReceivedFile] = []

    async def take(self, filename: str, body: AsyncIterator[bytes]) -> ReceivedFile:
        """One file, as its name says.

        Raises:
            InvalidArgument: its name or its content is not one that is taken.
        """
        file = ReceivedFile(filename)
        self.files.append(file)
        extension = _extension(filename)
        if upload_checks.is_settings(filename):
            file.settings = await asyncio.to_thread(upload_checks.read_settings, await _whole(body))
        elif extension in ARRAY:
            head, rest = await _headed(body, upload_checks.HEAD_BYTES)
            file.shape = upload_checks.shape_of(head)
            await self._send(file, rest, await self._dataset(filename), "application/x-npy")
        elif extension in WEIGHTS:
            await self._take_weights(file, body, await self._dataset(filename))
        elif extension in STATISTICS:
            file.statistics = await asyncio.to_thread(upload_checks.read_statistics, await _whole(body))
            text = json.dumps(file.statistics.document, allow_nan=False).encode()
            labels = {COMPLETE_LABEL: str(file.statistics.complete).lower()}
            dataset = await self._dataset(file.content_name)
            await self._send(file, _one(text), dataset, "application/json", labels)
        else:
            raise InvalidArgument.field("filename", filename, _ALLOWED_NAMES)
        return file

    async def take_weights(self, filename: str, body: AsyncIterator[bytes], dataset: str) -> ReceivedFile:
        """A network, whatever its file is called, for a dataset by its full name.

        Raises:
            InvalidArgument: it is none.
        """
        file = ReceivedFile(filename)
        self.files.append(file)
        await self._take_weights(file, body, dataset)
        return file

    async def _take_weights(self, file: ReceivedFile, body: AsyncIterator[bytes], dataset: str) -> None:
        """Kept as safetensors, which holds nothing but numbers."""
        head, rest = await _headed(body, 9)
        if head.startswith(TORCH_MAGIC):
            rest = to_safetensors(rest)
        elif head[8:] != b"{":
            # A safetensors file begins with the length of its header, which is JSON.
            raise InvalidArgument(f"got other content; allowed: {ALLOWED}", reason="CONTENT_REFUSED")
        else:
            rest = checked_safetensors(rest)
        await self._send(file, rest, dataset, "application/octet-stream")

    async def _send(
        self,
        file: ReceivedFile,
        body: AsyncIterator[bytes],
        dataset: str,
        media_type: str,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        header = datasets_pb2.UploadDatasetVersionHeader(
            parent=dataset, filename=file.content_name, media_type=media_type, labels={**_ORIGIN, **labels}
        )
        file.upload = DatasetUpload(self._backends, header, self._left_bytes)
        await file.upload.send(body)
        self._left_bytes -= file.upload.size_bytes

    async def _dataset(self, filename: str) -> str:
        """The user's dataset for files of a name: a file replaces the one before as its next version."""
        word = re.sub(r"[^a-z0-9]+", "-", filename.lower()).strip("-")[:30] or "file"
        digest = hashlib.sha256(f"{self._user}\n{filename}".encode()).hexdigest()[:16]
        name = DATASET.format(project=DEFAULT_PROJECT, dataset=f"{word}-{digest}")
        request = datasets_pb2.GetDatasetRequest(name=name)
        try:
            found = await self._backends.datasets.GetDataset(request, timeout=self._backends.timeouts.call)
        except grpc.aio.AioRpcError as error:
            if not isinstance(from_rpc_error(error), NotFound):
                raise
            return name
        # A dataset that was deleted takes nothing any more.
        return f"{name}-{secrets.token_hex(4)}" if found.HasField("delete_time") else name

    def cancel(self) -> None:
        """Ends what is not finished."""
        for file in self.files:
            if file.upload is not None:
                file.upload.cancel()


@contextmanager
def blaming(filename: str) -> Iterator[None]:
    """Whatever is wrong with a file is said with its name.

    Raises:
        HTTPException: 400.
    """
    try:
        yield
    except (AppError, grpc.aio.AioRpcError) as error:
        told = error if isinstance(error, AppError) else from_rpc_error(error)
        if told.code not in _REFUSALS:
            raise
        raise HTTPException(400, f"{filename[:200]}: {told.message}", CLOSE) from None


def _extension(filename: str) -> str:
    return PurePosixPath(filename).suffix.lower()


async def _whole(body: AsyncIterator[bytes]) -> bytes:
    """A small file."""
    data, limit = b"", upload_checks.MAX_DOCUMENT_BYTES
    async for piece in body:
        data += piece
        if len(data) > limit:
            raise InvalidArgument.field("size", f"over {limit} bytes", f"at most {limit} bytes of this kind")
    return data


async def _headed(body: AsyncIterator[bytes], count: int) -> tuple[bytes, AsyncIterator[bytes]]:
    """How a file begins, and the whole of it."""
    head = b""
    while len(head) < count and (piece := await anext(body, None)) is not None:
        head += piece

    async def whole() -> AsyncIterator[bytes]:
        yield head
        async for piece in body:
            yield piece

    return head[:count], whole()


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data
