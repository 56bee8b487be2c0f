"""Bytes in pieces: files that go up, and files that come down, checked by their SHA-256."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guidehall.client._config import Config
from guidehall.client._patience import Patience
from guidehall.client._steps import Open, Operation, Pause, Read, Rpc, Work
from guidehall.contracts.common.v1 import common_pb2
from guidehall.core.errors import Cancelled, DataLoss, InvalidArgument, Unavailable

CHUNK_BYTES = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+ -]{0,127}")


class Source:
    """What is to be sent: a file, or bytes in memory; may be read several times."""

    def __init__(self, content: str | Path | bytes) -> None:
        self._content = content if isinstance(content, bytes) else Path(content).expanduser()
        if isinstance(self._content, Path) and not self._content.is_file():
            raise InvalidArgument.field("source", str(content), "a file that exists, or bytes")

    @property
    def filename(self) -> str:
        """The file's own name; empty for bytes."""
        return self._content.name if isinstance(self._content, Path) else ""

    def size(self) -> int:
        """Bytes in it now."""
        return self._content.stat().st_size if isinstance(self._content, Path) else len(self._content)

    def pieces(self) -> Iterator[bytes]:
        """The content from its start."""
        if isinstance(self._content, bytes):
            for start in range(0, len(self._content), CHUNK_BYTES):
                yield self._content[start : start + CHUNK_BYTES]
            return
        with self._content.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece


class Sink:
    """A file that appears under its name only once it is complete and its digest is right."""

    def __init__(self, path: Path, header: common_pb2.ObjectHeader) -> None:
        self.target = path / _safe(header.filename) if path.is_dir() else path
        self.header = header
        self.offset = 0
        self._digest = hashlib.sha256()
        self._partial = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:8]}.part")
        self._file = self._partial.open("xb")

    def write(self, chunk: common_pb2.Chunk) -> None:
        """Appends a piece.

        Raises:
            DataLoss: it does not begin where the last one ended.
        """
        if chunk.offset_bytes != self.offset:
            raise DataLoss(f"{self.target.name}: a piece is missing at byte {self.offset}")
        self._file.write(chunk.data)
        self._digest.update(chunk.data)
        self.offset += len(chunk.data)

    def finish(self) -> Path:
        """Checks the whole and gives it its name.

        Raises:
            DataLoss: size or digest differ from what the server announced.
        """
        self._file.close()
        announced = self.header.object
        if self.offset != announced.size_bytes or self._digest.hexdigest() != announced.sha256:
            raise DataLoss(f"{self.target.name}: what arrived differs from what the server has")
        self._partial.replace(self.target)
        return self.target

    def discard(self) -> None:
        """Leaves nothing behind, unless it was finished."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _safe(filename: str) -> str:
    """`filename` if it can be nothing but a plain file in the folder it is meant for."""
    if not _FILE_NAME.fullmatch(filename):
        raise DataLoss(f"the server sent {filename[:80]!r} as a file name; name the file yourself")
    return filename


def download(config: Config, rpc: Rpc, request: Any, path: str | Path) -> Operation[Path]:
    """Writes an object to `path`, or into the folder `path`; a broken connection is taken up again."""
    folder_or_file = Path(path).expanduser()
    if not folder_or_file.is_dir() and not folder_or_file.parent.is_dir():
        raise InvalidArgument.field("path", str(path), "a folder, or a file in a folder that exists")
    sink: Sink | None = None
    patience = Patience(config.timeouts)
    try:
        while True:
            try:
                request.offset_bytes = sink.offset if sink else 0
                stream = yield Open(rpc, request, config.timeouts.transfer_seconds)
                while (message := (yield Read(stream))) is not None:
                    patience.reset()
                    sink = yield Work(_writer(message, sink, folder_or_file))
                if sink is None:
                    raise DataLoss("the server sent nothing")
                written: Path = yield Work(sink.finish)
                return written
            except (Unavailable, Cancelled):
                if patience.exhausted:
                    raise
            yield Pause(patience.next_pause())
    finally:
        if sink is not None:
            sink.discard()


def _writer(message: Any, sink: Sink | None, path: Path) -> Callable[[], Sink]:
    """What has to be done with one message of a download; gives back where the next one goes."""

    def write() -> Sink:
        if message.HasField("header"):
            if sink is None:
                return Sink(path, message.header)
            if sink.header.object.sha256 != message.header.object.sha256:
                raise DataLoss(f"{sink.target.name}: the object changed while it was being read")
            return sink
        if sink is None:
            raise DataLoss("the server sent no header")
        sink.write(message.chunk)
        return sink

    return write
