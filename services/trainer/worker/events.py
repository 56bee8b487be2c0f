"""Events of one attempt on their way to the trainer: numbered from 1, kept until they are stored there."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from services.trainer.worker.messages import Previewed, Progressed

MAX_BATCH_EVENTS = 500
_MAX_BATCH_CHARACTERS = 1 << 20
# A traceback or a summary comes whole; what an operator sets is the rate.
_BURST_SECONDS = 10.0
TAIL_LINES = 200


@dataclass(frozen=True)
class Event:
    """Something that happened: a step, a preview, or a line of the log."""

    # Seconds since 1970.
    time: float
    payload: Progressed | Previewed | str


class _Allowance:
    """So many a second in the long run, and `_BURST_SECONDS` worth of them at once."""

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._most = self._left = per_second * _BURST_SECONDS
        self._then = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed."""
        gained = max(0.0, now - self._then) * self._per_second
        self._left = min(self._most, self._left + gained)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _size(payload: Progressed | Previewed | str) -> int:
    """About how many characters it takes."""
    if isinstance(payload, Progressed):
        return 1000
    return len(payload) if isinstance(payload, str) else len(payload.document)


class EventBuffer:
    """What was not stored yet, in order.

    Progress that was not sent yet gives way to newer progress of the same phase, and so do previews of the
    same sort. Lines that find the buffer full, or come in a flood, are counted and left out: job.log has
    them. Where that cannot be kept, `add_tail` brings the last lines after all.
    """

    def __init__(
        self, max_events: int, lines_per_second: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._max_events = max_events
        self._clock = clock
        self._lines = _Allowance(lines_per_second, clock())
        self._kept: deque[Event] = deque()
        # Number of the first event in `_kept`.
        self._first = 1
        # How many of `_kept` were sent on the present connection.
        self._sent = 0
        # Number of the newest event that was ever sent: the trainer may have it as it was.
        self._newest_sent = 0
        self._left_out = 0
        # The newest lines, and how many of them came since the last one that was left out.
        self._newest_lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._since_gap = TAIL_LINES

    @property
    def sent_number(self) -> int:
        """Every event up to this number was sent on the present connection, or is stored."""
        return self._first + self._sent - 1

    @property
    def last_number(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._first + len(self._kept) - 1

    @property
    def stored_number(self) -> int:
        """Every event up to this number is stored."""
        return self._first - 1

    def add_progress(self, progress: Progressed) -> None:
        """Adds a step."""
        event = Event(self._clock(), progress)
        if self._kept and self.last_number > self._newest_sent:
            newest = self._kept[-1].payload
            full = len(self._kept) >= self._max_events
            if isinstance(newest, Progressed) and (full or newest.phase == progress.phase):
                self._kept[-1] = event
                return
        self._kept.append(event)

    def add_line(self, line: str) -> None:
        """Adds a line of the log."""
        now = self._clock()
        self._newest_lines.append(line)
        self._since_gap += 1
        if len(self._kept) >= self._max_events or not self._lines.take(now):
            self._left_out += 1
            self._since_gap = 0
            return
        if self._left_out:
            note = f"[{self._left_out} lines are left out here; the log of the ended job has them]"
            self._left_out = 0
            self._kept.append(Event(now, note))
        self._kept.append(Event(now, line))

    def add_preview(self, preview: Previewed) -> None:
        """Adds a look at the work."""
        event = Event(self._clock(), preview)
        unsent = self._newest_sent - self._first + 1
        for index in range(len(self._kept) - 1, max(unsent, 0) - 1, -1):
            payload = self._kept[index].payload
            if isinstance(payload, Previewed) and payload.sort == preview.sort:
                self._kept[index] = event
                return
        if len(self._kept) < self._max_events:
            self._kept.append(event)

    def add_tail(self) -> None:
        """Adds the last lines, if some of them were left out: there will be no job.log."""
        if self._since_gap >= len(self._newest_lines):
            return
        now = self._clock()
        note = f"[the last {len(self._newest_lines)} lines, all of them]"
        self._kept.extend(Event(now, line) for line in (note, *self._newest_lines))
        self._newest_lines.clear()

    def take(self) -> tuple[int, list[Event]]:
        """The next events to send, with the number of their first."""
        number, size = self._first + self._sent, 0
        batch: list[Event] = []
        for event in itertools.islice(self._kept, self._sent, self._sent + MAX_BATCH_EVENTS):
            size += _size(event.payload)
            if batch and size > _MAX_BATCH_CHARACTERS:
                break
            batch.append(event)
        self._sent += len(batch)
        self._newest_sent = max(self._newest_sent, number + len(batch) - 1)
        return number, batch

    def rest(self) -> tuple[int, list[Event]] | None:
        """All that is not stored, with the number of its first; None when that is more than one batch."""
        size = sum(_size(event.payload) for event in self._kept)
        if len(self._kept) > MAX_BATCH_EVENTS or size > _MAX_BATCH_CHARACTERS:
            return None
        self._newest_sent = self.last_number
        return self._first, list(self._kept)

    def stored(self, number: int) -> None:
        """The trainer has every event up to `number`."""
        for _ in range(min(number - self.stored_number, len(self._kept))):
            self._kept.popleft()
            self._first += 1
            self._sent = max(0, self._sent - 1)

    def resend(self) -> None:
        """The connection broke: what was sent on it and is not stored goes again."""
        self._sent = 0
