"""Requests over connections that stay open, as many at a time as there are connections."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit


async def requests_per_second(url: str, connections: int, seconds: float, token: str = "") -> float:
    """How many answers come in a second.

    Args:
        url: what is asked for, again and again.
        connections: each asks again as soon as it has an answer.
        seconds: for how long.
        token: a credential, where one is needed.

    Raises:
        RuntimeError: an answer is not 200.
    """
    address = urlsplit(url)
    path = address.path + (f"?{address.query}" if address.query else "")
    credential = f"Authorization: Bearer {token}\r\n" if token else ""
    request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n{credential}\r\n".encode()
    ends = time.perf_counter() + seconds

    async def ask() -> int:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        count = 0
        while time.perf_counter() < ends:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{url}: {head.splitlines()[0].decode()}")
            await reader.readexactly(_length(head))
            count += 1
        writer.close()
        return count

    begins = time.perf_counter()
    counts = await asyncio.gather(*(ask() for _ in range(connections)))
    return sum(counts) / (time.perf_counter() - begins)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise RuntimeError("an answer without Content-Length")
