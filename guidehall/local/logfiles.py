"""One log file for each service, bounded in size: `NAME.log`, and `NAME.log.1` onwards for older lines."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_READ_BYTES = 65_536
# Enough for the end of a log with some tracebacks.
_REMEMBERED_BYTES = 65_536


class RotatingLog:
    """Appends bytes to a file and starts a new one when it is full; may be used from several threads."""

    def __init__(self, path: Path, max_bytes: int = 8 << 20, backups: int = 3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size
        self._recent = bytearray()

    def write(self, data: bytes) -> None:
        """Appends `data`; a full disk loses it rather than stopping the writer."""
        with self._lock:
            self._recent += data
            if len(self._recent) > 2 * _REMEMBERED_BYTES:
                del self._recent[:-_REMEMBERED_BYTES]
            if self._descriptor < 0:
                return
            if self._size >= self._max_bytes:
                data = self._finish_line(data)
                self._rotate()
            self._append(data)

    def recent_lines(self, count: int) -> list[str]:
        """The last `count` lines that were written through this object: none of an earlier run."""
        with self._lock:
            return self._recent.decode("utf-8", "replace").splitlines()[-count:]

    def close(self) -> None:
        """Closes the file; later writes go nowhere."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _finish_line(self, data: bytes) -> bytes:
        # Lines stay whole unless one alone is as long as a whole file.
        end = data.find(b"\n") + 1
        self._append(data[:end])
        return data[end:]

    def _append(self, data: bytes) -> None:
        try:
            self._size += os.write(self._descriptor, data) if data else 0
        except OSError:
            return

    def _rotate(self) -> None:
        for number in range(self._backups, 0, -1):
            older = backup(self.path, number)
            newer = backup(self.path, number - 1)
            if newer.exists():
                newer.replace(older)
        os.close(self._descriptor)
        self._descriptor = self._open()
        self._size = 0

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def backup(path: Path, number: int) -> Path:
    """The file that became number `number` when newer ones were started; 0 is the current one."""
    return path.with_name(f"{path.name}.{number}") if number else path


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a log, reaching back into older files as far as needed."""
    data = b""
    number = 0
    while data.count(b"\n") <= count and backup(path, number).exists():
        data = backup(path, number).read_bytes() + data
        number += 1
    return data.decode("utf-8", "replace").splitlines()[-count:] if count > 0 else []


def follow(path: Path, wait: Callable[[], bool]) -> Iterator[str]:
    """Yields what is appended to a log from now on, through rotations.

    Args:
        path: the log; it may not exist yet.
        wait: called when there is nothing new; waits a little and returns False to end.
    """
    descriptor = _open_at(path, end=True)
    ending = False
    try:
        while True:
            data = os.read(descriptor, _READ_BYTES) if descriptor >= 0 else b""
            if data:
                yield data.decode("utf-8", "replace")
                continue
            following = _next_file(path, descriptor)
            if following is not None:
                # What came between the last read and the rotation is still in the old file.
                rest = os.read(descriptor, _READ_BYTES) if descriptor >= 0 else b""
                if rest:
                    yield rest.decode("utf-8", "replace")
                    continue
                if descriptor >= 0:
                    os.close(descriptor)
                descriptor = _open_at(following)
            elif ending:
                return
            else:
                # What came during the last wait is still to be read.
                ending = not wait()
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open_at(path: Path, end: bool = False) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    if end:
        os.lseek(descriptor, 0, os.SEEK_END)
    return descriptor


def _next_file(path: Path, descriptor: int) -> Path | None:
    """The file that continues the open one: None while that is still the current one."""
    if descriptor < 0:
        return path if path.exists() else None
    here = os.fstat(descriptor).st_ino
    number = 0
    while (file := backup(path, number)).exists():
        if file.stat().st_ino == here:
            return backup(path, number - 1) if number else None
        number += 1
    # Rotated out altogether: go on with the oldest one that is left.
    return backup(path, number - 1) if number else None
