"""The way of every byte out of the object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from guidehall.core.errors import DeadlineExceeded, InvalidArgument, OutOfRange
from services.storage.intake import Piece
from services.storage.limits import Transfers
from services.storage.objects import ObjectStore
from services.storage.settings import TransferSettings

_DEFAULT_URL_SECONDS = 900


@dataclass(frozen=True)
class Content:
    """A stored object as a caller may have it."""

    key: str
    size_bytes: int
    sha256: str
    media_type: str
    filename: str


class Downloads:
    """Sends objects."""

    def __init__(self, store: ObjectStore, transfers: Transfers, timing: TransferSettings) -> None:
        self._store = store
        self._transfers = transfers
        self._timing = timing

    async def pieces(self, content: Content, offset: int) -> AsyncGenerator[Piece]:
        """The content from `offset` on.

        Each block is read by a call of its own, so a slow receiver holds memory for one and no connection.

        Raises:
            OutOfRange: an offset past the end.
            DataLoss: the object is not what was stored.
            Unavailable: the object store cannot be reached.
            DeadlineExceeded: the receiver took nothing for too long.
        """
        if not 0 <= offset <= content.size_bytes:
            raise OutOfRange(f"offset_bytes: got {offset}; allowed: 0 to {content.size_bytes}")
        limit = self._timing.idle_seconds
        with self._transfers.one() as transfer:
            while offset < content.size_bytes:
                length = min(self._timing.block_bytes, content.size_bytes - offset)
                block = memoryview(await self._store.read(content.key, offset, length))
                for start in range(0, length, self._timing.chunk_bytes):
                    piece = Piece(offset + start, bytes(block[start : start + self._timing.chunk_bytes]))
                    try:
                        # Interrupts the task of the call where it waits for the receiver; that closes this
                        # generator.
                        async with asyncio.timeout(limit) as waiting:
                            yield piece
                    except GeneratorExit:
                        if not waiting.expired():
                            raise
                        transfer.stalled = True
                        # The call may live on for long, and its error holds this frame.
                        block.release()
                        message = f"nothing of the download was taken for {limit:g} s"
                        raise DeadlineExceeded(message, reason="DOWNLOAD_STALLED") from None
                offset += length

    def url(self, content: Content, seconds: int) -> tuple[str, int]:
        """An address of the content in the object store, and how long it lives.

        Raises:
            InvalidArgument: a lifetime out of range.
            FailedPrecondition: clients cannot reach the object store.
        """
        most = self._timing.max_url_seconds
        if not 0 <= seconds <= most:
            raise InvalidArgument.field(
                "expires_in_seconds", seconds, f"0 to {most}; 0 for {_DEFAULT_URL_SECONDS}"
            )
        seconds = seconds or min(_DEFAULT_URL_SECONDS, most)
        return self._store.url(content.key, content.filename, content.media_type, seconds), seconds
