"""What runs in the foreground, until this process is told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from guidehall.local.errors import Interrupted
from guidehall.local.supervisor import Report

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runnable(Protocol):
    """Something that is started, and runs until it is stopped."""

    def start(self) -> None:
        """Starts it; raises Interrupted, with nothing left running, when `interrupt` is called meanwhile."""
        ...

    def wait(self) -> None:
        """Returns when `interrupt` is called."""
        ...

    def stop(self) -> None:
        """Stops it in good order."""
        ...

    def interrupt(self) -> None:
        """Ends `start` and `wait`; may be called from any thread."""
        ...

    def kill(self) -> None:
        """Ends it at once; may be called from any thread."""
        ...


def run_until_told(runnable: Runnable, started: Callable[[], None], stopping: str, report: Report) -> None:
    """Runs something until this process is told to end (Ctrl-C, SIGTERM); to be called by the main thread.

    A second signal kills what is still stopping.

    Args:
        runnable: what to run.
        started: called when it runs.
        stopping: what to say when it is told to end.
        report: gets lines for people.

    Raises:
        As `start` does; KeyboardInterrupt where it was told to end before it ran.
    """
    # A handler interrupts any line of the main thread, so it must not touch a lock: the queue has none.
    asked: SimpleQueue[int] = SimpleQueue()
    previous = {number: signal.signal(number, lambda got, _: asked.put(got)) for number in _ENDING_SIGNALS}
    threading.Thread(target=_obey, args=(runnable, asked), name="signals", daemon=True).start()
    try:
        runnable.start()
        started()
        runnable.wait()
        report(f"{stopping} (once more to kill)")
        runnable.stop()
    except Interrupted:
        report("everything is stopped")
        raise KeyboardInterrupt from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _obey(runnable: Runnable, asked: SimpleQueue[int]) -> None:
    asked.get()
    runnable.interrupt()
    asked.get()
    runnable.kill()
