"""Which loopback port each part listens on: the usual one, or the next free one, the same at every start."""

from __future__ import annotations

import secrets
import socket
import threading
from pathlib import Path

from guidehall.local.errors import StackError
from guidehall.local.files import read_json, write_json

LOOPBACK = "127.0.0.1"
_TRIES = 200
# Below what the system gives to outgoing connections, so that none of those takes a port just chosen.
_ANY_FROM, _ANY_COUNT = 20_000, 12_000


class Ports:
    """Chooses ports, remembers them in a file, and keeps them from other stacks until it is closed.

    Between the choice of a port and the start of the server that listens on it lie seconds, in which another
    stack would choose the same one.

    Args:
        file: where choices are kept; None keeps them in memory only.
        usual: whether to begin at the usual ports; otherwise at any (for tests side by side).
    """

    def __init__(self, file: Path | None, usual: bool = True) -> None:
        self._file = file
        self._usual = usual
        self._lock = threading.Lock()
        self._chosen: dict[str, int] = {}
        self._reservations: list[socket.socket] = []

    def choose(self, name: str, usual: int) -> int:
        """The port of `name`: the recorded one while it is free, else the first free one from `usual` on.

        Raises:
            StackError: no free port near `usual`.
        """
        with self._lock:
            if name not in self._chosen:
                self._chosen[name] = self._first_free(name, self._candidates(name, usual))
                if self._file is not None:
                    write_json(self._file, read_json(self._file) | self._chosen, mode=0o644)
            return self._chosen[name]

    def close(self) -> None:
        """Lets others choose these ports, once nothing listens on them any more."""
        for reservation in self._reservations:
            reservation.close()
        self._reservations.clear()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _candidates(self, name: str, usual: int) -> list[int]:
        recorded = read_json(self._file).get(name) if self._file is not None else None
        candidates = [recorded] if isinstance(recorded, int) else []
        if not self._usual:
            return candidates + [_ANY_FROM + secrets.randbelow(_ANY_COUNT) for _ in range(_TRIES)]
        return candidates + list(range(usual, min(usual + _TRIES, 65536)))

    def _first_free(self, name: str, candidates: list[int]) -> int:
        for port in candidates:
            reservation = _reserve(port)
            if reservation is not None:
                self._reservations.append(reservation)
                return port
        raise StackError(
            f"no free port on {LOOPBACK} for {name}; tried {len(candidates)}, from {candidates[0]}"
        )


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as listener:
        # As servers do, so that connections of an earlier server that linger do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(1)
        except OSError:
            return False
    return True


def _reserve(port: int) -> socket.socket | None:
    """Takes a port out of the choice of every other stack on this machine; None if it is taken."""
    # A name in the abstract namespace has just the reach of a port, and goes with the process that holds it.
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        reservation.bind(f"\0guidehall-port-{port}")
    except OSError:
        reservation.close()
        return None
    if not is_free(port):
        reservation.close()
        return None
    return reservation
