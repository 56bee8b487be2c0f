"""What the gateway can be told from outside, by variables that start with GUIDEHALL_GATEWAY__."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from guidehall.core.settings import (
    AuthSettings,
    ChannelSettings,
    LogSettings,
    OpsSettings,
    ServiceSettings,
    TelemetrySettings,
    TlsSettings,
)
from services.gateway.log_in.settings import LogInSettings


class HttpSettings(BaseModel):
    """The HTTP listener and its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls: TlsSettings = TlsSettings()
    # A job's parameters are converted value by value: a MiB of them takes a second in which nobody is served.
    max_body_bytes: int = Field(
        256 << 10, ge=1024, description="of a JSON body; arrays and uploads have their own"
    )
    max_array_body_bytes: int = Field(
        4 << 20, ge=1024, description="of a JSON body that holds a curve or tensors"
    )
    max_upload_bytes: int = Field(
        2_000_000_000, ge=1, description="of an uploaded file; storage has a limit, too"
    )
    max_connections: int = Field(
        2000, ge=1, description="more are answered 503; each needs an open file of the process"
    )
    head_seconds: float = Field(10.0, gt=0, description="longest wait for a request's head to arrive whole")
    body_seconds: float = Field(30.0, gt=0, description="longest wait for a JSON body to arrive whole")
    comment_seconds: float = Field(
        15.0, gt=0, le=15, description="longest silence in a stream of events; then a comment is sent"
    )
    idle_seconds: float = Field(
        30.0, gt=0, description="without a byte of an upload, or without one that an answer's reader takes"
    )
    cors_origins: tuple[str, ...] | None = Field(
        None,
        description="whose pages may call; where not set, in single mode those of port 3000 of this machine",
    )
    cors_origin_regex: re.Pattern[str] | None = Field(
        None,
        description="more such pages: those whose whole origin matches, such as https://.*[.]lab[.]example",
    )
    drain_seconds: float = Field(10.0, gt=0)


class LimitSettings(BaseModel):
    """The most that the old web app may ask for in production."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_curves: int = Field(5000, ge=1, le=100_000)
    max_film_layers: int = Field(10, ge=1, le=20)
    max_batch_size: int = Field(64, ge=1, le=512)
    max_epochs: int = Field(50, ge=1, le=1000)
    max_cnn_layers: int = Field(12, ge=1, le=20)
    max_dropout: float = Field(0.5, ge=0, le=0.9)
    max_latent_dim: int = Field(32, ge=2, le=128)
    max_ae_epochs: int = Field(100, ge=1, le=500)
    max_mlp_epochs: int = Field(100, ge=1, le=500)


class LegacySettings(BaseModel):
    """The paths of the old web app."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    production: bool | None = Field(
        None, description="limits, log-in and administration as on a shared machine; by default unless single"
    )
    limits: LimitSettings = LimitSettings()
    limits_whitelist_user_ids: tuple[str, ...] = Field((), description="users who have no such limits")
    admin_token: SecretStr | None = Field(None, description="what X-Admin-Token must say in production")
    model_upload_token: SecretStr | None = Field(
        None,
        description="what X-Model-Upload-Token must say at POST /api/models/upload; closed where not set",
    )
    architecture: Literal["physical", "pyreflect_cnn"] = Field(
        "physical", description="the network that is trained where a request names none"
    )
    jobs_submit_per_minute: int = Field(30, ge=0, description="of one user or address; 0 is no limit")
    upload_per_minute: int = Field(10, ge=0, description="of one user or address; 0 is no limit")


class GatewaySettings(ServiceSettings):
    """The whole of it."""

    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_GATEWAY__")

    http: HttpSettings = HttpSettings()
    legacy: LegacySettings = LegacySettings()
    ops: OpsSettings = OpsSettings(port=7204)
    auth: AuthSettings = AuthSettings()
    log_in: LogInSettings = LogInSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    trainer: ChannelSettings = ChannelSettings(target="127.0.0.1:7101")
    storage: ChannelSettings = ChannelSettings(target="127.0.0.1:7102")
    inference: ChannelSettings = ChannelSettings(target="127.0.0.1:7103")
    call_seconds: float = Field(30.0, gt=0, description="deadline of one call to a service")
    analysis_seconds: float = Field(60.0, gt=0, description="deadline of one prediction or simulation")
    public_endpoints: dict[str, str] = Field(
        {},
        description="of trainer, storage and inference, as `guidehall login` tells programs to reach them",
    )
    transfer_seconds: float = Field(3600.0, gt=0, description="deadline of one upload or download")

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Origins of other pages that may call with the user's standing."""
        if self.http.cors_origins is not None:
            return self.http.cors_origins
        # Where pages are developed; another user of a shared machine could serve something there.
        return ("http://localhost:3000", "http://127.0.0.1:3000") if self.auth.mode == "single" else ()

    @property
    def in_production(self) -> bool:
        """Whether the old paths are those of a shared installation."""
        production = self.legacy.production
        return self.auth.mode != "single" if production is None else production
