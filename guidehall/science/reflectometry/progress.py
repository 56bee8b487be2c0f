"""A line on a terminal that says how far a long fit is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

# Seconds between two drawings of the line.
_REDRAWN = 0.2


class ProgressLine:
    """Draws the stage of a fit and its time so far over itself, and leaves nothing behind.

    Args:
        stream: where to; None draws nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._drawn = self._began - _REDRAWN
        self._stage, self._width = "", 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            self._write("")
            self._write("")

    def stage(self, name: str) -> None:
        """What is done from now on."""
        self._stage = name
        self.pulse()

    def pulse(self) -> None:
        """Draws the line anew when it is time; cheap, so that it can be called often."""
        now = time.monotonic()
        if self._stream is None or now - self._drawn < _REDRAWN:
            return
        self._drawn = now
        self._write(f"{self._stage}, {now - self._began:.0f} s")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(f"\r{text:<{self._width}}")
            self._stream.flush()
            self._width = len(text)
