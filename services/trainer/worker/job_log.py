"""The whole log of one attempt, in a file that becomes the artifact `job.log`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from services.trainer.worker.trainer_client import StagedObject

NAME = "job.log"
_MEDIA_TYPE = "text/plain; charset=utf-8"


class JobLog:
    """Lines as they come, up to a size."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._file = path.open("wb")
        self._left = max_bytes
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, line: str) -> None:
        """Adds a line, or says once that the log ends here."""
        if self._left <= 0 or self._file.closed:
            return
        data = line.encode(errors="replace") + b"\n"
        self._left -= len(data)
        if self._left <= 0:
            data = b"[the log is cut here: it reached its limit]\n"
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def close(self) -> StagedObject:
        """Writes everything out and says what it is."""
        self._file.close()
        return StagedObject(self._digest.hexdigest(), self._size, _MEDIA_TYPE)
