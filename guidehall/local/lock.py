"""One supervisor for a data folder: a lock that the kernel drops with its holder, whatever ends that."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from guidehall.local.errors import AlreadyRunning

NAME = "lock"
_TRIES = 5
_RETRY_SECONDS = 0.02


class FolderLock:
    """The right to run the stack of `folder`; a context manager.

    Raises:
        AlreadyRunning: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        # Never removed: a lock on a removed file would exclude nobody.
        self._descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._take():
            holder = os.pread(self._descriptor, 32, 0).decode().strip()
            os.close(self._descriptor)
            raise AlreadyRunning(
                f"the stack in {folder} is already running as process {holder or '(starting)'}; "
                "stop it with `guidehall down`, or choose another folder with --data"
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _take(self) -> bool:
        # Whoever asks for the holder has it for some microseconds too: that is no reason to give up.
        for _ in range(_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_RETRY_SECONDS)
            else:
                return True
        return False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the right up."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def holder(folder: Path) -> int | None:
    """The process that runs the stack of `folder`; None if nothing does.

    A number left by a killed supervisor does not count, as its lock went with it.
    """
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode().strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None
