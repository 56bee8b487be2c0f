"""The way of every byte into the object store: counted, digested, looked into, kept only if all is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import Counter
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.errors import Aborted, DeadlineExceeded, InvalidArgument
from guidehall.core.faults import fault_point
from services.storage import garbage
from services.storage.database import Database
from services.storage.limits import Transfers
from services.storage.objects import ObjectStore, new_key
from services.storage.settings import LimitSettings, TransferSettings
from services.storage.tables import objects

_KEPT = Counter("guidehall_storage_kept_bytes", "Bytes of objects that were received whole")


@dataclass(frozen=True)
class Piece:
    """Some bytes, and where they belong."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class End:
    """The sender has sent everything, and says what that was."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Claim:
    """What a sender says beforehand; None where it does not."""

    media_type: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Stored:
    """An object that arrived whole. It stays only if a transaction keeps it."""

    key: str
    size_bytes: int
    sha256: str
    media_type: str


class Inspector(Protocol):
    """Looks at content as it passes."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; raises InvalidArgument as soon as they cannot be right."""
        ...

    def finish(self, size_bytes: int) -> dict[str, Any]:
        """What the content was; raises InvalidArgument when it was cut short."""
        ...


class Anything:
    """Takes any content."""

    def feed(self, data: bytes) -> None:
        """Takes it."""

    def finish(self, size_bytes: int) -> dict[str, Any]:  # noqa: ARG002
        """Knows nothing about it."""
        return {}


class Intake:
    """Receives objects."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        collector: garbage.Collector,
        transfers: Transfers,
        limits: LimitSettings,
        timing: TransferSettings,
    ) -> None:
        self._database = database
        self._store = store
        self._collector = collector
        self._transfers = transfers
        self._max_bytes = limits.max_object_bytes
        self._timing = timing

    def check(self, claim: Claim) -> None:
        """Refuses what is too large before the first byte.

        Raises:
            InvalidArgument: a size below 1 or above the limit.
        """
        size = claim.size_bytes
        if size is not None and not 1 <= size <= self._max_bytes:
            raise InvalidArgument.field("size_bytes", size, f"1 to {self._max_bytes} bytes")

    @asynccontextmanager
    async def receive(
        self, claim: Claim, pieces: AsyncIterator[Piece | End], inspector: Inspector, *, expects_end: bool
    ) -> AsyncIterator[Stored]:
        """Stores what comes, for the block to `keep` in its transaction; whatever goes wrong, nothing stays.

        Args:
            claim: what the sender says beforehand.
            pieces: in order, without gaps.
            inspector: looks at the content.
            expects_end: the sender says what it sent at the end too.

        Raises:
            InvalidArgument: anything about the content is not as it was said or not allowed.
            DeadlineExceeded: nothing came for too long.
            ResourceExhausted: too many transfers are under way.
            Unavailable: the object store or the database cannot be reached.
        """
        self.check(claim)
        with self._transfers.one():
            key = new_key()
            try:
                # Whether it committed need not be known: the answer to a commit can be lost.
                async with self._database.transaction() as connection:
                    await connection.execute(
                        insert(objects).values(key=key, state="writing", media_type=claim.media_type)
                    )
                fault_point("storage.intake.announced")
                stored = await self._store_in_time(key, claim, pieces, inspector, expects_end)
                fault_point("storage.intake.written")
                yield stored
            finally:
                # Says so and waits for nothing: a caller that hung up can interrupt whatever waits here.
                self._collector.give_up(key)

    async def _store_in_time(
        self,
        key: str,
        claim: Claim,
        pieces: AsyncIterator[Piece | End],
        inspector: Inspector,
        expects_end: bool,
    ) -> Stored:
        limit = self._timing.upload_seconds
        try:
            async with asyncio.timeout(limit):
                return await self._store_pieces(key, claim, pieces, inspector, expects_end)
        except TimeoutError:
            raise DeadlineExceeded(f"the upload took longer than {limit:g} s") from None

    async def _store_pieces(
        self,
        key: str,
        claim: Claim,
        pieces: AsyncIterator[Piece | End],
        inspector: Inspector,
        expects_end: bool,
    ) -> Stored:
        writer = self._store.writer(key)
        size, end = 0, None
        iterator = aiter(pieces)
        while (piece := await self._next(iterator)) is not None:
            if end is not None:
                raise InvalidArgument("message: got another message after the end; allowed: none")
            if isinstance(piece, End):
                end = piece
                continue
            self._check_piece(piece, size, claim)
            inspector.feed(piece.data)
            await writer.write(piece.data)
            size += len(piece.data)
        if expects_end and end is None:
            raise _broken("the upload stopped before its end message", "UPLOAD_INCOMPLETE")
        if size == 0:
            raise _broken("the file is empty; at least one byte is needed", "EMPTY_UPLOAD")
        _check_size(size, claim.size_bytes, end)
        inspector.finish(size)
        sha256 = await writer.finish()
        for said in (claim.sha256, end.sha256 if end else None):
            if said is not None and said != sha256:
                raise _broken(f"sha256: got {said!r}, but what arrived has {sha256!r}", "DIGEST_MISMATCH")
        return Stored(key, size, sha256, claim.media_type)

    def _check_piece(self, piece: Piece, size: int, claim: Claim) -> None:
        if piece.offset != size:
            raise InvalidArgument.field(
                "chunk.offset_bytes", piece.offset, f"{size}, where the last chunk ended"
            )
        if not piece.data:
            raise InvalidArgument.field("chunk.data", piece.data, "at least one byte")
        most = self._max_bytes if claim.size_bytes is None else claim.size_bytes
        if size + len(piece.data) > most:
            raise _broken(f"the upload is larger than {most} bytes", "UPLOAD_TOO_LARGE")

    async def _next(self, iterator: AsyncIterator[Piece | End]) -> Piece | End | None:
        """The next piece; None after the last. A sender may not fall silent."""
        limit = self._timing.idle_seconds
        try:
            async with asyncio.timeout(limit):
                return await anext(iterator, None)
        except TimeoutError:
            message = f"nothing of the upload came for {limit:g} s"
            raise DeadlineExceeded(message, reason="UPLOAD_STALLED") from None


async def keep(connection: AsyncConnection, stored: Stored) -> None:
    """Makes an object stay, if the transaction commits.

    Raises:
        Aborted: the upload took so long that the object has been given up.
    """
    kept = update(objects).where(objects.c.key == stored.key, objects.c.state == "writing")
    values = {"state": "kept", "size_bytes": stored.size_bytes, "sha256": stored.sha256}
    if (await connection.execute(kept.values(values))).rowcount != 1:
        raise Aborted("the upload took too long and was given up", reason="UPLOAD_ABANDONED")
    _KEPT.inc(stored.size_bytes)


def _check_size(size: int, claimed: int | None, end: End | None) -> None:
    for said in (claimed, end.size_bytes if end else None):
        if said is not None and said != size:
            raise _broken(f"size_bytes: got {said}, but {size} bytes arrived", "SIZE_MISMATCH")


def _broken(message: str, reason: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason)
