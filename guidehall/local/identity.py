"""The services' signing keys and the file that says whom to trust for what, made at the first start."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidehall.local.files import read_json, write_json

if TYPE_CHECKING:
    from guidehall.core.auth import KeyPair

# What the key of each service may vouch for: storage for people, the trainer for workers and jobs, each
# service for itself; the gateway alone speaks for somebody else.
_MAY_ISSUE = {
    "storage": ("user", "service"),
    "trainer": ("worker", "job", "service"),
    "inference": ("service",),
    "gateway": ("service",),
}
# Whose key signs for people.
_PEOPLE = "storage"
_MAY_DELEGATE = ("gateway",)
# The name that single mode gives to everybody, so that jobs keep their owner when the mode changes.
_ADMINISTRATOR = "local"
_TOKEN_SECONDS = 365 * 86_400.0


@dataclass(frozen=True)
class Identity:
    """Where the keys are."""

    folder: Path

    @property
    def trust_file(self) -> Path:
        """Public keys of all services and what each may issue."""
        return self.folder / "trust.json"

    def key_file(self, service: str) -> Path:
        """The private key of one service."""
        return self.folder / f"{service}.key"

    def ensure(self) -> None:
        """Makes what is missing; existing keys stay, so that what they signed stays valid."""
        from guidehall.core.auth import KeyPair

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Those that were replaced, until they end, and one that is to sign next.
        trust = {kid: entry for kid, entry in read_json(self.trust_file).items() if _holds(entry)}
        if self._next_key.exists():
            trust |= _entry(_PEOPLE, KeyPair.load(self._next_key))
        for service in _MAY_ISSUE:
            path = self.key_file(service)
            if not path.exists():
                KeyPair.generate().save(path)
            trust |= _entry(service, KeyPair.load(path))
        write_json(self.trust_file, trust)

    @property
    def _next_key(self) -> Path:
        return self.folder / f"{_PEOPLE}.next.key"

    def announce_key(self) -> None:
        """Has another key trusted, which is to sign for people next; once more changes nothing."""
        from guidehall.core.auth import KeyPair

        if not self._next_key.exists():
            KeyPair.generate().save(self._next_key)
        self.ensure()

    def change_key(self, keep_seconds: float) -> None:
        """Has the announced key sign for people, such as their access tokens; what the one before has signed
        holds so much longer, at most.

        Raises:
            FailedPrecondition: none is announced. Servers refuse what a key signs that they do not know.
        """
        from guidehall.core.auth import KeyPair
        from guidehall.core.errors import FailedPrecondition

        if not self._next_key.exists():
            raise FailedPrecondition("no key is announced: --step announce first", reason="NOT_ANNOUNCED")
        path = self.key_file(_PEOPLE)
        old = KeyPair.load(path)
        trust = read_json(self.trust_file)
        trust[old.kid]["until"] = time.time() + keep_seconds
        # First trusted, then used: each of the two files is there whole at any time.
        write_json(self.trust_file, trust)
        self._next_key.replace(path)

    def administrator_token(self) -> str:
        """A new token of an administrator for a year, in the name of storage, which speaks for people."""
        from guidehall.core.auth import KeyPair, Role, TokenIssuer

        issuer = TokenIssuer(_PEOPLE, KeyPair.load(self.key_file(_PEOPLE)))
        return issuer.mint(_ADMINISTRATOR, "user", ttl_seconds=_TOKEN_SECONDS, roles=[Role.ADMIN])


def _entry(service: str, key: KeyPair) -> dict[str, Any]:
    """What the trust file says of a service's key."""
    from guidehall.core.auth import TrustStore

    return TrustStore.entry(key, service, _MAY_ISSUE[service], service in _MAY_DELEGATE)


def _holds(entry: Any) -> bool:
    """Whether an entry is of a key that was replaced and is not over."""
    until = entry.get("until") if isinstance(entry, dict) else None
    return isinstance(until, (int, float)) and until > time.time()
