"""Settings: one frozen object for each process, read once from environment variables.

`GUIDEHALL_TRAINER__GRPC__PORT=7101` sets `grpc.port` of the trainer. A variable that ends in `_FILE` names a file that
holds the value: secrets come that way. A variable under the program's prefix that means nothing is refused.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

SettingsT = TypeVar("SettingsT", bound="ServiceSettings")


class SettingsError(Exception):
    """The environment does not make valid settings. The message names variables, never values of secrets."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(_Group):
    """Certificates of one connection; all empty means plaintext."""

    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = Field(None, description="verifies the other side's certificate (a client's view)")
    client_ca_file: Path | None = Field(None, description="a server asks clients for certificates signed by it (mTLS)")
    reload_seconds: float = Field(60.0, gt=0, description="how often changed files are looked for")

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
    default_deadline_seconds: float = Field(30.0, gt=0, description="for unary calls that come without one")
    max_connection_age_seconds: float = Field(1800.0, gt=0)
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
    tls: TlsSettings = TlsSettings()


class NatsSettings(_Group):
    """The event bus; without a URL there is none."""

    url: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    connect_seconds: float = Field(2.0, gt=0)
    publish_seconds: float = Field(5.0, gt=0)
    max_stream_bytes: int = Field(256 << 20, ge=1 << 20)
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
    tls: TlsSettings = TlsSettings()

    def dsn(self) -> str:
        """The SQLAlchemy URL, password included: never to be logged."""
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return f"postgresql+asyncpg://{user}:{password}@{self.host}:{self.port}/{quote(self.database, safe='')}"


class S3Settings(_Group):
    """The object store."""

    endpoint: str
    public_endpoint: str | None = Field(None, description="what clients outside reach it by, for presigned URLs")
    access_key: str
    secret_key: SecretStr
    bucket: str = "guidehall"
    region: str = "us-east-1"
    secure: bool = False
    ca_file: Path | None = None


class OpsSettings(_Group):
    """The port for operators: metrics, health, log level."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)


class LogSettings(_Group):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "console"] = "json"


class TelemetrySettings(_Group):
    """Where traces go; nowhere without an endpoint."""

    otlp_endpoint: str | None = None


class AuthSettings(_Group):
    """How callers are known (see guidehall.core.auth)."""

    mode: Literal["single", "proxy", "token"] = "single"
    service_key_file: Path | None = Field(None, description="this service's private key")
    trust_file: Path | None = Field(None, description="whose keys may speak for whom")
    proxy_secret: SecretStr | None = Field(None, description="what an authenticating proxy proves itself with")
    local_user: str = "local"


class ServiceSettings(BaseSettings):
    """Base of every program's settings; a subclass sets `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__", case_sensitive=False)
    _environ: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` read: nothing else in the environment or the working directory counts."""
        return (init_settings,)

    @classmethod
    def load(cls: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
        """Reads the settings.

        Raises:
            SettingsError: an unknown variable, a bad value, or a secret's file that cannot be read.
        """
        prefix = str(cls.model_config["env_prefix"])
        values: dict[str, Any] = {}
        known = set(_variables(cls, prefix))
        for name, text in sorted((os.environ if environ is None else environ).items()):
            if not name.upper().startswith(prefix):
                continue
            variable, value = _resolve(name.upper(), text, known)
            _place(values, variable.removeprefix(prefix).lower().split("__"), value)
        try:
            return cls(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"{prefix}{'__'.join(str(part).upper() for part in item['loc'])}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False)
            )
            raise SettingsError(problems) from None

    def redacted(self) -> dict[str, Any]:
        """The settings as plain data, secrets as stars."""
        result: dict[str, Any] = json.loads(self.model_dump_json())
        return result


def _variables(model: type[BaseModel], prefix: str) -> list[str]:
    """Every variable the model understands."""
    names = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += _variables(annotation, f"{prefix}{name.upper()}__")
        else:
            names.append(f"{prefix}{name.upper()}")
    return names


def _resolve(name: str, text: str, known: set[str]) -> tuple[str, str]:
    """The variable that is meant and its value: directly, or from the file that `…_FILE` names."""
    if name in known:
        return name, text
    base = name.removesuffix("_FILE")
    if base != name and base in known:
        try:
            return base, Path(text).read_text().strip()
        except OSError as error:
            raise SettingsError(f"{name}: cannot read the file: {error.strerror}") from None
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise SettingsError(f"{name} is not a setting{hint}")


def _place(values: dict[str, Any], path: list[str], value: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    # Lists and tuples are given as JSON; everything else as it stands.
    values[path[-1]] = json.loads(value) if value[:1] in ("[", "{") else value


def config_command(settings: type[ServiceSettings], arguments: list[str]) -> None:
    """`config show`: prints the settings as read, secrets redacted."""
    if arguments not in ([], ["show"]):
        raise SystemExit("usage: config show")
    try:
        print(json.dumps(settings.load().redacted(), indent=2))
    except SettingsError as error:
        raise SystemExit(str(error)) from None
