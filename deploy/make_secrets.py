"""Makes the secrets of a development cluster: service keys, the trust file, passwords, the broker's
users, and an administrator's token.

    python deploy/make_secrets.py deploy/k8s/overlays/dev/secrets

The folder is ignored by git. Running it again keeps what is there.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from guidehall.local.identity import Identity
from guidehall.local.nats import USERS

POSTGRES_USERS = ("storage", "trainer")


def _kept(path: Path, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
    """The secret in the file, made when it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(make())
    return path.read_text()


def make_secrets(folder: Path) -> None:
    """Fills `folder` with everything that the overlay's secretGenerator names."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = Identity(folder)
    identity.ensure()
    _kept(folder / "administrator.token", identity.administrator_token)
    for service in POSTGRES_USERS:
        _kept(folder / service / "postgres-password")
    for name in ("postgres-superuser-password", "s3-secret-key"):
        _kept(folder / name)
    users = []
    for user, subjects in USERS.items():
        password = _kept(folder / user / "nats-password")
        permissions = {"publish": {"allow": subjects.publish}, "subscribe": {"allow": subjects.subscribe}}
        users.append({"user": user, "password": password, "permissions": permissions})
    config = {
        "listen": "0.0.0.0:4222",
        "jetstream": {"store_dir": "/data", "max_file_store": 4 << 30},
        "authorization": {"users": users},
    }
    # NATS reads JSON as its own configuration language.
    (folder / "nats.conf").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make_secrets(Path(sys.argv[1]))
