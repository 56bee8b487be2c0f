"""What a no-op job does. Imports little: a worker that forks for every job imports it every time."""

from __future__ import annotations

import socket
import time


def started(address: str) -> None:
    """Tells the socket at `address` the time. The clock is the same in every process."""
    now = time.monotonic()
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.sendto(str(now).encode(), address)
