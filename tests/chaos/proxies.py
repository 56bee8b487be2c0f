"""Connections between the parts that can be cut: each passes through a port of ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

_PIECE_BYTES = 64 << 10
_HOST = "127.0.0.1"


class Proxies:
    """Listens for each name and passes bytes on to wherever that server is now.

    Args:
        names: of the servers.
        port_of: the port of a server, asked at each connection.
    """

    def __init__(self, names: Iterable[str], port_of: Callable[[str], int]) -> None:
        self._port_of = port_of
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._open: dict[str, set[asyncio.StreamWriter]] = {name: set() for name in names}
        self._servers: dict[str, asyncio.Server] = {}
        self._thread.start()
        self._call(self._listen())
        self.ports = {name: server.sockets[0].getsockname()[1] for name, server in self._servers.items()}

    def cut(self, name: str) -> int:
        """Breaks every connection to a server, without a goodbye; how many there were."""
        return self._call(self._cut(name))

    def close(self) -> None:
        """Cuts everything and stops listening."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        for name in self._open:
            self._servers[name] = await asyncio.start_server(self._accept(name), _HOST, 0)

    def _accept(self, name: str):  # type: ignore[no-untyped-def]
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            mine = self._open[name]
            mine.add(writer)
            behind = None
            try:
                with suppress(OSError):
                    reader_behind, behind = await asyncio.open_connection(_HOST, self._port_of(name))
                    mine.add(behind)
                    pumps = [
                        asyncio.ensure_future(_pump(reader, behind)),
                        asyncio.ensure_future(_pump(reader_behind, writer)),
                    ]
                    await asyncio.wait(pumps)
            finally:
                for end in filter(None, (writer, behind)):
                    mine.discard(end)
                    end.transport.abort()

        return accept

    async def _cut(self, name: str) -> int:
        ends = list(self._open[name])
        for end in ends:
            end.transport.abort()
        return len(ends) // 2

    async def _close(self) -> None:
        for server in self._servers.values():
            server.close()
        for name in self._open:
            await self._cut(name)
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on one direction to its end; a broken one breaks the other side too."""
    try:
        while data := await reader.read(_PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()
