from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guidehall.science.pipeline import MODEL_NAME, refuse_field


class LineParams(BaseModel):
    """A line, its noise, and how long to look for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model_name: str = Field("line", title="Model name", pattern=f"^{MODEL_NAME.pattern}$")
    slope: float = Field(2.0, title="Slope", ge=-100, le=100, json_schema_extra={"unit": "V/s"})
    intercept: float = Field(-1.0, title="Intercept", ge=-100, le=100, json_schema_extra={"unit": "V"})
    noise: float = Field(0.1, title="Noise", description="One standard deviation.", ge=0, le=10)
    points: int = Field(200, title="Points", ge=3, le=100_000)
    steps: int = Field(100, title="Steps", ge=1, le=100_000)
    first_x: float = Field(0.0, title="First x")
    last_x: float = Field(1.0, title="Last x")
    step_seconds: float = Field(0.0, title="Waits at each step", ge=0, le=10, json_schema_extra={"unit": "s"})
    checkpoint_every: int = Field(10, title="Steps between checkpoints", ge=1)
    from_dataset: bool = Field(False, title="Take the points from the job's dataset")

    @model_validator(mode="after")
    def _ordered(self) -> LineParams:
        if self.last_x <= self.first_x:
            refuse_field(self, ["last_x"], self.last_x, f"must be larger than first_x, {self.first_x}")
        return self


class LineResult(BaseModel):
    """What was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    slope: float
    intercept: float
    loss: float
    steps: int
