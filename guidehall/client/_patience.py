"""When to try again, and when to give up."""

from __future__ import annotations

import time

from guidehall.client._config import Timeouts


class Patience:
    """How long to pause before the next attempt, and when to stop trying."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self.reset()

    def reset(self) -> None:
        """Something went well: trouble counts from here."""
        self._pause = self._timeouts.first_pause_seconds
        self._give_up_at = time.monotonic() + self._timeouts.reconnect_seconds

    @property
    def exhausted(self) -> bool:
        """Whether another attempt would come too late."""
        return time.monotonic() + self._pause >= self._give_up_at

    def next_pause(self) -> float:
        """Seconds to wait now; the next pause is twice as long."""
        pause = self._pause
        self._pause = min(2 * pause, self._timeouts.last_pause_seconds)
        return pause
