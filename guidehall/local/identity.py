"""The services' signing keys and the file that says whom to trust for what, made at the first start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guidehall.local.files import write_json

# What the key of each service may vouch for: storage for people, the trainer for workers and jobs, each
# service for itself; the gateway alone speaks for somebody else.
_MAY_ISSUE = {
    "storage": ("user", "service"),
    "trainer": ("worker", "job", "service"),
    "inference": ("service",),
    "gateway": ("service",),
}
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
        from guidehall.core.auth import KeyPair, TrustStore

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        trust: dict[str, object] = {}
        for service, kinds in _MAY_ISSUE.items():
            path = self.key_file(service)
            if not path.exists():
                KeyPair.generate().save(path)
            trust |= TrustStore.entry(KeyPair.load(path), service, kinds, service in _MAY_DELEGATE)
        write_json(self.trust_file, trust)

    def administrator_token(self) -> str:
        """A new token of an administrator for a year, in the name of storage, which speaks for people."""
        from guidehall.core.auth import KeyPair, Role, TokenIssuer

        issuer = TokenIssuer("storage", KeyPair.load(self.key_file("storage")))
        return issuer.mint(_ADMINISTRATOR, "user", ttl_seconds=_TOKEN_SECONDS, roles=[Role.ADMIN])
