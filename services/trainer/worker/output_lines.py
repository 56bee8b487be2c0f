"""Lines out of what a child prints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.trainer.worker.messages import MAX_LINE_CHARACTERS, readable

# A line can be no longer than this before it is cut, whatever its encoding.
_MAX_PENDING_BYTES = 4 * MAX_LINE_CHARACTERS


class LineSplitter:
    """Splits bytes into lines. Of what a progress bar redraws by carriage returns only the last is kept."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.on_line = on_line
        self._pending = b""

    def feed(self, data: bytes) -> None:
        """Takes some more bytes."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._pending) > _MAX_PENDING_BYTES:
            self.close()

    def close(self) -> None:
        """Passes on what has no line end yet."""
        pending, self._pending = self._pending, b""
        if pending:
            self._emit(pending)

    def _emit(self, line: bytes) -> None:
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]
        self.on_line(readable(shown.decode(errors="replace"), MAX_LINE_CHARACTERS))


class LinesProtocol(asyncio.Protocol):
    """Feeds a splitter from a pipe."""

    def __init__(self, splitter: LineSplitter) -> None:
        self._splitter = splitter
        self._transport: asyncio.BaseTransport | None = None
        self._closed = asyncio.Event()

    async def finish(self, seconds: float) -> None:
        """Waits for the end of the output, though not for a process that has left the group with it."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            if self._transport is not None:
                self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._splitter.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio passes it)
        self._splitter.close()
        self._closed.set()
