"""How a service reaches the servers that it stands on, whoever runs those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PostgresAccess:
    """One service's database."""

    host: str
    port: int
    database: str
    user: str
    password_file: Path


@dataclass(frozen=True)
class NatsAccess:
    """One service's user."""

    url: str
    user: str
    password_file: Path


@dataclass(frozen=True)
class S3Access:
    """The bucket of the platform; `endpoint` is host:port."""

    endpoint: str
    access_key: str
    secret_key_file: Path
    bucket: str
    secure: bool
