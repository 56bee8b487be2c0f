"""The whole log of one attempt, in a file that becomes the job's `job.log`."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from services.trainer.worker.trainer_client import StagedObject

logger = logging.getLogger(__name__)

NAME = "job.log"
_MEDIA_TYPE = "text/plain; charset=utf-8"
# Held in memory, of a log that reaches its limit.
_MOST_TAIL_BYTES = 1 << 20


class JobLog:
    """Lines as they come, up to a size: beyond it those in the middle are left out.

    The last ones tell how it ended. A full disk ends the log, not the job.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        # None before the first line: many jobs say nothing.
        self._file: BinaryIO | None = None
        self._max_bytes = max_bytes
        self._tail_room = min(max_bytes // 2, _MOST_TAIL_BYTES)
        self._room = max_bytes - self._tail_room
        # The last lines, once the file is full but for them.
        self._tail: deque[bytes] = deque()
        self._tail_size = self._left_out = 0
        self._digest = hashlib.sha256()
        self._size = 0
        self._closed = False

    def write(self, line: str) -> None:
        """Adds a line."""
        if self._closed:
            return
        data = line.encode(errors="replace") + b"\n"
        self._room -= len(data)
        if self._room >= 0:
            self._append(data)
            return
        # No later, shorter line goes before this one.
        self._room = 0
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size > self._tail_room:
            self._tail_size -= len(self._tail.popleft())
            self._left_out += 1

    def _append(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self.path.open("wb")
            self._file.write(data)
        except OSError as error:
            self._give_up(error)
            return
        self._digest.update(data)
        self._size += len(data)

    def _give_up(self, error: OSError) -> None:
        logger.error("the log of a job cannot be written: %s", error.strerror)
        self._closed = True
        self._size = 0
        self._tail.clear()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def close(self) -> StagedObject:
        """Writes everything out and says what it is: nothing, if it could not be written."""
        if self._left_out and not self._closed:
            limit = f"beside this line a log has at most {self._max_bytes} bytes"
            self._append(f"[{self._left_out} lines are left out here: {limit}]\n".encode())
        while self._tail and not self._closed:
            self._append(self._tail.popleft())
        if self._file is not None and not self._file.closed:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)
        self._closed = True
        return StagedObject(self._digest.hexdigest(), self._size, _MEDIA_TYPE)
