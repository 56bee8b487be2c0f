"""A job that does nothing but say when it began, as a science of the platform."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.jobs.started import started
from guidehall.science.pipeline import Context, Pipeline
from guidehall.science.registry import Science

PIPELINE = "noop.noop"


class NoopParams(BaseModel):
    """What it does besides nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field("", title="Path of the socket that hears of the start; empty for none")
    progress: int = Field(0, title="Progress events", ge=0)
    step_seconds: float = Field(0.0, title="Waits before each", ge=0)


class NoopResult(BaseModel):
    """Nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def run(params: NoopParams, context: Context) -> NoopResult:
    """Begins and ends."""
    started(params.address)
    for step in range(params.progress):
        if params.step_seconds:
            time.sleep(params.step_seconds)
        context.progress(step + 1, params.progress)
    return NoopResult()


SCIENCE = Science(
    name="noop",
    title="Nothing",
    pipelines=(
        Pipeline(
            name=PIPELINE,
            version="1",
            title="Does nothing",
            params=NoopParams,
            result=NoopResult,
            entry="benchmarks.jobs.noop:run",
            device="cpu",
        ),
    ),
)
