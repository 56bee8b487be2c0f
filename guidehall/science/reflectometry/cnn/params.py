"""Parameters and results of the pipelines that train and import networks of the package pyreflect.

Units as in `reflectometry.params`. Needs no torch.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

from pydantic import Field, model_validator

from guidehall.science.pipeline import Provenance, refuse_field, shown
from guidehall.science.reflectometry.legacy_five_layers import (
    LEGACY_RELATIVE_SIGMA,
    legacy_probe,
    legacy_stack,
)
from guidehall.science.reflectometry.network_params import Channels, EpochTraining, model_name
from guidehall.science.reflectometry.params import (
    ON_TEST,
    RESIMULATED,
    BeamSide,
    ChannelErrors,
    EpochLosses,
    Note,
    Params,
    Range,
    Residuals,
    ResolutionConvention,
    Seconds,
    StackPrior,
    Tie,
    TrainingProbe,
)

MIN_CURVES, MAX_CURVES = 10, 200_000
# Reflectivity and profile points, numbers of float32 each: 2 GB.
MAX_NUMBERS = 500_000_000
# A gigabyte of weights; the network of the package has 155 million.
MAX_WEIGHTS = 250_000_000
PROFILE_POINTS = 900
# Below this reflectivity the package sees nothing.
FLOOR = 1e-8


class Normalisation(Params):
    """What pyreflect calls normalisation statistics; `nr.y` is that of log10 R."""

    nr: Channels
    sld: Channels


class CnnNetwork(Params):
    """The network: convolutions that grow in width, and one dense layer."""

    layers: int = Field(12, title="Convolutions", ge=1, le=24)
    width: int = Field(256, title="Channels of the last convolution", ge=4, le=512)
    kernel: int = Field(51, title="Points under a convolution", description="Odd.", ge=3, le=101)
    dropout: float = Field(0.5, title="Dropout", ge=0, le=0.9)

    @model_validator(mode="after")
    def _odd(self) -> CnnNetwork:
        if self.kernel % 2 == 0:
            refuse_field(self, ["kernel"], self.kernel, "must be odd")
        return self

    def weights(self, points: int, profile_points: int) -> int:
        """How many weights it has, near enough."""
        widths = [1 + (self.width - 1) * i / self.layers for i in range(self.layers + 1)]
        convolutions = sum(a * b for a, b in itertools.pairwise(widths)) * self.kernel
        return int(convolutions) + 2 * self.width * points * profile_points


class CnnTraining(EpochTraining):
    """How long and how a network of pyreflect is trained."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", title="Precision", description="auto takes bfloat16 where the machine calculates with it."
    )


class CnnParams(Params):
    """Train the network of pyreflect, from reflectivity to the SLD profile."""

    model_name: str = model_name("cnn")
    engine: Literal["native", "pyreflect"] = Field(
        "native",
        title="Engine",
        description="pyreflect runs that package's own generator and trainer as they are, to compare with."
        " It cannot pause.",
    )
    curves_from_datasets: bool = Field(
        False, title="Train on the job's datasets", description="In the roles nr_train and sld_train."
    )
    curves: int = Field(
        1000,
        title="Curves made",
        description="A fifth of them is held back for validation and testing.",
        ge=MIN_CURVES,
        le=MAX_CURVES,
    )
    stack: StackPrior = Field(default_factory=legacy_stack, title="Film")
    probe: TrainingProbe = Field(
        default_factory=legacy_probe,
        title="Measurement",
        description="One resolution: the network is not told it. With datasets, only the resolution counts.",
    )
    profile_points: int = Field(PROFILE_POINTS, title="Points of a profile", ge=16, le=4096)
    network: CnnNetwork = Field(default_factory=CnnNetwork)
    training: CnnTraining = Field(default_factory=CnnTraining)
    export: bool = Field(
        False,
        title="Add files for pyreflect",
        description="Weights as .pth, and statistics as it reads them.",
    )

    @model_validator(mode="after")
    def _possible(self) -> CnnParams:
        if not self.probe.resolution.fixed:
            refuse_field(
                self,
                ["probe", "resolution"],
                f"{self.probe.resolution.min:g} to {self.probe.resolution.max:g}",
                "must be one number: this network is not told the resolution",
            )
        if self.curves * (2 * self.probe.points + 2 * self.profile_points) > MAX_NUMBERS:
            allowed = f"curves x (points + profile_points) must not be above {MAX_NUMBERS // 2:g}"
            refuse_field(self, ["curves"], self.curves, allowed)
        if self.network.weights(self.probe.points, self.profile_points) > MAX_WEIGHTS:
            refuse_field(
                self, ["network", "width"], self.network.width, f"at most {MAX_WEIGHTS:g} weights in all"
            )
        if self.engine == "pyreflect":
            self._within_pyreflect()
        return self

    def _within_pyreflect(self) -> None:
        """Refuses what the package has no setting for."""
        fixed = "is fixed in pyreflect: leave it out"
        own = CnnNetwork()
        for name in ("width", "kernel"):
            if getattr(self.network, name) != getattr(own, name):
                refuse_field(self, ["network", name], getattr(self.network, name), fixed)
        for name, field in CnnTraining.model_fields.items():
            value = getattr(self.training, name)
            if name not in ("epochs", "batch_size") and value != field.default:
                refuse_field(self, ["training", name], value, fixed)
        if self.probe != legacy_probe():
            refuse_field(self, ["probe"], "another measurement", fixed)
        if self.profile_points != PROFILE_POINTS:
            refuse_field(self, ["profile_points"], self.profile_points, fixed)
        if self.stack.beam != "fronting":
            refuse_field(self, ["stack", "beam"], self.stack.beam, "must be fronting with pyreflect")
        stack = self.stack
        more = stack.repeats or stack.parameters or stack.max_roughness_share is not None
        tied = any(isinstance(item.bounds, Tie) for item in stack.quantities())
        if more or tied or any(layer.molecules or layer.solvent for layer in stack.layers):
            allowed = "pyreflect knows thickness, SLD and roughness of layers, each by itself"
            refuse_field(self, ["stack"], "a film of other kinds", allowed)
        parts = (stack.fronting, *stack.layers, stack.backing)
        if any(part.isld != Range(min=0.0, max=0.0) for part in parts):
            refuse_field(self, ["stack"], "absorption", "must be 0 with pyreflect, which ignores some of it")


class CnnExample(Params):
    """The test curve whose error is the median, and what the model makes of it.

    z grows from the backing medium to the fronting one.
    """

    q: list[float]
    reflectivity: list[float]
    # None where the profile is none that could be calculated.
    predicted_reflectivity: list[float] | None
    z: list[float]
    sld: list[float]
    predicted_z: list[float]
    predicted_sld: list[float]


class CnnResult(Params):
    """What a training gave; metrics are those of the test curves."""

    model_name: str
    ended_by: Literal["epochs", "stop", "patience"]
    precision: Literal["float32", "bfloat16"]
    curves: int
    # Of the file of weights, in 1e6 bytes.
    model_megabytes: float = Field(0.0, title="Size of the model (MB)")
    metrics: dict[str, float]
    channels: list[ChannelErrors] = shown("table", ON_TEST)
    residuals: Residuals = shown("pairs", RESIMULATED)
    seconds: Seconds = shown("pairs", "Seconds")
    provenance: Provenance
    losses: list[EpochLosses]
    normalisation: Normalisation
    example: CnnExample


def _q_spacing() -> Any:
    """A field of what reads a network: nothing in its files says it."""
    return Field(
        "log",
        title="Spacing of q",
        description="Of the curves that it was trained with, between the ends that the statistics tell.",
    )


class ImportModelParams(Params):
    """Publish a model that the package pyreflect trained."""

    model_name: str = model_name("imported")
    kind: Literal["cnn", "chi"] = Field(
        "cnn",
        title="Kind",
        description="cnn: reflectivity to SLD profile. chi: autoencoder and perceptron, SLD profile to chi.",
    )
    q_spacing: Literal["log", "linear"] = _q_spacing()


class ImportModelResult(Params):
    """What was imported."""

    model_name: str
    architecture: str
    weights: int


class PredictParams(Params):
    """Read SLD profiles from measured curves with a network that the package pyreflect trained."""

    q_spacing: Literal["log", "linear"] = _q_spacing()
    resolution: float = Field(
        LEGACY_RELATIVE_SIGMA,
        title="Resolution dq/q",
        description="Of curves that come without one. 0 for none.",
        ge=0,
        le=0.3,
    )
    resolution_convention: ResolutionConvention = Field("sigma", title="What that resolution means")
    dq_convention: ResolutionConvention | None = Field(
        None, title="What dq in the file means", description="Needed where the file has dq and does not say."
    )
    beam: BeamSide = Field("fronting", title="Beam side", description="Of curves whose file does not say it.")


class PredictedCurve(Params):
    """A measured curve and what the network makes of it: z grows from the backing medium to the fronting."""

    q: list[float]
    reflectivity: list[float]
    # Of the answer, at the resolution of the curve; None where it is no profile that could be calculated.
    predicted_reflectivity: list[float] | None
    z: list[float]
    sld: list[float]


class CurveMisfit(Params):
    """How far the curve of an answer is from the measured one; None where it cannot be said."""

    name: str = Field(title="Curve")
    points: int = Field(title="Points")
    mean_abs_log10_error: float | None = Field(title="Mean |Δ log10 R|")
    chi_square_per_point: float | None = Field(title="Chi-square per point")


class PredictResult(Params):
    """What the network answers; the profiles of all curves are in profiles.npy.

    `residuals` are those of the measured points that the network sees, above 1e-8; chi-squares are of all
    points, with scale 1 and without background, and of the curves that have dr.
    """

    curves: int = Field(title="Curves")
    # Of the first curves.
    answers: list[PredictedCurve]
    misfits: list[CurveMisfit] = shown("table", "Measured curves and those of the answers")
    residuals: Residuals = shown("pairs", RESIMULATED)
    # Each begins with the name of its curve.
    notes: list[Note] = shown("table", "What to know of these answers")
    seconds: float = Field(title="Seconds")
    provenance: Provenance
