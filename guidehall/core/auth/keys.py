"""Signing keys, and the file that says whose keys may speak for whom."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from guidehall.core.settings import SettingsError

logger = logging.getLogger(__name__)

ALGORITHM = "EdDSA"


class KeyPair:
    """An Ed25519 key and its id, the start of the public half."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public_key = base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")
        self.kid = self.public_key[:16]

    @classmethod
    def generate(cls) -> KeyPair:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> KeyPair:
        """Reads a PEM file that `save` wrote.

        Raises:
            SettingsError: it cannot be read or holds no such key.
        """
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise SettingsError(f"the key file {path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError):
            raise SettingsError(f"the key file {path} holds no private key without a password") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise SettingsError(f"the key file {path} holds no Ed25519 key")
        return cls(private)

    def save(self, path: Path) -> None:
        """Writes a PEM file that only its owner reads, whatever was there before."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # Files of tempfile are closed to everybody else from the start.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        Path(name).replace(path)

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes for one purpose, which follow from the private half: the same wherever it is."""
        raw = self._private.private_bytes_raw()
        return HKDF(hashes.SHA256(), 32, None, f"guidehall {purpose}".encode()).derive(raw)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token that makes these claims."""
        return jwt.encode(dict(claims), self._private, algorithm=ALGORITHM, headers={"kid": self.kid})


class KeyFile:
    """The key in a file, read again when the file changes, so that another key signs without a new start.

    Raises:
        SettingsError: it cannot be read or holds no such key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path, "key")
        self._pair = KeyPair.load(path)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token that makes these claims. A file that has become unreadable changes nothing."""
        try:
            stamp = _stamp(self._path, "key")
            if stamp != self._stamp:
                self._pair = KeyPair.load(self._path)
                self._stamp = stamp
                logger.info("key file read again: key %s signs", self._pair.kid)
        except SettingsError as error:
            logger.error("key file not taken over: %s", error)
        return self._pair.sign(claims)


@dataclass(frozen=True)
class TrustedKey:
    """One entry of the trust file.

    Attributes:
        until: when it ends, and all that it has signed, in seconds since 1970.
    """

    issuer: str
    public_key: Ed25519PublicKey
    may_issue: frozenset[str]
    may_delegate: bool
    until: float = math.inf


class TrustStore:
    """The trust file: `{key id: {issuer, public_key, may_issue, may_delegate}}`, read again when it changes.

    A key that was replaced has `until`, too: its end, in seconds since 1970.

    Raises:
        SettingsError: the file cannot be read, or is no trust file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path, "trust")
        self._keys = self._read()

    @staticmethod
    def entry(
        key: KeyPair, issuer: str, may_issue: Sequence[str], may_delegate: bool = False
    ) -> dict[str, Any]:
        """The trust file's entry for a key, by its id."""
        return {
            key.kid: {
                "issuer": issuer,
                "public_key": key.public_key,
                "may_issue": list(may_issue),
                "may_delegate": may_delegate,
            }
        }

    def keys(self) -> Mapping[str, TrustedKey]:
        """The trusted keys by their ids; the same object until the file changes.

        A file that has become unreadable changes nothing, so that no half-written one locks everybody out.
        """
        try:
            stamp = _stamp(self._path, "trust")
            if stamp != self._stamp:
                # In this order: what could not be read is tried again.
                self._keys = self._read()
                self._stamp = stamp
                logger.info("trust file read again: %d keys", len(self._keys))
        except SettingsError as error:
            logger.error("trust file not taken over: %s", error)
        return self._keys

    def _read(self) -> Mapping[str, TrustedKey]:
        try:
            entries = json.loads(self._path.read_bytes())
            return MappingProxyType({kid: _trusted_key(entry) for kid, entry in entries.items()})
        except OSError as error:
            raise SettingsError(f"the trust file {self._path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SettingsError(f"the file {self._path} is no trust file") from None


def _stamp(path: Path, what: str) -> tuple[int, int, int]:
    """Changes whenever the file does."""
    try:
        status = path.stat()
    except OSError as error:
        raise SettingsError(f"the {what} file {path} cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _trusted_key(entry: Mapping[str, Any]) -> TrustedKey:
    text = entry["public_key"]
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    may_issue = entry["may_issue"]
    if not isinstance(may_issue, list):
        raise TypeError("may_issue is a list of kinds")
    return TrustedKey(
        issuer=str(entry["issuer"]),
        public_key=Ed25519PublicKey.from_public_bytes(raw),
        may_issue=frozenset(may_issue),
        may_delegate=entry.get("may_delegate") is True,
        until=float(entry.get("until", math.inf)),
    )
