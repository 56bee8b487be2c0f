"""Files that come to the gateway over HTTP: cut off, too long, large."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from guidehall.core.auth import KeyPair, Role, TokenIssuer
from tests.fixtures.gateway import WAIT_SECONDS, Gateway
from tests.fixtures.storage import MIB, StorageSite, eventually

pytestmark = pytest.mark.slow

LIMIT_BYTES = 2_000_000_000
# A reset instead of an end, as when a machine loses its network.
_AT_ONCE = struct.pack("ii", 1, 0)


@contextmanager
def running(storage: StorageSite, **settings: object) -> Iterator[Gateway]:
    gateway = Gateway(storage.identity, AUTH__MODE="token", STORAGE__TARGET=storage.target, **settings)
    try:
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(scope="module")
def gateway(storage: StorageSite) -> Iterator[Gateway]:
    with running(storage) as gateway:
        yield gateway


@pytest.fixture
def path() -> str:
    return f"/api/v1/datasets/d-{uuid.uuid4().hex[:12]}/versions?filename=a.bin"


@pytest.fixture(scope="module")
def bearer(storage: StorageSite) -> str:
    issuer = TokenIssuer("storage", KeyPair.load(storage.identity.key_file("storage")))
    return "Bearer " + issuer.mint("ada", "user", roles=[Role.SCIENTIST], ttl_seconds=3600)


def head(path: str, bearer: str, *lines: str) -> bytes:
    named = (f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: {bearer}", *lines)
    return "".join(f"{line}\r\n" for line in (*named, "")).encode()


def upload(gateway: Gateway, path: str, bearer: str, pieces: int, rest: bytes = b"") -> tuple[int, Any]:
    """Sends so many MiB and a rest in chunks; gives status and document of the answer."""
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=WAIT_SECONDS)

    def body() -> Iterator[bytes]:
        for _ in range(pieces):
            yield bytes(MIB)
        if rest:
            yield rest

    try:
        connection.request("POST", path, body(), {"Authorization": bearer}, encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


@pytest.mark.parametrize("ending", ["end", "reset"])
@pytest.mark.parametrize("framing", [f"Content-Length: {3 * MIB}", "Transfer-Encoding: chunked"])
async def test_of_a_body_that_is_cut_off_nothing_stays(
    gateway: Gateway, storage: StorageSite, path: str, bearer: str, framing: str, ending: str
) -> None:
    before = await storage.without_leaks()
    sent = bytes(MIB) if "Length" in framing else b"%x\r\n%b\r\n" % (MIB, bytes(MIB))

    async def arriving() -> bool:
        return bool(await storage.fetch("SELECT 1 FROM storage.objects WHERE state = 'writing'"))

    with gateway.connect(head(path, bearer, framing), sent) as connection:
        await eventually(arriving)
        if ending == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)

    assert await storage.without_leaks() == before
    dataset = path.split("/")[4]
    assert not await storage.fetch("SELECT 1 FROM storage.datasets WHERE id = $1", dataset)
    # Somebody hung up: that is no fault of ours.
    assert not [line for line in gateway.log if "unexpected error" in line]


@pytest.mark.parametrize(
    ("size_bytes", "answer"), [(LIMIT_BYTES, b"HTTP/1.1 100"), (LIMIT_BYTES + 1, b"HTTP/1.1 400")]
)
async def test_a_claim_above_the_limit_is_refused_before_the_first_byte(
    gateway: Gateway, storage: StorageSite, path: str, bearer: str, size_bytes: int, answer: bytes
) -> None:
    before = await storage.without_leaks()
    # Who asks so is told to go on once somebody wants to read what follows.
    claim = head(path, bearer, f"Content-Length: {size_bytes}", "Expect: 100-continue")
    with gateway.connect(claim) as connection:
        told = connection.recv(4096)
        if answer.endswith(b"400"):
            told += connection.recv(4096)
    assert told.startswith(answer)
    assert (b"Content-Length: got 2000000001; allowed: at most 2000000000 bytes" in told) == (
        answer.endswith(b"400")
    )
    assert await storage.without_leaks() == before


async def test_a_body_without_a_claim_is_refused_where_it_passes_the_limit(
    storage: StorageSite, path: str, bearer: str
) -> None:
    with running(storage, HTTP__MAX_UPLOAD_BYTES=2 * MIB) as gateway:
        fits, _ = await asyncio.to_thread(upload, gateway, path, bearer, 2)
        before = await storage.without_leaks()
        status, problem = await asyncio.to_thread(upload, gateway, path, bearer, 2, b"x")

    assert (fits, status) == (201, 400)
    assert problem["violations"][0]["field"] == "body"
    assert "at most 2097152 bytes" in problem["detail"]
    assert await storage.without_leaks() == before


async def test_a_large_upload_takes_little_memory(gateway: Gateway, path: str, bearer: str) -> None:
    """Also where storage is slower than who sends."""
    assert (await asyncio.to_thread(upload, gateway, path, bearer, 1))[0] == 201
    before = gateway.peak_bytes()
    status, version = await asyncio.to_thread(upload, gateway, path, bearer, 256)
    assert status == 201
    assert int(version["object"]["size_bytes"]) == 256 * MIB
    assert gateway.peak_bytes() - before < 32 * MIB
