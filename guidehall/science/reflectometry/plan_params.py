"""Parameters and results of `reflectometry.plan`. Units as in `params`. Needs no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from guidehall.science.pipeline import refuse_field, shown
from guidehall.science.reflectometry.infer_params import Instrument
from guidehall.science.reflectometry.params import MAX_POINTS, Params, StackPrior


class PlannedMeasurement(Params):
    """Where and how long is measured."""

    q_min: float = Field(0.008, title="Lowest q", gt=0, le=5, json_schema_extra={"unit": "1/angstrom"})
    q_max: float = Field(0.2, title="Highest q", gt=0, le=5, json_schema_extra={"unit": "1/angstrom"})
    points: int = Field(100, title="Points", ge=10, le=MAX_POINTS)
    counts_per_second: float = Field(
        1e5,
        title="Neutrons per second and point at R = 1",
        ge=1e-3,
        le=1e15,
        description="Of the direct beam.",
    )
    relative_error: float = Field(
        0.01, title="Relative error", ge=0, le=0.5, description="What counting longer does not lessen."
    )
    seconds: tuple[float, ...] = Field(
        (60.0, 300.0, 900.0, 3600.0),
        title="Counting times of a point",
        min_length=1,
        max_length=20,
        json_schema_extra={"unit": "second"},
    )

    @model_validator(mode="after")
    def _possible(self) -> PlannedMeasurement:
        if self.q_max <= self.q_min:
            refuse_field(self, ["q_max"], self.q_max, f"must be larger than q_min, {self.q_min}")
        for place, value in enumerate(self.seconds):
            if not 0 < value <= 1e9:
                refuse_field(self, ["seconds", place], value, "must be above 0 and at most 1e9")
        return self


class PlanParams(Params):
    """Plan a measurement of a film."""

    stack: StackPrior
    instrument: Instrument = Field(default_factory=Instrument)
    measurement: PlannedMeasurement = Field(default_factory=PlannedMeasurement)
    expected: dict[str, float] = Field(
        default_factory=dict,
        title="Expected film",
        description='By parameter, such as "film.thickness"; others are in the middle of their bounds.',
        max_length=200,
    )
    checks: int = Field(
        20,
        title="Drawn measurements",
        description="Fitted at each counting time to check the plan.",
        ge=0,
        le=500,
    )


class PlannedTime(Params):
    """What a counting time gives.

    Attributes:
        standard_errors: expected, by parameter, in its unit.
        share_of_prior: the same over the standard deviation of the prior: 1 means that the measurement says
            nothing.
        scatter: root mean square error of the fits of drawn measurements, each begun anywhere in the prior
            and the best kept; empty without checks. Where it is much larger than the standard error, another
            film explains the measurement as well.
    """

    seconds: float = Field(title="Seconds a point")
    standard_errors: dict[str, float] = shown("pairs", "Error bars that it gives")
    share_of_prior: dict[str, float] = shown("pairs", "Error bar / spread of the prior")
    scatter: dict[str, float] = shown("pairs", "Errors of the fits of drawn measurements")


class PlanResult(Params):
    """Expected error bars against counting time."""

    expected: dict[str, float] = shown("pairs", "Expected film")
    times: list[PlannedTime] = shown("sections", "Counting time")
