"""The whole log of one attempt, in a file that becomes the artifact `job.log`."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from services.trainer.worker.trainer_client import StagedObject

logger = logging.getLogger(__name__)

NAME = "job.log"
_MEDIA_TYPE = "text/plain; charset=utf-8"


class JobLog:
    """Lines as they come, up to a size. A full disk ends the log, not the job."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        # None before the first line: many jobs say nothing.
        self._file: BinaryIO | None = None
        self._left = max_bytes
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, line: str) -> None:
        """Adds a line, or says once that the log ends here."""
        if self._left <= 0:
            return
        data = line.encode(errors="replace") + b"\n"
        self._left -= len(data)
        if self._left <= 0:
            data = b"[the log is cut here: it reached its limit]\n"
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
        self._left = self._size = 0
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def close(self) -> StagedObject:
        """Writes everything out and says what it is: nothing, if it could not be written."""
        self._left = 0
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)
        return StagedObject(self._digest.hexdigest(), self._size, _MEDIA_TYPE)
