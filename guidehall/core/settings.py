"""Settings: one frozen object for each process, read once from environment variables.

`GUIDEHALL_TRAINER__GRPC__PORT=7101` sets `grpc.port` of the trainer. A variable that ends in `_FILE` names a
file that holds the value: secrets come that way. A variable under the program's prefix that means nothing is
refused.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from guidehall.core._environment import SettingsError as SettingsError
from guidehall.core._environment import decode, default_at, field_at, paths, resolve, type_name

logger = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound="ServiceSettings")
_URL_CREDENTIALS = re.compile(r"://[^/@\s\"]+@")


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(_Group):
    """Certificates of one connection; all empty means plaintext."""

    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = Field(None, description="verifies the other side's certificate (a client's view)")
    client_ca_file: Path | None = Field(
        None, description="a server asks clients for certificates signed by it (mTLS)"
    )
    reload_seconds: float = Field(60.0, gt=0, description="how often changed files are looked for")

    @model_validator(mode="after")
    def _certificate_and_key(self) -> TlsSettings:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("client_ca_file needs cert_file and key_file")
        return self

    @property
    def enabled(self) -> bool:
        """Whether any of it is set."""
        return any((self.cert_file, self.ca_file, self.client_ca_file))


class GrpcSettings(_Group):
    """A gRPC listener."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    max_receive_bytes: int = Field(8 << 20, ge=4096)
    max_send_bytes: int = Field(64 << 20, ge=4096)
    max_struct_bytes: int = Field(
        256 << 10, ge=1024, description="of one JSON document in a request, as it travels"
    )
    max_streams_per_connection: int = Field(
        10_000, ge=1, description="calls at a time; the gateway makes everybody's on one connection"
    )
    default_deadline_seconds: float = Field(30.0, gt=0, description="for unary calls that come without one")
    max_deadline_seconds: float = Field(
        600.0, gt=0, description="no unary call runs longer, whatever it asks for"
    )
    max_connection_age_seconds: float = Field(
        1800.0, gt=0, description="then clients connect and balance anew"
    )
    max_connection_age_grace_seconds: float = Field(
        3600.0, gt=0, description="for streams on an aged connection"
    )
    keepalive_seconds: float = Field(30.0, gt=0)
    drain_seconds: float = Field(10.0, gt=0)
    reflection: bool = True
    tls: TlsSettings = TlsSettings()


class ChannelSettings(_Group):
    """A connection to another service."""

    target: str
    max_receive_bytes: int = Field(64 << 20, ge=4096)
    max_send_bytes: int = Field(64 << 20, ge=4096)
    keepalive_seconds: float = Field(30.0, ge=20)
    keepalive_timeout_seconds: float = Field(10.0, gt=0)
    max_reconnect_backoff_seconds: float = Field(2.0, gt=0)
    tls: TlsSettings = TlsSettings()


class NatsSettings(_Group):
    """The event bus; without a URL there is none."""

    url: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    connect_seconds: float = Field(
        2.0, gt=0, description="how long a start waits for the broker, which may come later"
    )
    publish_seconds: float = Field(5.0, gt=0)
    reconnect_seconds: float = Field(0.2, gt=0, description="between tries to reach a broker that is away")
    ping_seconds: float = Field(10.0, gt=0, description="a broker that leaves two pings unanswered is away")
    fetch_seconds: float = Field(
        10.0,
        gt=0,
        description="how long one request for messages is held; a consumer that is gone is seen after it",
    )
    retry_seconds: float = Field(1.0, gt=0, description="after a broker has refused something")
    max_stream_bytes: int = Field(256 << 20, ge=1 << 20)
    doorbell_keep_seconds: float = Field(
        3600.0, gt=0, description="how long a doorbell that nobody hears is kept; the sweeper rings again"
    )
    event_keep_seconds: float = Field(
        7 * 86_400.0, gt=0, description="how long the bus keeps events for a reader that was away"
    )
    replicas: int = Field(1, ge=1, le=5, description="of each stream; 3 where the broker is a cluster")
    tls: TlsSettings = TlsSettings()


class PostgresSettings(_Group):
    """One service's own database."""

    host: str = "127.0.0.1"
    port: int = Field(5432, ge=1, le=65535)
    database: str
    user: str
    password: SecretStr = SecretStr("")
    pool_size: int = Field(8, ge=1)
    connect_seconds: float = Field(5.0, gt=0)
    statement_seconds: float = Field(30.0, gt=0)
    pool_wait_seconds: float = Field(5.0, gt=0, description="for a free connection of the pool")
    listen_check_seconds: float = Field(
        15.0, gt=0, description="how often an idle listener makes sure it is heard"
    )
    listen_retry_seconds: float = Field(0.1, gt=0, description="first wait before a listener connects again")
    tls: TlsSettings = TlsSettings()

    def dsn(self) -> str:
        """The SQLAlchemy URL, password included: never to be logged."""
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return (
            f"postgresql+asyncpg://{user}:{password}@{self.host}:{self.port}/{quote(self.database, safe='')}"
        )


class S3Settings(_Group):
    """The object store."""

    endpoint: str
    public_endpoint: str | None = Field(
        None, description="what clients outside reach it by, for presigned URLs"
    )
    access_key: str
    secret_key: SecretStr
    bucket: str = "guidehall"
    region: str = "us-east-1"
    secure: bool = Field(False, description="TLS to an endpoint that does not say http:// or https://")
    tls: TlsSettings = TlsSettings()

    @model_validator(mode="after")
    def _certificates_are_for_tls(self) -> S3Settings:
        if self.tls.enabled and not self.is_secure(self.endpoint):
            raise ValueError("tls needs secure, or an endpoint that begins with https://")
        return self

    def is_secure(self, endpoint: str) -> bool:
        """Whether an endpoint, host:port or a URL, is spoken to over TLS."""
        scheme, separator, _ = endpoint.partition("://")
        return scheme == "https" if separator else self.secure


class OpsSettings(_Group):
    """The port for operators: metrics, health, log level."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    request_seconds: float = Field(10.0, gt=0, description="longest wait for a request to arrive whole")


class LogSettings(_Group):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "console"] = "json"


class TelemetrySettings(_Group):
    """Where traces go; nowhere without an endpoint."""

    otlp_endpoint: str | None = Field(
        None, description='of an OTLP collector over gRPC, such as "http://collector:4317"'
    )
    export_seconds: float = Field(2.0, gt=0, description="longest wait for the collector, also at the end")


class LookupSettings(_Group):
    """What storage knows of callers, kept by the other services: so late does a change there count here."""

    keep_seconds: float = Field(30.0, gt=0, le=3600, description="an API key or a user that was found")
    keep_missing_seconds: float = Field(5.0, gt=0, le=3600, description="an API key that was not")
    max_entries: int = Field(10_000, ge=1, description="of either sort; the least recently used make room")
    call_seconds: float = Field(5.0, gt=0, description="how long storage may take to answer")


class AuthSettings(_Group):
    """How callers are known (see guidehall.core.auth)."""

    mode: Literal["single", "proxy", "token"] = "single"
    service_key_file: Path | None = Field(None, description="this service's private key")
    trust_file: Path | None = Field(None, description="whose keys may speak for whom")
    proxy_secret: SecretStr | None = Field(
        None, description="what an authenticating proxy proves itself with"
    )
    local_user: str = "local"
    leeway_seconds: float = Field(
        30.0, ge=0, description="how far clocks may differ when a token's times are checked"
    )
    lookups: LookupSettings = LookupSettings()


class ServiceSettings(BaseSettings):
    """Base of every program's settings; a subclass sets `env_prefix`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        # A variable changes one value of a group; the others stay what the program set them to.
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the base class gives them by name)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` read: nothing else in the environment or the working directory counts."""
        return (init_settings,)

    @classmethod
    def load(cls: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
        """Reads the settings; an empty variable counts as unset.

        Raises:
            SettingsError: an unknown variable, a bad value, or a file that cannot be read.
        """
        prefix = str(cls.model_config["env_prefix"])
        known = {f"{prefix}{'__'.join(path).upper()}": path for path in paths(cls)}
        values: dict[str, Any] = {}
        for variable, text in resolve(os.environ if environ is None else environ, prefix, set(known)).items():
            path = known[variable]
            group = values
            for part in path[:-1]:
                group = group.setdefault(part, {})
            group[path[-1]] = decode(variable, text, field_at(cls, path).annotation)
        try:
            return cls(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"{prefix}{'__'.join(str(part).upper() for part in item['loc'])}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise SettingsError(problems) from None

    def redacted(self) -> dict[str, Any]:
        """The settings as plain data, secrets as stars."""
        result: dict[str, Any] = json.loads(_URL_CREDENTIALS.sub("://**********@", self.model_dump_json()))
        return result

    @classmethod
    def describe(cls) -> str:
        """Every variable with its type, its default and what it is for, one a line."""
        prefix = str(cls.model_config["env_prefix"])
        lines = []
        for path in paths(cls):
            field = field_at(cls, path)
            default = default_at(cls, path)
            given = (
                "required" if default is PydanticUndefined else f"default {json.dumps(default, default=str)}"
            )
            help_text = f": {field.description}" if field.description else ""
            kind = type_name(field.annotation)
            lines.append(f"{prefix}{'__'.join(path).upper()} ({kind}, {given}){help_text}")
        return "\n".join(lines)


def log_settings(settings: ServiceSettings) -> None:
    """Tells at the start, in the log, what a program was told; secrets as stars."""
    logger.info("settings", extra={"settings": settings.redacted()})


def config_command(settings: type[ServiceSettings], arguments: list[str]) -> None:
    """`config show` prints the settings as read, secrets redacted; `config describe` what can be set."""
    if arguments == ["describe"]:
        print(settings.describe())
        return
    if arguments not in ([], ["show"]):
        raise SystemExit("usage: config show | describe")
    try:
        print(json.dumps(settings.load().redacted(), indent=2))
    except SettingsError as error:
        raise SystemExit(str(error)) from None
