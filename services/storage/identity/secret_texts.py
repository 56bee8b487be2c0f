"""Random secrets that are given away once, such as API keys and refresh tokens. Their digests are kept."""

from __future__ import annotations

import hashlib
import secrets

# 256 bits: no salt and no slow hash could add to that.
_BYTES = 32


def mint(prefix: str) -> str:
    """A new one; the prefix says what it is for."""
    return prefix + secrets.token_urlsafe(_BYTES)


def digest(secret: str) -> bytes:
    """By which it is known again."""
    return hashlib.sha256(secret.encode()).digest()
