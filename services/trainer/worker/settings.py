"""Everything that can be set about a worker: variables `GUIDEHALL_WORKER__…`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict

from guidehall.core.settings import (
    ChannelSettings,
    LogSettings,
    NatsSettings,
    OpsSettings,
    ServiceSettings,
    TelemetrySettings,
)
from guidehall.science.pipeline import CHECKPOINT_SECONDS


class ChildSettings(BaseModel):
    """The processes in which pipelines run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spare: bool = Field(True, description="keep one ready while idle, so that a job starts at once")
    preload: tuple[str, ...] = Field(("torch",), description="modules that it imports while it waits")
    pass_environment: tuple[str, ...] = Field((), description="further variables that it may see")
    jobs: int = Field(
        100, ge=1, description="one process runs so many jobs of one owner and pipeline, while all goes well"
    )
    rest_seconds: float = Field(60.0, gt=0, description="how long such a process waits for its next job")
    memory_bytes: int = Field(0, ge=0, description="most data memory of one process; 0: no limit")
    cpu_seconds: int = Field(0, ge=0, description="most processor time of one job; 0: no limit")
    threads: int = Field(0, ge=0, le=1024, description="threads of numerical libraries; 0: their choice")
    cancel_grace_seconds: float = Field(10.0, gt=0, description="from a cancel to the kill")
    reap_seconds: float = Field(5.0, gt=0, description="for the end of a killed process")
    progress_seconds: float = Field(0.1, gt=0, description="newest progress is passed on so often")
    preview_seconds: float = Field(5.0, gt=0, description="newest preview is passed on so often")
    checkpoint_seconds: float = Field(
        CHECKPOINT_SECONDS,
        gt=0,
        description="jobs save their state so often, or more rarely if that took over 1 % of their time",
    )


class CallSettings(BaseModel):
    """How other services are called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_seconds: float = Field(15.0, gt=0, description="for one call, or one message of a stream")
    transfer_seconds: float = Field(1800.0, gt=0, description="for one whole upload or download")
    log_seconds: float = Field(
        15.0,
        gt=0,
        description="for the log of an attempt that failed; then its end is reported without",
    )
    first_retry_seconds: float = Field(0.2, gt=0)
    longest_retry_seconds: float = Field(10.0, gt=0)
    parallel_uploads: int = Field(4, ge=1, le=32)


class WorkerSettings(ServiceSettings):
    """Settings of `python -m services.trainer worker`."""

    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_WORKER__")

    trainer: ChannelSettings
    storage: ChannelSettings
    nats: NatsSettings = NatsSettings()
    ops: OpsSettings = OpsSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    child: ChildSettings = ChildSettings()
    calls: CallSettings = CallSettings()

    credential_file: Path = Field(description="the worker's token; read anew for every call")
    pool: str = Field("cpu", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda:[0-9]{1,3})$")
    temp_dir: Path = Field(Path(tempfile.gettempdir()), description="private folders of jobs lie below it")

    lease_wait_seconds: float = Field(15.0, gt=0, description="how long to ask for work at a time")
    idle_exit_seconds: float = Field(
        0.0, ge=0, description="a worker that has had no job for so long ends; 0: it waits for ever"
    )
    self_test_seconds: float = Field(
        120.0, gt=0, description="how long a test of a device may take that misbehaved"
    )
    event_flush_seconds: float = Field(0.2, gt=0, description="events are sent together so often")
    max_buffered_events: int = Field(5000, ge=100, description="beyond it, log lines stay in job.log only")
    log_lines_per_second: float = Field(
        100.0, ge=1, description="as events, in the long run; more stay in job.log only"
    )
    drain_seconds: float = Field(
        20.0, gt=0, description="from SIGTERM to the kill of a job that does not leave"
    )
    exit_seconds: float = Field(5.0, gt=0, description="for handing the job back after that")

    max_input_bytes: int = Field(8 << 30, gt=0)
    max_artifact_bytes: int = Field(4 << 30, gt=0, description="of one file: artifact, model or checkpoint")
    max_result_bytes: int = Field(4 << 20, gt=0, description="of the result document on the wire")
    max_log_bytes: int = Field(16 << 20, gt=0, description="of job.log")
