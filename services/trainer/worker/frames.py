"""How a worker and its child talk: JSON documents in frames, each led by its length. Never pickles.

A frame is a four-byte big-endian length and so many bytes of JSON. The worker reads with asyncio, the child
from a plain socket.
"""

from __future__ import annotations

import asyncio
import socket
import struct

# A parameter document or a result document is the largest thing that travels; files go by name.
MAX_FRAME_BYTES = 16 << 20

_LENGTH = struct.Struct(">I")


class FrameError(RuntimeError):
    """The other side sent something that is not a frame."""


def encode(payload: bytes) -> bytes:
    """A frame around `payload`.

    Raises:
        FrameError: longer than `MAX_FRAME_BYTES`.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return _LENGTH.pack(len(payload)) + payload


def _length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes was announced; at most {MAX_FRAME_BYTES} are allowed")
    return int(length)


async def read(stream: asyncio.StreamReader) -> bytes | None:
    """The next payload; None when the other side is gone, even in the middle of a frame.

    Raises:
        FrameError: the announced length is not allowed.
    """
    try:
        return await stream.readexactly(_length(await stream.readexactly(_LENGTH.size)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive(connection: socket.socket) -> bytes | None:
    """`read` for a blocking socket."""
    head = _receive_exactly(connection, _LENGTH.size)
    return None if head is None else _receive_exactly(connection, _length(head))


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        try:
            part = connection.recv(min(count - len(received), 1 << 20))
        except ConnectionError:
            return None
        if not part:
            return None
        received += part
    return bytes(received)
