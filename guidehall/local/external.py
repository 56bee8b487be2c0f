"""Servers that somebody else runs, given by URL: reached and checked, never started."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from guidehall.local.access import NatsAccess, PostgresAccess, S3Access
from guidehall.local.binaries import find_postgres
from guidehall.local.errors import StackError
from guidehall.local.files import Secrets
from guidehall.local.postgres import create_database_sql, passfile_line, run_psql
from guidehall.local.s3 import BUCKET, create_bucket

POSTGRES_VARIABLE = "GUIDEHALL_POSTGRES_URL"
NATS_VARIABLE = "GUIDEHALL_NATS_URL"
S3_VARIABLE = "GUIDEHALL_S3_URL"
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Credentials:
    """What a URL of a server says."""

    scheme: str
    host: str
    port: int
    user: str
    password: str
    path: str


def parse_url(variable: str, url: str, ports: dict[str, int]) -> Credentials:
    """Takes the URL of an external server apart.

    Args:
        variable: where it came from, for the message; the URL itself holds a password and is never shown.
        url: the URL.
        ports: the schemes that are allowed, with their usual ports.

    Raises:
        StackError: another scheme, or no host, user or password.
    """
    form = " or ".join(f"{scheme}://USER:PASSWORD@HOST:PORT" for scheme in ports)
    try:
        parts: SplitResult = urlsplit(url)
        usual_port = ports[parts.scheme]
        port = parts.port or usual_port
    except (ValueError, KeyError) as error:
        raise StackError(f"{variable} is not of the form {form}") from error
    if parts.query or parts.fragment:
        raise StackError(f"{variable} takes no parameters: {form}")
    if not (parts.hostname and parts.username and parts.password):
        raise StackError(f"{variable} needs a host, a user and a password: {form}")
    return Credentials(
        parts.scheme,
        parts.hostname,
        port,
        unquote(parts.username),
        unquote(parts.password),
        parts.path.strip("/"),
    )


class ExternalPostgres:
    """A PostgreSQL server whose user in the URL may make roles and databases."""

    def __init__(self, url: str, secrets: Secrets) -> None:
        self._url = parse_url(POSTGRES_VARIABLE, url, {"postgresql": 5432, "postgres": 5432})
        self._secrets = secrets

    def provide(self, names: tuple[str, ...]) -> None:
        """Makes sure of a role and a database for each name.

        Raises:
            StackError: the server cannot be reached, or refuses.
        """
        self.run_sql(
            "".join(create_database_sql(name, self._secrets.text(f"postgres-{name}")) for name in names)
        )

    def run_sql(self, sql: str) -> str:
        """Runs a psql script as the user in the URL and returns what it prints."""
        url = self._url
        passfile = self._secrets.keep("pgpass-external", passfile_line(url.user, url.password))
        return run_psql(find_postgres(), url.host, url.port, url.user, passfile, sql)

    def generation(self) -> str:
        """Text that tells one server from another."""
        return f"external {self._url.host}:{self._url.port}"

    def access(self, name: str) -> PostgresAccess:
        """The database `name` and its role of that name."""
        return PostgresAccess(
            self._url.host, self._url.port, name, name, self._secrets.path(f"postgres-{name}")
        )


class ExternalNats:
    """A NATS server; every service uses the one user in the URL."""

    def __init__(self, url: str, secrets: Secrets) -> None:
        self._url = parse_url(NATS_VARIABLE, url, {"nats": 4222})
        self._secrets = secrets

    def check(self) -> None:
        """Raises StackError unless a NATS server answers there."""
        try:
            with socket.create_connection((self._url.host, self._url.port), _TIMEOUT_SECONDS) as connection:
                greeting = connection.recv(5)
        except OSError as error:
            raise StackError(
                f"no NATS server at {self._url.host}:{self._url.port} ({NATS_VARIABLE})"
            ) from error
        if greeting != b"INFO ":
            raise StackError(f"{self._url.host}:{self._url.port} ({NATS_VARIABLE}) is not a NATS server")

    def access(self, service: str) -> NatsAccess:  # noqa: ARG002 (as of a server of our own)
        """The one user."""
        url = f"nats://{self._url.host}:{self._url.port}"
        return NatsAccess(url, self._url.user, self._secrets.keep("nats-external", self._url.password))


class ExternalS3:
    """An S3 server; the path of the URL names the bucket."""

    def __init__(self, url: str, secrets: Secrets) -> None:
        self._url = parse_url(S3_VARIABLE, url, {"http": 80, "https": 443})
        self._secrets = secrets

    def check(self) -> None:
        """Makes sure of the bucket; raises StackError if the server cannot be reached or refuses."""
        access = self.access()
        create_bucket(
            access.endpoint, access.access_key, self._url.password, access.bucket, secure=access.secure
        )

    def access(self) -> S3Access:
        """The bucket."""
        secret = self._secrets.keep("s3-external", self._url.password)
        return S3Access(
            f"{self._url.host}:{self._url.port}",
            self._url.user,
            secret,
            self._url.path or BUCKET,
            self._url.scheme == "https",
        )
