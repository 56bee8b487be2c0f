"""What a client was told: where the services are, who is calling, how long to wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guidehall.core.errors import InvalidArgument, Unauthenticated
from guidehall.core.names import DEFAULT_PROJECT


@dataclass(frozen=True)
class Timeouts:
    """How long the client waits, in seconds."""

    # One request and its answer.
    call_seconds: float = 30.0
    # A whole upload or download.
    transfer_seconds: float = 3600.0
    # One stream of events; the next one goes on where it ended.
    watch_seconds: float = 300.0
    # How long a stream may stay broken before its error is raised.
    reconnect_seconds: float = 60.0
    # First pause before a stream is opened again; doubles up to the last.
    first_pause_seconds: float = 0.2
    last_pause_seconds: float = 5.0


@dataclass(frozen=True)
class Tls:
    """Certificates for connections to `grpcs://` endpoints; without `ca_file` the system's roots count."""

    ca_file: Path | None = None
    # The client's own certificate, where the server asks for one.
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Tls:
        """From GUIDEHALL_CA_FILE, GUIDEHALL_CERT_FILE and GUIDEHALL_KEY_FILE."""
        files = (environ.get(f"GUIDEHALL_{part}_FILE") for part in ("CA", "CERT", "KEY"))
        return cls(*(Path(text).expanduser() if text else None for text in files))


@dataclass(frozen=True)
class Config:
    """What operations need to know."""

    project: str = DEFAULT_PROJECT
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True)
class Credentials:
    """The bearer token, given, or from a function that is asked, or in a file that is read, for every call,
    so that it may be renewed."""

    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    source: Callable[[], str] | None = None

    @classmethod
    def find(
        cls, token: str | Callable[[], str] | None, environ: Mapping[str, str] = os.environ
    ) -> Credentials:
        """`token`, else GUIDEHALL_TOKEN, else the file that GUIDEHALL_TOKEN_FILE names, else none."""
        if callable(token):
            return cls(source=token)
        text = token if token is not None else environ.get("GUIDEHALL_TOKEN")
        if text:
            return cls(token=_checked(text, "token"))
        path = environ.get("GUIDEHALL_TOKEN_FILE")
        return cls(token_file=Path(path).expanduser() if path else None)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries.

        Raises:
            Unauthenticated: the token file cannot be read.
            Exception: what the function raises.
        """
        token = self.token if self.source is None else _checked(self.source(), "token")
        if token is None and self.token_file is not None:
            try:
                token = _checked(self.token_file.read_text(encoding="ascii"), str(self.token_file))
            except (OSError, UnicodeDecodeError) as error:
                raise Unauthenticated(f"cannot read the token file {self.token_file}") from error
        return (("authorization", f"Bearer {token}"),) if token else ()


def _checked(text: str, field_name: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or any(sign.isspace() or not sign.isprintable() for sign in token):
        # The value is a secret: it is not repeated.
        raise InvalidArgument(f"{field_name}: a token is one word of printable ASCII characters")
    return token
