"""Small files of the data folder: written whole or not at all, secrets readable by their owner only."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str, mode: int = 0o600, durable: bool = True) -> None:
    """Writes `text` so that a reader sees the old content or the new one and nothing between.

    So does the next start after a power failure, if `durable`; that costs a wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, mode: int = 0o600, durable: bool = True) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n", mode, durable)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty if there is no such file or it holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


class Secrets:
    """Random secrets, one file of mode 0600 each, made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)

    def path(self, name: str) -> Path:
        """The file that holds the secret `name`."""
        path = self.folder / name
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(24))
        return path

    def text(self, name: str) -> str:
        """The secret `name`."""
        return self.path(name).read_text(encoding="utf-8").strip()

    def keep(self, name: str, text: str) -> Path:
        """Stores a secret that came from elsewhere and returns its file."""
        path = self.folder / name
        write_atomically(path, text)
        return path
