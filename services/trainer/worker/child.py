"""Runs pipelines, one at a time, in a process that holds no credential and dies with its worker.

Started by `child_process.py` as `python -m services.trainer.worker.child FD PARENT MODULE...`: the descriptor
of the link, the worker's process id, and modules to import while it waits for work.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Waits for a job and runs it, again and again, until the worker ends the process."""
    connection = socket.socket(fileno=int(arguments[0]))
    _die_with(int(arguments[1]))
    _guard(connection)
    _serve(connection, arguments[2:])


def _die_with(worker: int) -> None:
    # Ctrl-C in a terminal is the worker's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != worker:  # it died before the line above
        os._exit(1)


def _guard(connection: socket.socket) -> None:
    """Leaves a small process behind that ends the whole group when this process or the worker is gone.

    The death signal reaches this process only, not what the pipeline started. Called before anything large is
    imported or any thread runs.
    """
    try:
        guarded = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return  # not on this system
    if os.fork() > 0:
        os.close(guarded)
        return
    watch = select.poll()
    watch.register(guarded, select.POLLIN)
    watch.register(connection, select.POLLRDHUP)
    watch.poll()
    os.killpg(0, signal.SIGKILL)


def _serve(connection: socket.socket, modules: list[str]) -> None:
    # Imported only now so that the guard stays small.
    import contextlib
    import faulthandler
    import importlib
    import traceback
    from pathlib import Path

    from guidehall.science import registry
    from guidehall.science.pipeline import software_versions
    from services.trainer.worker.child_link import Link
    from services.trainer.worker.child_run import CRASH_FILE, run, run_self_test
    from services.trainer.worker.messages import SelfTest

    with Path(CRASH_FILE).open("w") as crash:
        # Not to stderr, which the job's owner reads.
        faulthandler.enable(crash)
        sys.excepthook = lambda *error: traceback.print_exception(*error, file=crash)
        link = Link(connection)
        registry.pipelines()
        software_versions()
        for module in modules:
            # One that is not installed is missed by the pipelines that need it, not by all.
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(module)
        while True:
            task = link.next_start()
            end = run_self_test(task) if isinstance(task, SelfTest) else run(task, link)
            _flush_output()
            link.send(end)


def _flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # What compiled code printed.
    ctypes.CDLL(None).fflush(None)


if __name__ == "__main__":
    main(sys.argv[1:])
