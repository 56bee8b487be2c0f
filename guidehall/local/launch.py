"""Becomes another program that dies with the process that started it; run as a script by `processes.py`.

A program of its own, and not a function between fork and exec: that would run Python in a copy of a process
with threads. It changes the account first, because a change of account forgets the death signal.

Arguments: parent's process id, signal number, user id and group id (-1: unchanged), program, its arguments.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Replaces this process by the program."""
    parent, death_signal, user, group = (int(argument) for argument in arguments[:4])
    command = arguments[4:]
    if user >= 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    os.umask(0o077)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    # A new program inherits what is ignored: by Python the first two, the others by nohup.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606 (no shell wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
