"""The object store's adapter against two S3 servers that are not alike."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from guidehall.core.errors import DataLoss, FailedPrecondition, Unavailable
from guidehall.core.settings import S3Settings
from guidehall.local.backing import BackingServers
from services.storage.objects import PREFIX, ObjectStore, new_key
from services.storage.settings import TransferSettings

MIB = 1 << 20
TIMING = TransferSettings(part_bytes=5 * MIB, connect_seconds=0.5, read_seconds=2, threads=4)


@dataclass(frozen=True)
class Server:
    """Where an S3 server listens and what it takes."""

    endpoint: str
    access_key: str
    secret_key: str


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    """The moto server, as a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
                    break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.05)
        yield Server(f"127.0.0.1:{port}", "key", "secret")
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest) -> Server:
    if request.param == "moto":
        found: Server = request.getfixturevalue("moto")
        return found
    backing: BackingServers = request.getfixturevalue("backing")
    return Server(backing.s3.endpoint, backing.s3.access_key, backing.s3.secret_key)


def settings(server: Server, **more: object) -> S3Settings:
    fields = {
        "endpoint": server.endpoint,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "bucket": f"contract-{uuid.uuid4().hex[:12]}",
    }
    return S3Settings(**(fields | more))  # type: ignore[arg-type]


@pytest.fixture
async def store(server: Server) -> AsyncIterator[ObjectStore]:
    """A new bucket."""
    store = ObjectStore(settings(server), TIMING)
    await store.prepare()
    yield store
    await store.close()


async def write(store: ObjectStore, content: bytes, piece_bytes: int = MIB) -> str:
    key = new_key()
    writer = store.writer(key)
    for start in range(0, len(content), piece_bytes):
        await writer.write(content[start : start + piece_bytes])
    await writer.finish()
    return key


async def keys(store: ObjectStore) -> list[str]:
    return [item.key async for page in store.list() for item in page]


@pytest.mark.parametrize("size", [1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 12 * MIB])
async def test_what_is_written_is_read(store: ObjectStore, size: int) -> None:
    content = os.urandom(size)

    key = await write(store, content)

    assert await store.read(key, 0, size) == content
    assert await store.read(key, size // 2, 1) == content[size // 2 : size // 2 + 1]
    assert await keys(store) == [key]


async def test_an_object_that_is_gone_or_shorter_is_data_loss(store: ObjectStore) -> None:
    key = await write(store, b"0123456789")

    for lost, offset, length in ((new_key(), 0, 1), (key, 0, 11), (key, 10, 1), (key, 20, 5)):
        with pytest.raises(DataLoss):
            await store.read(lost, offset, length)


async def test_removing_takes_the_object_and_what_unfinished_uploads_left(store: ObjectStore) -> None:
    whole = await write(store, b"data")
    half = new_key()
    writer = store.writer(half)
    await writer.write(bytes(6 * MIB))

    for key in (whole, half, whole, new_key()):
        await store.remove(key)

    assert await keys(store) == []
    with pytest.raises(Unavailable):
        await writer.finish()


async def test_keys_are_listed_page_by_page(store: ObjectStore) -> None:
    written = {await write(store, b"x") for _ in range(12)}

    assert set(await keys(store)) == written
    assert all(key.startswith(PREFIX) for key in written)


async def test_the_bucket_is_made_once(server: Server) -> None:
    store = ObjectStore(settings(server), TIMING)
    try:
        before = await store.probe()
        await store.prepare()
        await store.prepare()
        after = await store.probe()
    finally:
        await store.close()

    assert (before, after) == (False, True)


async def test_a_presigned_url_gives_the_object_to_anybody(server: Server) -> None:
    store = ObjectStore(settings(server, public_endpoint=f"http://{server.endpoint}"), TIMING)
    try:
        await store.prepare()
        key = await write(store, b"for all")
        url = store.url(key, "a b.txt", "text/plain", 60)

        def read() -> bytes:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())

        content = await asyncio.to_thread(read)
    finally:
        await store.close()

    assert content == b"for all"


async def test_without_a_public_endpoint_there_is_no_url(store: ObjectStore) -> None:
    with pytest.raises(FailedPrecondition):
        store.url(new_key(), "a", "text/plain", 60)


async def test_a_server_that_is_away_is_unavailable(server: Server) -> None:
    nobody = Server("127.0.0.1:1", server.access_key, server.secret_key)
    store = ObjectStore(settings(nobody), TIMING)
    try:
        with pytest.raises(Unavailable) as away:
            await store.read(new_key(), 0, 1)
        assert not await store.probe()
    finally:
        await store.close()

    assert away.value.retry_after_seconds


async def test_a_wrong_secret_is_unavailable_and_not_shown(backing: BackingServers) -> None:
    stranger = Server(backing.s3.endpoint, backing.s3.access_key, "wrong-secret")
    store = ObjectStore(settings(stranger), TIMING)
    try:
        with pytest.raises(Unavailable) as refused:
            await store.prepare()
    finally:
        await store.close()

    assert "wrong-secret" not in refused.value.message
