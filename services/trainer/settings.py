"""Settings of the trainer's api, from GUIDEHALL_TRAINER__… variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    SecretStr,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from guidehall.core.devices import class_of_pool, device_class
from guidehall.core.durations import seconds_in
from guidehall.core.errors import InvalidArgument
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
from services.trainer.origins import origin

POOL_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
# In `pools`: every pool that is not named there.
OTHER_POOLS = "*"


def _duration(value: Any) -> Any:
    """Seconds of what may be a text such as "2h"."""
    if not isinstance(value, str):
        return value
    try:
        return seconds_in(value)
    except InvalidArgument as error:
        raise ValueError(error.message) from None


def _known_class(value: str) -> str:
    try:
        return device_class(value) if value else ""
    except InvalidArgument as error:
        raise ValueError(error.message) from None


Seconds = Annotated[int, BeforeValidator(_duration)]
DeviceClass = Annotated[str, BeforeValidator(_known_class)]


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
    max_batch: int = Field(1000, ge=1, description="jobs that are submitted together")
    max_batch_bytes: int = Field(16 << 20, ge=1024, description="of their parameters, together")
    checkpoint_keep_seconds: float = Field(
        7 * 86_400.0, gt=0, description="how long a job that failed keeps its checkpoint for a retry"
    )
    share_seconds: float = Field(
        3600.0,
        ge=0,
        description="a job stands back by this for each that its owner or its group already runs in the pool",
    )


class LauncherSettings(_Group):
    """What starts workers for a pool that has work and none."""

    kind: Literal["none", "command", "webhook", "kubernetes"] = "none"
    command: tuple[str, ...] = Field((), description="program and arguments; never a shell")
    url: str = Field("", description="of a webhook, or of the API server; empty: that of the pod's cluster")
    secret_file: Path | None = Field(None, description="bearer token of a webhook")
    template_file: Path | None = Field(None, description="a Kubernetes Job in YAML or JSON")
    namespace: str = Field("", description="of the Kubernetes Job; empty: the pod's own")
    account_dir: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="token, ca.crt and namespace of the pod's service account",
    )
    timeout_seconds: float = Field(30.0, gt=0, description="longest launch")
    start_seconds: float = Field(
        300.0, gt=0, description="what was launched has so long to register before it is launched again"
    )
    retry_seconds: float = Field(60.0, gt=0, description="from a launch that failed to the next")
    settle_seconds: float = Field(
        5.0,
        gt=0,
        description="a command that has not failed by then has started; at most half of timeout_seconds",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs: dict[str, dict[str, object]] = {
            "command": {"command": self.command},
            "webhook": {"url": self.url, "secret_file": self.secret_file},
            "kubernetes": {"template_file": self.template_file},
        }
        for name, value in needs.get(self.kind, {}).items():
            if not value:
                raise ValueError(f"a launcher of kind {self.kind} needs {name}")
        if self.url and not re.match(r"https?://[^/]", self.url):
            raise ValueError("url must begin with http:// or https://")
        return self


class PoolSettings(_Group):
    """One queue: what works on it, and what each owner may have of it. 0 is without limit."""

    device_class: DeviceClass = Field("", description="empty: the one whose name the pool bears, if any")
    default_timeout_seconds: Seconds | None = Field(
        None, ge=1, description='of one attempt; also as "2h"; none: that of jobs'
    )
    max_running_per_owner: int = Field(0, ge=0)
    max_running_per_group: int = Field(0, ge=0)
    max_running: dict[str, NonNegativeInt] = Field(
        {}, description='instead, for single owners or groups: "ada", "group:film"; "" is all guests together'
    )
    max_queued_per_owner: int = Field(20_000, ge=0)
    max_queued: dict[str, NonNegativeInt] = Field(
        {}, description='instead, for single owners or whole roles: "ada", "role:operator"'
    )
    launcher: LauncherSettings = LauncherSettings()


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
    worker_keep_seconds: float = Field(
        30 * 86_400.0, gt=0, description="how long a lost worker is kept that no attempt at a job names"
    )
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
        if self.worker_keep_seconds < max(self.forget_seconds, self.seconds):
            raise ValueError("worker_keep_seconds must be at least forget_seconds, and seconds")
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
    erasure_seconds: float = Field(
        30.0, gt=0, description="how often storage is asked whose jobs are to be erased"
    )


class WatchSettings(_Group):
    """How events are followed."""

    page: int = Field(500, ge=1)
    recheck_seconds: float = Field(5.0, gt=0, description="how often a watcher looks without being woken")
    keep_seconds: float = Field(
        30 * 86_400.0, gt=0, description="how long the events of a job are kept after its end"
    )
    max_events: int = Field(
        100_000, ge=10, description="kept of one job; the oldest of one that has more are dropped"
    )


# Name, connection, greeting, TLS, log-in (two), sender, recipient, text (two), and one more.
_STEPS_OF_A_MAIL = 11


class NotifySettings(_Group):
    """Telling owners that a job has ended. Neither webhooks nor e-mail unless an operator says where to."""

    webhook_origins: tuple[str, ...] = Field(
        (), description='where webhooks may be, such as ["https://hooks.example.org"]; empty allows none'
    )
    webhook_secret: SecretStr | None = Field(None, description="signs what is sent to webhooks")
    webhook_ca_file: Path | None = Field(None, description="verifies webhooks instead of the system's")
    mail_host: str | None = Field(None, description="SMTP server; empty sends no e-mail")
    mail_port: int = Field(587, ge=1, le=65535)
    mail_security: Literal["starttls", "tls", "none"] = "starttls"
    mail_ca_file: Path | None = Field(None, description="verifies the SMTP server instead of the system's")
    mail_user: str | None = None
    mail_password: SecretStr = SecretStr("")
    mail_from: str = Field("guidehall@localhost", pattern=r"^[^@\s]+@[^@\s]+$")
    call_seconds: float = Field(10.0, gt=0, description="longest wait for a connection or an answer")
    parallel: int = Field(8, ge=1)
    retry_longest_seconds: float = Field(600.0, gt=0, description="longest wait before another try")
    give_up_seconds: float = Field(86_400.0, gt=0)

    def relay(self, usual: RelaySettings) -> RelaySettings:
        """That of owners: a thread cannot be stopped, so each try may take as long as a mail can."""
        longest = _STEPS_OF_A_MAIL * self.call_seconds
        return usual.model_copy(
            update={
                "retry_longest_seconds": self.retry_longest_seconds,
                "call_seconds": longest,
                "claim_seconds": longest + usual.claim_seconds,
            }
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.webhook_origins and self.webhook_secret is None:
            raise ValueError("webhook_origins needs webhook_secret: receivers must know who calls")
        for given in self.webhook_origins:
            if origin(given) != given:
                raise ValueError(
                    f"webhook_origins: {given!r} is not like https://hooks.example.org or http://10.0.0.7:8080"
                )
        return self


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
    pools: dict[str, PoolSettings] = Field(
        {}, description=f"by name; {OTHER_POOLS!r} is every pool that is not named"
    )
    lease: LeaseSettings = LeaseSettings()
    relay: RelaySettings = RelaySettings()
    sweep: SweepSettings = SweepSettings()
    watch: WatchSettings = WatchSettings()
    notify: NotifySettings = NotifySettings()

    @model_validator(mode="after")
    def _sound_pools(self) -> Self:
        for name, pool in self.pools.items():
            if name != OTHER_POOLS and not re.fullmatch(POOL_NAME, name):
                raise ValueError(f"POOLS: {name!r} does not match {POOL_NAME}")
            if name == OTHER_POOLS and (pool.device_class or pool.launcher.kind != "none"):
                raise ValueError(f"POOLS: {OTHER_POOLS!r} has neither a device_class nor a launcher")
            highest = self.jobs.highest_timeout_seconds
            if (pool.default_timeout_seconds or 0) > highest:
                raise ValueError(f"POOLS: default_timeout_seconds of {name!r} is more than {highest}")
        return self

    def pool(self, name: str) -> PoolSettings:
        """What holds for a pool."""
        return self.pools.get(name) or self.pools.get(OTHER_POOLS) or PoolSettings()

    def device_class(self, pool: str) -> str:
        """What a pool's workers run on; empty when that is not known."""
        return self.pool(pool).device_class or class_of_pool(pool)

    def default_timeout_seconds(self, pool: str) -> int:
        """Of one attempt at a job of a pool."""
        return self.pool(pool).default_timeout_seconds or self.jobs.default_timeout_seconds

    @property
    def named_pools(self) -> list[str]:
        """Pools that are there even without jobs and workers."""
        return sorted({self.jobs.default_pool, *self.pools} - {OTHER_POOLS})
