"""What the gateway can be told from outside, by variables that start with GUIDEHALL_GATEWAY__."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
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
    drain_seconds: float = Field(10.0, gt=0)


class GatewaySettings(ServiceSettings):
    """The whole of it."""

    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_GATEWAY__")

    http: HttpSettings = HttpSettings()
    ops: OpsSettings = OpsSettings(port=7204)
    auth: AuthSettings = AuthSettings()
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
