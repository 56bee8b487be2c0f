"""What the gateway has to know again when a browser comes back: sealed, in the browser's own keeping, so that
any replica can go on."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.fernet import Fernet, InvalidToken


class Seal:
    """Text that only the gateway reads and nobody else makes.

    Args:
        key: 32 secret bytes, the same in every replica.
        purpose: what is sealed for one purpose opens for no other.
    """

    def __init__(self, key: bytes, purpose: str) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(key))
        self._purpose = purpose

    def close(self, values: dict[str, Any]) -> str:
        """The values, sealed, with the time."""
        return self._fernet.encrypt(json.dumps([self._purpose, values]).encode()).decode("ascii")

    def open(self, text: str, seconds: int) -> dict[str, Any] | None:
        """What was sealed at most so long ago; None for anything else."""
        try:
            purpose, values = json.loads(self._fernet.decrypt(text.encode(), ttl=seconds))
        except (InvalidToken, ValueError):
            return None
        return values if purpose == self._purpose and isinstance(values, dict) else None
