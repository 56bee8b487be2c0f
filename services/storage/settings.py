"""What storage can be told from outside, by variables that start with GUIDEHALL_STORAGE__."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from guidehall.core.settings import (
    AuthSettings,
    GrpcSettings,
    LogSettings,
    NatsSettings,
    OpsSettings,
    PostgresSettings,
    S3Settings,
    ServiceSettings,
    TelemetrySettings,
)

_MIB = 1 << 20
_DAY = 86_400.0


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListenSettings(GrpcSettings):
    """The gRPC listener."""

    port: int = Field(7102, ge=0, le=65535)
    # Results are documents, with limits of their own.
    max_struct_bytes: int = Field(8 * _MIB, ge=1024)


class MetricsSettings(OpsSettings):
    """The port for operators."""

    port: int = Field(7202, ge=0, le=65535)


class LimitSettings(_Group):
    """How large things may be, and how many."""

    max_object_bytes: int = Field(2_000_000_000, ge=1, description="of one uploaded or staged file")
    max_user_bytes: int = Field(
        0, ge=0, description="of all that one user has stored; uploads beyond it are refused; 0 is no limit"
    )
    max_document_bytes: int = Field(4 * _MIB, ge=1024, description="of one JSON document, as canonical text")
    max_staged_objects: int = Field(1000, ge=1, description="of one attempt of a job")
    max_transfers: int = Field(
        64,
        ge=1,
        description="uploads and downloads under way at one time; a quarter is kept for jobs and services",
    )
    max_transfers_per_caller: int = Field(16, ge=1, description="so that no one keeps out the others")
    retry_after_seconds: float = Field(1.0, gt=0, description="what a refused transfer is told to wait")


class TransferSettings(_Group):
    """How bytes move between callers and the object store."""

    # S3 takes no part below 5 MiB but the last.
    part_bytes: int = Field(8 * _MIB, ge=5 * _MIB, le=64 * _MIB, description="held in memory for each upload")
    block_bytes: int = Field(4 * _MIB, ge=64 << 10, description="held in memory for each download")
    chunk_bytes: int = Field(_MIB, ge=1024, le=4 * _MIB, description="of one message of a download")
    threads: int = Field(16, ge=1, description="calls to the object store at one time")
    connect_seconds: float = Field(2.0, gt=0)
    read_seconds: float = Field(10.0, gt=0, description="without a byte from the object store")
    call_seconds: float = Field(60.0, gt=0, description="one call to the object store")
    idle_seconds: float = Field(
        60.0, gt=0, description="without a message from a sender, or without one that a receiver takes"
    )
    upload_seconds: float = Field(3600.0, gt=0, description="a whole upload")
    # A client that is still sending when its call ends loses the refusal and sees an internal error instead.
    refusal_bytes: int = Field(32 * _MIB, ge=0, description="read and thrown away before a refusal is sent")
    refusal_seconds: float = Field(2.0, ge=0, description="for the same")
    refusal_pause_seconds: float = Field(
        0.1, ge=0, description="without a message the sender counts as waiting"
    )
    max_url_seconds: int = Field(86_400, ge=1, le=604_800, description="how long a presigned URL may live")


class ProviderSettings(_Group):
    """Whom a provider may log in here, and as what. Where it is and how it is asked, the gateway knows."""

    provisioning: bool = Field(
        True, description="who logs in for the first time becomes a user; else an administrator links them"
    )
    role: Literal["VIEWER", "SCIENTIST", "OPERATOR"] = Field("SCIENTIST", description="of a new user")
    allowed_groups: tuple[str, ...] = Field(
        (), description="of the provider: who is in none of them is refused; empty allows everybody"
    )
    allowed_domains: tuple[str, ...] = Field(
        (), description="of checked e-mail addresses: who has none of them is refused; empty allows everybody"
    )
    groups: dict[str, str] = Field(
        default_factory=dict, description="groups of the provider that count, and what they are called here"
    )
    all_groups: bool = Field(False, description="whether its other groups count, too, by their own names")


class AccountSettings(_Group):
    """Local accounts and their sessions, in mode "token"."""

    registration: Literal["off", "invite", "on"] = Field(
        "off", description="whether people make accounts for themselves"
    )
    new_user_role: Literal["VIEWER", "SCIENTIST"] = Field(
        "SCIENTIST", description="of who registers without an invitation that says more"
    )
    min_password_characters: int = Field(12, ge=8, le=128)
    access_seconds: float = Field(
        600.0, gt=0, le=3600, description="how long an access token holds, whatever happens to its session"
    )
    session_seconds: float = Field(30 * _DAY, gt=0, description="how long a session lasts at most")
    idle_seconds: float = Field(7 * _DAY, gt=0, description="how long one lasts that is not refreshed")
    refresh_grace_seconds: float = Field(
        5.0, ge=0, le=60, description="so late a refresh that was already made is no theft: two tabs, one net"
    )
    attempt_seconds: float = Field(900.0, gt=0, description="in which attempts to log in are counted")
    max_account_attempts: int = Field(10, ge=1, description="that fail, for one account")
    max_address_attempts: int = Field(50, ge=1, description="that fail, from one address")
    invitation_seconds: float = Field(7 * _DAY, gt=0, description="how long an invitation usually holds")
    # Above access_seconds, what other services remember of callers, and the minute that reads are counted in.
    erase_after_seconds: float = Field(
        900.0, gt=0, description="how long after the end of an account the rest of its user's data is erased"
    )
    ended_keep_seconds: float = Field(7 * _DAY, gt=0, description="how long an ended session is listed")
    providers: dict[str, ProviderSettings] = Field(
        {}, description="whom each provider that the gateway knows may log in; others log in nobody"
    )
    device_seconds: float = Field(600.0, gt=0, description="in which a program's log-in is to be approved")
    device_interval_seconds: float = Field(
        5.0, gt=0, description="at least so long a program waits between two questions"
    )


class UpkeepSettings(_Group):
    """How often things are put in order, and when something counts as left over."""

    sweep_seconds: float = Field(30.0, gt=0)
    retry_seconds: float = Field(
        5.0, gt=0, description="before the deletion of an object is tried again, doubled each time"
    )
    max_retry_seconds: float = Field(600.0, gt=0)
    batch: int = Field(100, ge=1)
    # Above transfer.upload_seconds: nobody writes to an object that is older and still not kept.
    writing_max_age_seconds: float = Field(2 * 3600.0, gt=0)
    # A job that has staged nothing for so long was forgotten. Long, for a paused one keeps its checkpoint.
    staging_max_age_seconds: float = Field(30 * _DAY, gt=0)
    job_log_max_age_seconds: float = Field(
        30 * _DAY, gt=0, description="how long the log of a job is kept that ended without a result"
    )
    request_max_age_seconds: float = Field(
        7 * _DAY, gt=0, description="how long a repeated request id is recognised"
    )
    announcement_max_age_seconds: float = Field(7 * _DAY, gt=0)
    reconcile_seconds: float = Field(
        6 * 3600.0, gt=0, description="how often the bucket is compared with the tables"
    )
    stray_max_age_seconds: float = Field(
        _DAY, gt=0, description="an object older than this that no table knows is deleted"
    )
    # A bucket with more of them is more likely somebody else's, or the database a wrong one.
    max_strays: int = Field(1000, ge=0)


class AuditSettings(_Group):
    """The audit log's batches, and how long they are kept."""

    seal_seconds: float = Field(
        10.0, gt=0, description="how often a batch is closed: as long an event may be unsealed"
    )
    seal_events: int = Field(1000, ge=1, le=100_000, description="of one batch at most")
    keep_days: float = Field(
        0.0, ge=0, description="how old batches get before they are removed whole; 0 keeps all"
    )


class StorageSettings(ServiceSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_STORAGE__")

    postgres: PostgresSettings
    s3: S3Settings
    nats: NatsSettings = NatsSettings()
    grpc: ListenSettings = ListenSettings()
    ops: MetricsSettings = MetricsSettings()
    auth: AuthSettings = AuthSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    accounts: AccountSettings = AccountSettings()
    audit: AuditSettings = AuditSettings()
    limits: LimitSettings = LimitSettings()
    transfer: TransferSettings = TransferSettings()
    upkeep: UpkeepSettings = UpkeepSettings()
    start_seconds: float = Field(
        30.0, gt=0, description="how long the database may take to answer at the start"
    )
    migrate_seconds: float = Field(600.0, gt=0, description="how long a statement of a migration may take")
    probe_seconds: float = Field(
        5.0, gt=0, description="how often database and object store are asked for health"
    )
    relay_retry_seconds: float = Field(2.0, gt=0, description="before the bus is tried again")

    @model_validator(mode="after")
    def _running_uploads_are_spared(self) -> Self:
        longest, age = self.transfer.upload_seconds, self.upkeep.writing_max_age_seconds
        if age <= longest:
            raise ValueError(
                f"upkeep.writing_max_age_seconds: {age:g} is not above transfer.upload_seconds: {longest:g}"
            )
        return self
