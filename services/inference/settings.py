"""Settings of the inference service, read once from GUIDEHALL_INFERENCE__* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from pydantic_settings import SettingsConfigDict

from guidehall.core.settings import (
    AuthSettings,
    ChannelSettings,
    GrpcSettings,
    LogSettings,
    NatsSettings,
    OpsSettings,
    ServiceSettings,
    TelemetrySettings,
)

_MIB = 1 << 20
_GIB = 1 << 30


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RepositorySettings(_Group):
    """Which models are kept, where, and how long it takes to notice a change."""

    # Weights in memory; the least recently used model that is not pinned makes room.
    memory_bytes: PositiveInt = 2 * _GIB
    # Weights on disk, below `cache_dir`.
    cache_bytes: PositiveInt = 6 * _GIB
    # Models whose newest version is loaded at start and stays: ids in the default project, or resource names.
    # The server is not ready before.
    pins: tuple[str, ...] = ()
    # How many further models, newest first, are loaded at start before anybody asks.
    warm_models: int = Field(4, ge=0)
    # Events tell of changes at once; this finds those that were missed.
    reconcile_seconds: PositiveFloat = 60.0
    # Between attempts to load something that failed for a reason that may pass.
    retry_seconds: PositiveFloat = 5.0
    list_timeout_seconds: PositiveFloat = 10.0
    # Without a single byte from storage.
    download_stall_seconds: PositiveFloat = 20.0


class ExecutionSettings(_Group):
    """How models run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Models that run or load at one time.
    threads: PositiveInt = 2
    # Threads within one operation of one model.
    torch_threads: PositiveInt = 1
    max_batch_rows: PositiveInt = 4096
    # Requests that may wait for one model.
    max_queued_requests: PositiveInt = 128
    # What a refused caller is told to wait.
    retry_after_seconds: PositiveFloat = 1.0


class RefinementSettings(_Group):
    """The processes that fit curves."""

    workers: PositiveInt = 1
    # Fits that may wait for a process.
    max_queued: int = Field(8, ge=0)
    retry_after_seconds: PositiveFloat = 2.0
    # Of one fit; a process that takes longer is replaced.
    timeout_seconds: PositiveFloat = 60.0


class AnalysisSettings(_Group):
    """Limits of AnalyzeCurve and Simulate."""

    max_points: PositiveInt = 10_000
    # Models that are asked and compared when a caller names none: the newest that accept the curve.
    max_candidates: PositiveInt = 5


class InferenceSettings(ServiceSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_INFERENCE__")

    # Tensors are larger than what other services take.
    grpc: GrpcSettings = GrpcSettings(port=7103, max_receive_bytes=64 * _MIB)
    ops: OpsSettings = OpsSettings(port=7203)
    auth: AuthSettings = AuthSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    nats: NatsSettings = NatsSettings()
    storage: ChannelSettings = ChannelSettings(target="127.0.0.1:7102")
    cache_dir: Path = Path("~/.cache/guidehall/inference")
    repository: RepositorySettings = RepositorySettings()
    execution: ExecutionSettings = ExecutionSettings()
    refinement: RefinementSettings = RefinementSettings()
    analysis: AnalysisSettings = AnalysisSettings()
