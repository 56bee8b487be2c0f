"""The worker's folders: private ones, gone when their use is; what dead workers left is swept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "guidehall-worker-"
_LOCK = "lock"


class Workspace:
    """A folder of mode 0700 below `parent`, held by a file lock for as long as this object is open."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        self.folder, self._lock = _new_locked(parent)
        # What libraries keep between jobs, such as matplotlib's list of fonts.
        self.cache = self.folder / "cache"
        self.cache.mkdir(mode=0o700)

    def new_folder(self) -> Path:
        """A private folder for one child."""
        return Path(tempfile.mkdtemp(prefix="child-", dir=self.folder))

    def close(self) -> None:
        """Removes everything."""
        remove(self.folder)
        os.close(self._lock)


def remove(folder: Path) -> None:
    """Removes a folder that a pipeline may still have been writing to."""
    shutil.rmtree(folder, ignore_errors=True)


def _new_locked(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        descriptor = _lock(folder / _LOCK)
        if descriptor is not None:
            return folder, descriptor
        # Another worker took it for left behind, between its creation and its lock.


def _lock(path: Path) -> int | None:
    """Descriptor of the locked file; None when another process holds it or has removed it.

    Raises:
        OSError: there can be no such file, for lack of a right or of room.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not path.exists():
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Removes what workers left that were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            # Without a lock it is being made right now, or is not ours.
            descriptor = _lock(folder / _LOCK) if (folder / _LOCK).exists() else None
        except PermissionError:
            continue  # another user's
        if descriptor is not None:
            remove(folder)
            os.close(descriptor)
