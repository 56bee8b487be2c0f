"""A NATS server with JetStream: one user for each service, which may touch its own subjects only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guidehall.local.access import NatsAccess
from guidehall.local.binaries import find_program
from guidehall.local.files import Secrets, write_atomically
from guidehall.local.ports import LOOPBACK
from guidehall.local.processes import Program

ADMIN = "admin"
# Replies to requests, and what a JetStream consumer of one's own delivers.
_REPLIES = "_INBOX.>"
_PUBLIC_EVENTS = ("events.>", "model.>", "dataset.>")


@dataclass(frozen=True)
class Subjects:
    """What one user may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def _consumer(stream: str) -> tuple[str, ...]:
    """The subjects by which a pull consumer of `stream` is made, asked about, read and acknowledged."""
    return (
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.>",
        f"$JS.ACK.{stream}.>",
    )


USERS: Mapping[str, Subjects] = {
    ADMIN: Subjects((">",), (">",)),
    # Owns the streams, so it alone may make and change them.
    "trainer": Subjects(("jobs.>", "events.>", "$JS.API.>", "$JS.ACK.>"), (*_PUBLIC_EVENTS, _REPLIES)),
    "storage": Subjects(_PUBLIC_EVENTS, (_REPLIES,)),
    "inference": Subjects(_consumer("EVENTS"), (*_PUBLIC_EVENTS, _REPLIES)),
    "gateway": Subjects(_consumer("EVENTS"), (*_PUBLIC_EVENTS, _REPLIES)),
    "worker": Subjects(_consumer("JOBS"), (_REPLIES,)),
}


class NatsServer:
    """NATS below `folder`, on loopback; `password(user)` for each of `USERS`."""

    def __init__(self, folder: Path, port: int, monitor_port: int, secrets: Secrets) -> None:
        self.url = f"nats://{LOOPBACK}:{port}"
        self.user = ADMIN
        self._folder = folder / "nats"
        self._port = port
        self._monitor_port = monitor_port
        self._secrets = secrets

    def password(self, user: str) -> str:
        """The password of `user`."""
        return self._secrets.text(f"nats-{user}")

    def access(self, user: str) -> NatsAccess:
        """How a service of that name reaches it."""
        return NatsAccess(self.url, user, self._secrets.path(f"nats-{user}"))

    def program(self) -> Program:
        """The server as a program to supervise."""
        configuration = self._folder / "nats.conf"
        return Program(
            name="nats",
            argv=(str(find_program("nats-server")), "--config", str(configuration)),
            environment={"PATH": "/usr/bin:/bin", "HOME": str(self._folder)},
            probe=f"http://{LOOPBACK}:{self._monitor_port}/healthz",
            prepare=lambda _: write_atomically(configuration, json.dumps(self._configuration(), indent=2)),
        )

    def _configuration(self) -> dict[str, object]:
        return {
            "server_name": "guidehall",
            "host": LOOPBACK,
            "port": self._port,
            "http": f"{LOOPBACK}:{self._monitor_port}",
            "jetstream": {
                "store_dir": str(self._folder / "jetstream"),
                "max_memory_store": 64 << 20,
                "max_file_store": 1 << 30,
            },
            "authorization": {
                "timeout": 5,
                "users": [
                    {
                        "user": name,
                        "password": self.password(name),
                        "permissions": {
                            "publish": {"allow": list(subjects.publish)},
                            "subscribe": {"allow": list(subjects.subscribe)},
                        },
                    }
                    for name, subjects in USERS.items()
                ],
            },
        }
