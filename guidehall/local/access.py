"""How a service reaches the servers that it stands on, whoever runs those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guidehall.local.processes import Program


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


@dataclass(frozen=True)
class Backing:
    """The servers that the services stand on.

    Attributes:
        programs: those that are ours to run.
        postgres: how to reach a database, by name.
        nats: how a service reaches NATS, by the service's name.
        s3: how to reach the bucket.
        run_sql: runs a psql script as an administrator of PostgreSQL.
        generation: text that changes when the databases begin anew, valid once PostgreSQL is ready.
    """

    programs: tuple[Program, ...]
    postgres: Callable[[str], PostgresAccess]
    nats: Callable[[str], NatsAccess]
    s3: S3Access
    run_sql: Callable[[str], str]
    generation: Callable[[], str]
