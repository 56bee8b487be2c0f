"""Files on their way from a request to storage, piece by piece: none is ever held whole."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc
from starlette.exceptions import HTTPException

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.core.errors import InvalidArgument
from services.gateway.backends import Backends

_CHUNK_BYTES = 1 << 20

_Call = grpc.aio.StreamUnaryCall[datasets_pb2.UploadDatasetVersionRequest, datasets_pb2.DatasetVersion]


async def arriving(body: AsyncIterator[bytes], idle_seconds: float) -> AsyncIterator[bytes]:
    """The pieces of a body, each of which must come in time."""
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                piece = await anext(body, None)
        except TimeoutError:
            message = f"nothing of the body came for {idle_seconds:g} seconds"
            raise HTTPException(408, message, {"Connection": "close"}) from None
        if piece is None:
            return
        yield piece


class DatasetUpload:
    """One file that becomes a version of a dataset: `send`, then `finish`. Until then nothing of it shows.

    `cancel` leaves nothing of one that is not finished; it may always be called at the end.

    Args:
        backends: has storage.
        header: what is known of the file.
        limit_bytes: the most that it may have.

    Attributes:
        size_bytes: of what was sent.
    """

    def __init__(
        self, backends: Backends, header: datasets_pb2.UploadDatasetVersionHeader, limit_bytes: int
    ) -> None:
        self._header = header
        self._limit_bytes = limit_bytes
        self._call: _Call = backends.datasets.UploadDatasetVersion(  # type: ignore[call-arg]
            timeout=backends.timeouts.transfer
        )
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    async def send(self, body: AsyncIterator[bytes]) -> None:
        """Header, and the whole body in chunks of at most 1 MiB. gRPC's flow control holds the body back when
        storage is slower.

        Raises:
            InvalidArgument: the body is larger than allowed.
        """
        try:
            await self._call.write(datasets_pb2.UploadDatasetVersionRequest(header=self._header))
            async for piece in body:
                for start in range(0, len(piece), _CHUNK_BYTES):
                    await self._send_chunk(piece[start : start + _CHUNK_BYTES])
        except asyncio.InvalidStateError:
            # Storage has already answered, with a refusal: awaiting the call gives it.
            await self._call

    async def _send_chunk(self, data: bytes) -> None:
        chunk = common_pb2.Chunk(offset_bytes=self.size_bytes, data=data)
        self._digest.update(data)
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            limit = f"{self._limit_bytes} bytes"
            raise InvalidArgument.field("body", f"over {limit}", f"at most {limit}")
        await self._call.write(datasets_pb2.UploadDatasetVersionRequest(chunk=chunk))

    async def finish(self) -> datasets_pb2.DatasetVersion:
        """Says that all was sent; the version, once it is stored."""
        end = datasets_pb2.UploadEnd(size_bytes=self.size_bytes, sha256=self._digest.hexdigest())
        try:
            await self._call.write(datasets_pb2.UploadDatasetVersionRequest(end=end))
            await self._call.done_writing()
        except asyncio.InvalidStateError:
            pass
        return await self._call

    def cancel(self) -> None:
        """Ends the call, whatever it is at."""
        self._call.cancel()
