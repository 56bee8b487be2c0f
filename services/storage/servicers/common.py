"""Decoding and encoding that several servicers share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.common.v1 import common_pb2
from guidehall.core import names
from guidehall.core.auth import current_principal
from guidehall.core.errors import AppError, InvalidArgument
from guidehall.core.threads import by_size
from services.storage import documents, fields, manifests
from services.storage.database import Caller
from services.storage.documents import Document
from services.storage.downloads import Content, Downloads
from services.storage.intake import Claim, End, Piece
from services.storage.lists import Paging
from services.storage.manifests import Manifest
from services.storage.series import Series
from services.storage.settings import TransferSettings

Answer = TypeVar("Answer")


class Pageable(Protocol):
    """A request for a page."""

    page_size: int
    page_token: str


def caller(service: str, method: str) -> Caller:
    """Who calls, by the full name of the service and the name of its method."""
    return Caller(current_principal(), f"/{service}/{method}")


def paging(request: Pageable) -> Paging:
    """The page that a request asks for."""
    return Paging(request.page_size, request.page_token)


def series_fields(series: Series, name: str) -> dict[str, Any]:
    """What the messages of datasets and models have in common."""
    return {
        "name": name,
        "display_name": series.display_name,
        "owner": series.owner,
        "readers": series.readers,
        "labels": dict(series.labels),
        "latest_version": series.latest_version,
        "create_time": timestamp(series.create_time),
        "update_time": timestamp(series.update_time),
        "delete_time": timestamp(series.delete_time),
        "etag": series.etag,
    }


def timestamp(time: datetime | None) -> Timestamp | None:
    """A time as it travels."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def moment(field: str, message: Timestamp) -> datetime:
    """A time that travelled.

    Raises:
        InvalidArgument: not within the years that a clock can show.
    """
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        shown = f"{message.seconds} s and {message.nanos} ns since 1970"
        raise InvalidArgument.field(field, shown, "a time in the years 1 to 9999") from None


def struct(value: Any) -> Struct:
    """A JSON object as it travels."""
    message = Struct()
    message.update(value)
    return message


async def document(field: str, message: Struct, max_bytes: int) -> Document:
    """A JSON object that travelled.

    Raises:
        InvalidArgument: too large, or something in it that cannot be kept.
    """
    return await by_size(
        message.ByteSize(), lambda: documents.document(field, _plain(field, message), max_bytes)
    )


async def manifest(field: str, message: Struct) -> Manifest:
    """A model's manifest that travelled.

    Raises:
        InvalidArgument: too large, or something is missing or of the wrong kind.
    """
    return await by_size(message.ByteSize(), lambda: manifests.read(field, _plain(field, message)))


def _plain(field: str, message: Struct) -> dict[str, Any]:
    try:
        return dict(json_format.MessageToDict(message))
    except (json_format.SerializeToJsonError, ValueError):
        raise InvalidArgument(
            f"{field}: holds a number that is not finite, or a value that is unset"
        ) from None


def object_ref(content: Content) -> common_pb2.ObjectRef:
    """What an object is."""
    return common_pb2.ObjectRef(
        sha256=content.sha256, size_bytes=content.size_bytes, media_type=content.media_type
    )


def claim(field: str, media_type: str, size_bytes: int, sha256: str, *, required: bool) -> Claim:
    """What a sender says beforehand; zero and empty mean that it says nothing, unless it has to."""
    if sha256 or required:
        fields.sha256(f"{field}.sha256", sha256)
    if size_bytes < 0 or (required and size_bytes == 0):
        raise InvalidArgument.field(f"{field}.size_bytes", size_bytes, "1 or more")
    return Claim(fields.media_type(f"{field}.media_type", media_type), size_bytes or None, sha256 or None)


async def first_message(requests: AsyncIterator[Any]) -> Any:
    """The header that begins an upload.

    Raises:
        InvalidArgument: something else began it, or nothing.
    """
    message = await anext(requests, None)
    if message is None or message.WhichOneof("message") != "header":
        raise InvalidArgument("message: the first message must be a header")
    return message.header


async def pieces(requests: AsyncIterator[Any]) -> AsyncIterator[Piece | End]:
    """What follows the header of an upload.

    Raises:
        InvalidArgument: another header, or an empty message.
    """
    async for message in requests:
        match message.WhichOneof("message"):
            case "chunk":
                yield Piece(message.chunk.offset_bytes, message.chunk.data)
            case "end":
                fields.sha256("end.sha256", message.end.sha256)
                yield End(message.end.size_bytes, message.end.sha256)
            case other:
                raise InvalidArgument.field("message", other, "a chunk or the end")


@asynccontextmanager
async def hearing_out(requests: AsyncIterator[Any], timing: TransferSettings) -> AsyncIterator[None]:
    """Lets the sender of an upload come to a pause before a refusal by the block reaches it."""
    try:
        yield
    except AppError:
        await _drain(requests, timing)
        raise


async def _drain(requests: AsyncIterator[Any], timing: TransferSettings) -> None:
    left = timing.refusal_bytes
    try:
        async with asyncio.timeout(timing.refusal_seconds):
            while left > 0:
                async with asyncio.timeout(timing.refusal_pause_seconds):
                    message = await anext(requests, None)
                if message is None:
                    return
                left -= message.ByteSize()
    except (TimeoutError, AppError):
        return


async def send(
    downloads: Downloads, content: Content, offset: int, answer: Callable[..., Answer]
) -> AsyncGenerator[Answer]:
    """A download: a header, then the content in chunks.

    Args:
        downloads: sends objects.
        content: the object.
        offset: where to begin.
        answer: the message type, with a header or a chunk.
    """
    reference = object_ref(content)
    header = common_pb2.ObjectHeader(object=reference, filename=content.filename, offset_bytes=offset)
    async with aclosing(downloads.pieces(content, offset)) as stream:
        # Not the header before it is sure that the content can be read.
        first = await anext(stream, None)
        yield answer(header=header)
        if first is not None:
            yield answer(chunk=common_pb2.Chunk(offset_bytes=first.offset, data=first.data))
        async for piece in stream:
            yield answer(chunk=common_pb2.Chunk(offset_bytes=piece.offset, data=piece.data))


def url(downloads: Downloads, content: Content, seconds: int) -> common_pb2.PresignedUrl:
    """An address of an object in the object store."""
    address, lifetime = downloads.url(content, seconds)
    return common_pb2.PresignedUrl(url=address, expires_in_seconds=lifetime)


def identifier(field: str, text: str) -> str:
    """A UUID inside a message, where the checks that every request passes do not look.

    Raises:
        InvalidArgument: something else.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidArgument.field(field, text, "a UUID") from None


def user_of(parent: str) -> str:
    """The user that a request's parent means."""
    return names.USER.parse(parent, "parent")["user"]
