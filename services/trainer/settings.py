"""Settings of the trainer's api, from GUIDEHALL_TRAINER__… variables."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from guidehall.core.settings import (
    AuthSettings,
    ChannelSettings,
    GrpcSettings,
    LogSettings,
    NatsSettings,
    OpsSettings,
    PostgresSettings,
    ServiceSettings,
    TelemetrySettings,
)

POOL_NAME = r"[a-z0-9][a-z0-9-]{0,62}"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListenSettings(GrpcSettings):
    """The gRPC listener."""

    port: int = Field(7101, ge=0, le=65535)


class MetricsSettings(OpsSettings):
    """The port for operators."""

    port: int = Field(7201, ge=0, le=65535)


class JobSettings(_Group):
    """What a submission may ask for."""

    default_pool: str = Field("cpu", pattern=f"^{POOL_NAME}$")
    default_max_attempts: int = Field(3, ge=1)
    highest_max_attempts: int = Field(10, ge=1)
    default_timeout_seconds: int = Field(86_400, ge=1, description="of one attempt")
    highest_timeout_seconds: int = Field(7 * 86_400, ge=1)
    max_params_bytes: int = Field(128 << 10, ge=1024)
    request_id_keep_seconds: float = Field(7 * 86_400.0, gt=0, description="how long a repeat is recognised")
    ageing_seconds: float = Field(
        3600.0, gt=0, description="a job waits this much longer before it goes ahead of one a priority higher"
    )


class LeaseSettings(_Group):
    """The agreement between the api and the workers."""

    seconds: float = Field(30.0, gt=0, description="a worker that is silent for so long has lost its job")
    heartbeat_seconds: float = Field(8.0, gt=0)
    poll_interval_seconds: float = Field(10.0, gt=0, description="how often an idle worker asks anyway")
    max_wait_seconds: float = Field(15.0, ge=0, description="longest a request for a job is held")
    recheck_seconds: float = Field(
        3.0, gt=0, description="how often a held request looks without being woken"
    )
    hang_seconds: float = Field(1800.0, ge=0, description="no progress for so long is a hung job; 0 is never")
    retry_first_seconds: float = Field(
        2.0, gt=0, description="wait after the first failed attempt; then doubled"
    )
    retry_longest_seconds: float = Field(300.0, gt=0)
    job_token_margin_seconds: float = Field(
        3600.0, gt=0, description="a job's token outlives its timeout by this"
    )
    forget_seconds: float = Field(86_400.0, gt=0, description="how long a lost worker is listed")
    hello_seconds: float = Field(10.0, gt=0, description="longest wait for the first message of a session")
    max_batch_events: int = Field(1000, ge=1)
    max_line_characters: int = Field(4000, ge=80)
    max_preview_bytes: int = Field(256 << 10, ge=1024)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heartbeat_seconds * 2 > self.seconds:
            raise ValueError("heartbeat_seconds must be at most half of seconds: one heartbeat may get lost")
        if max(self.poll_interval_seconds, self.max_wait_seconds) > self.seconds:
            raise ValueError("an idle worker must be heard of within seconds: see poll_interval and max_wait")
        return self


class RelaySettings(_Group):
    """How the outbox is emptied."""

    batch: int = Field(64, ge=1)
    parallel: int = Field(8, ge=1)
    claim_seconds: float = Field(
        60.0, gt=0, description="what a dead relay had taken is taken again after this"
    )
    call_seconds: float = Field(30.0, gt=0, description="longest time for telling one thing")
    patience_seconds: float = Field(0.5, gt=0, description="what takes longer is left to itself meanwhile")
    idle_seconds: float = Field(5.0, gt=0, description="longest sleep without being woken")
    pace_seconds: float = Field(0.02, ge=0, description="endings are told together so often")
    leisure_seconds: float = Field(0.25, ge=0, description="events, doorbells and deeds so often")
    retry_first_seconds: float = Field(0.25, gt=0)
    retry_longest_seconds: float = Field(10.0, gt=0)
    events_keep_seconds: float = Field(
        300.0, gt=0, description="job events not fanned out by then are dropped"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.claim_seconds <= self.call_seconds:
            raise ValueError("claim_seconds must be longer than call_seconds")
        return self


class SweepSettings(_Group):
    """The look after what nobody reported."""

    interval_seconds: float = Field(1.0, gt=0)
    batch: int = Field(100, ge=1)
    ring_again_seconds: float = Field(15.0, gt=0, description="idle workers are rung again while jobs wait")


class WatchSettings(_Group):
    """How events are followed."""

    page: int = Field(500, ge=1)
    recheck_seconds: float = Field(5.0, gt=0, description="how often a watcher looks without being woken")


class TrainerSettings(ServiceSettings):
    """Everything that the api, its migrations and enrolment read."""

    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_TRAINER__")

    grpc: ListenSettings = ListenSettings()
    ops: MetricsSettings = MetricsSettings()
    postgres: PostgresSettings
    nats: NatsSettings = NatsSettings()
    storage: ChannelSettings
    auth: AuthSettings = AuthSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    storage_seconds: float = Field(20.0, gt=0, description="longest call to storage")
    start_seconds: float = Field(60.0, gt=0, description="longest wait for the database at start")
    migrate_seconds: float = Field(600.0, gt=0, description="how long a statement of a migration may take")
    jobs: JobSettings = JobSettings()
    lease: LeaseSettings = LeaseSettings()
    relay: RelaySettings = RelaySettings()
    sweep: SweepSettings = SweepSettings()
    watch: WatchSettings = WatchSettings()
