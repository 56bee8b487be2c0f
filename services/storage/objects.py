"""The object store: keys and bytes, nothing else. What an object is, and its digest, are in Postgres.

Only what every S3 server does alike is used: no metadata, no tags, no preconditions; a key is used once and
is never the beginning of another.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import islice
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from guidehall.core.errors import DataLoss, FailedPrecondition, Unavailable
from guidehall.core.settings import S3Settings
from guidehall.core.tls import client_context, fault
from services.storage.settings import TransferSettings

logger = logging.getLogger(__name__)
T = TypeVar("T")

PREFIX = "objects/"
_NOT_FOUND = 404
_LIST_PAGE = 500


def new_key() -> str:
    """A key that nothing has had; all are of one length and depth."""
    name = uuid.uuid4().hex
    return f"{PREFIX}{name[:2]}/{name}"


@dataclass(frozen=True)
class Listed:
    """An object as the store lists it."""

    key: str
    modified: datetime


class ObjectStore:
    """One bucket, reached by a bounded number of threads."""

    def __init__(self, settings: S3Settings, transfer: TransferSettings) -> None:
        self._bucket = settings.bucket
        self._secure = settings.is_secure(settings.endpoint)
        self._transfer = transfer
        self._threads = ThreadPoolExecutor(transfer.threads, thread_name_prefix="s3")
        self._pool = urllib3.PoolManager(
            maxsize=transfer.threads,
            timeout=Timeout(connect=transfer.connect_seconds, read=transfer.read_seconds),
            # For a connection that the server closed while it was idle; the rest is the caller's to repeat.
            retries=Retry(total=1, redirect=0, backoff_factor=0.1),
            ssl_context=client_context(settings.tls) or ssl.create_default_context(),
        )
        self._client = _client(settings, settings.endpoint, self._pool)
        # Only signs: makes no call.
        public = settings.public_endpoint
        self._public = None if public is None else _client(settings, public, self._pool)

    async def close(self) -> None:
        """Lets running calls end."""
        await asyncio.to_thread(self._threads.shutdown)
        self._pool.clear()

    async def prepare(self) -> None:
        """Makes the bucket unless it is there.

        Raises:
            Unavailable: the store cannot be reached, or refuses.
        """

        def prepare() -> None:
            if not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket)

        await self._run(prepare)

    async def probe(self) -> bool:
        """Whether the bucket can be reached."""
        try:
            return await self._run(lambda: self._client.bucket_exists(self._bucket))
        except Unavailable:
            return False

    def writer(self, key: str) -> Writer:
        """Writes a new object."""
        return Writer(self, key)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """The bytes from `offset`, exactly `length` of them.

        Raises:
            DataLoss: the object is gone or shorter than that.
            Unavailable: the store cannot be reached.
        """

        def read() -> bytes:
            try:
                response = self._client.get_object(self._bucket, key, offset=offset, length=length)
            except MinioException as error:
                # 416: it ends before `offset`.
                if _status(error) in (_NOT_FOUND, 416):
                    raise DataLoss(
                        "the stored object is not what was stored", reason="OBJECT_LOST"
                    ) from error
                raise
            try:
                return response.read()
            finally:
                response.release_conn()

        data = await self._run(read)
        if len(data) != length:
            raise DataLoss("the stored object is not what was stored", reason="OBJECT_LOST")
        return data

    async def remove(self, key: str) -> None:
        """Deletes an object and what unfinished uploads of it left; fine when there is nothing.

        Raises:
            Unavailable: the store cannot be reached.
        """

        def remove() -> None:
            for upload_id in self._uploads(key):
                self._client._abort_multipart_upload(self._bucket, key, upload_id)
            self._client.remove_object(self._bucket, key)

        await self._run(remove)

    def _uploads(self, key: str) -> list[str]:
        try:
            listed = self._client._list_multipart_uploads(self._bucket, prefix=key)
        except MinioException as error:
            # What rclone says when no upload is under way anywhere.
            if _status(error) == _NOT_FOUND:
                return []
            raise
        return [str(upload.upload_id) for upload in listed.uploads if upload.object_name == key]

    async def list(self) -> AsyncIterator[list[Listed]]:
        """Every object, page by page."""
        objects: Iterator[Listed] = (
            Listed(str(item.object_name), item.last_modified or datetime.now(UTC))
            for item in self._client.list_objects(self._bucket, prefix=PREFIX, recursive=True)
        )
        while page := await self._run(lambda: list(islice(objects, _LIST_PAGE))):
            yield page

    def url(self, key: str, filename: str, media_type: str, seconds: int) -> str:
        """An address at which anybody can read the object for a while.

        Raises:
            FailedPrecondition: clients outside cannot reach the store.
        """
        if self._public is None:
            raise FailedPrecondition(
                "no public address of the object store is configured: set "
                "GUIDEHALL_STORAGE__S3__PUBLIC_ENDPOINT, or download through the API",
                reason="NO_PUBLIC_ENDPOINT",
                metadata={"setting": "GUIDEHALL_STORAGE__S3__PUBLIC_ENDPOINT"},
            )
        plain = "".join(
            character if character.isalnum() or character in "._-" else "_" for character in filename
        )
        headers = {
            "response-content-disposition": f'attachment; filename="{plain}"',
            "response-content-type": media_type,
        }
        lifetime = timedelta(seconds=seconds)
        return self._public.presigned_get_object(self._bucket, key, lifetime, response_headers=dict(headers))

    async def _run(self, call: Callable[[], T]) -> T:
        """Makes one call in a thread.

        When cancelled, waits until the call is over: nothing goes on behind the caller's back.
        """
        future = asyncio.wrap_future(self._threads.submit(call))
        # An error that comes after nobody waits any more is no news.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._transfer.call_seconds):
                return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future], timeout=self._transfer.call_seconds)
            raise
        except (MinioException, HTTPError, OSError, TimeoutError) as error:
            logger.warning("object store: %s", fault(error, "s3") or self._brief(error))
            raise Unavailable(
                "the object store cannot be reached",
                reason="OBJECT_STORE_UNAVAILABLE",
                retry_after_seconds=1.0,
            ) from error

    def _brief(self, error: BaseException) -> str:
        status = _status(error)
        if status == HTTPStatus.BAD_REQUEST and not self._secure:
            return f"{status}, as of a server that wants TLS (s3.secure)"
        return f"{type(error).__name__} {status or ''}"


class Writer:
    """Writes one object from pieces of any size, holding at most one part in memory.

    Whoever makes one calls `finish`, or else `ObjectStore.remove`.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._upload_id: str | None = None
        self._parts: list[Part] = []
        self._digest = hashlib.sha256()

    async def write(self, data: bytes) -> None:
        """Adds a piece; takes as long as the store needs when a part is full."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= self._store._transfer.part_bytes:
            await self._store._run(self._send_part)

    async def finish(self) -> str:
        """Makes the object whole.

        Returns:
            Its SHA-256.
        """
        await self._store._run(self._complete)
        return self._digest.hexdigest()

    def _take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces, self._held_bytes = [], 0
        self._digest.update(data)
        return data

    def _send_part(self) -> None:
        client, bucket = self._store._client, self._store._bucket
        if self._upload_id is None:
            self._upload_id = client._create_multipart_upload(bucket, self._key, {})
        number = len(self._parts) + 1
        etag = client._upload_part(bucket, self._key, self._take(), None, self._upload_id, number)
        self._parts.append(Part(number, etag))

    def _complete(self) -> None:
        client, bucket = self._store._client, self._store._bucket
        if self._upload_id is None:
            client._put_object(bucket, self._key, self._take())
            return
        if self._pieces:
            self._send_part()
        client._complete_multipart_upload(bucket, self._key, self._upload_id, self._parts)


def _client(settings: S3Settings, endpoint: str, pool: urllib3.PoolManager) -> Minio:
    """A client of `endpoint`, which is host:port or a URL."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    return Minio(
        parts.netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key.get_secret_value(),
        secure=settings.is_secure(endpoint),
        # Known, so that nothing has to be asked before the first call or to sign a URL.
        region=settings.region,
        http_client=pool,
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error; some servers' errors reach the client as "not XML" though they are."""
    if isinstance(error, S3Error):
        return int(error.response.status)
    if isinstance(error, InvalidResponseError):
        return int(error._code)
    return None
