"""The child's end of its link to the worker: sends what happens, hears what is wanted."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time

from guidehall.science.pipeline import Desired
from services.trainer.worker import frames
from services.trainer.worker.messages import (
    DesiredChanged,
    End,
    FromChild,
    Previewed,
    Progressed,
    SelfTest,
    Start,
    dump,
    to_child,
)


class Link:
    """Safe to use from any thread of the pipeline.

    Progress is coalesced: the newest of each `progress_seconds` is sent, so reporting every step is cheap.
    So are previews, the newest of each sort every `preview_seconds`, and at the end.
    When the worker hangs up, the process and all it started end at once.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._pending: Progressed | None = None
        self._reported = threading.Event()
        self._progress_seconds = 0.0
        self._previews: dict[str, Previewed] = {}
        self._preview_seconds = 0.0
        self._next_preview = 0.0
        self._starts: queue.SimpleQueue[Start | SelfTest] = queue.SimpleQueue()
        # Read without a lock: assigning a reference is atomic.
        self.desired = Desired.RUN
        # They end with the process.
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._report, daemon=True).start()

    def next_start(self) -> Start | SelfTest:
        """Waits for something to do."""
        return self._starts.get()

    def send(self, message: FromChild) -> None:
        """Sends `message` after any progress that still waits."""
        with self._sending:
            self._send_waiting()
            if isinstance(message, End):
                self._send_previews()
            self._connection.sendall(frames.encode(dump(message)))

    def report(self, progress: Progressed) -> None:
        """Sends `progress` soon, unless a newer one of the same phase comes before."""
        with self._sending:
            if self._pending is not None and self._pending.phase != progress.phase:
                self._send_waiting()
            self._pending = progress
        self._reported.set()

    def show(self, preview: Previewed) -> None:
        """Sends `preview` soon, unless a newer one of the same sort comes before."""
        with self._sending:
            self._previews[preview.sort] = preview
            if time.monotonic() >= self._next_preview:
                self._send_waiting()
                self._send_previews()

    def _send_previews(self) -> None:
        for preview in self._previews.values():
            self._connection.sendall(frames.encode(dump(preview)))
        self._previews.clear()
        self._next_preview = time.monotonic() + self._preview_seconds

    def _send_waiting(self) -> None:
        waiting, self._pending = self._pending, None
        if waiting is not None:
            self._connection.sendall(frames.encode(dump(waiting)))

    def _report(self) -> None:
        while True:
            self._reported.wait()
            self._reported.clear()
            with self._sending:
                self._send_waiting()
                if self._previews and time.monotonic() >= self._next_preview:
                    self._send_previews()
            time.sleep(self._progress_seconds)

    def _listen(self) -> None:
        try:
            while (payload := frames.receive(self._connection)) is not None:
                message = to_child(payload)
                if isinstance(message, Start | DesiredChanged):
                    self.desired = message.desired
                if isinstance(message, Start):
                    self._progress_seconds = message.progress_seconds
                    self._preview_seconds, self._next_preview = message.preview_seconds, 0.0
                if isinstance(message, Start | SelfTest):
                    self._starts.put(message)
        finally:
            # Nobody is there to take the work: end, with everything that the pipeline started.
            os.killpg(0, signal.SIGKILL)
