"""Parameters and results of the pipelines from SLD profiles to chi. Needs no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from guidehall.science.pipeline import Provenance, refuse_field, shown
from guidehall.science.reflectometry.cnn.params import CnnParams, CnnResult, PredictedCurve
from guidehall.science.reflectometry.network_params import Channels, EpochTraining, Extent, model_name
from guidehall.science.reflectometry.params import ON_TEST, ChannelErrors, EpochLosses, Params, Seconds

MIN_PROFILES, MAX_PROFILES = 10, 200_000
MAX_CHI, MAX_LATENT, MAX_PROFILE_POINTS = 64, 256, 4096


class ChiFilter(Params):
    """Profiles to train with: those whose chi lies in a range."""

    parameter: int = Field(title="Which chi", description="1 is the first column.", ge=1, le=MAX_CHI)
    min: float = Field(title="Lowest")
    max: float = Field(title="Highest")

    @model_validator(mode="after")
    def _ordered(self) -> ChiFilter:
        if self.max < self.min:
            refuse_field(self, ["max"], self.max, f"must not be below min, {self.min}")
        return self


class AutoencoderTraining(EpochTraining):
    """How the autoencoder is trained."""

    epochs: int = Field(100, title="Epochs", description="It is validated after each.", ge=1, le=10_000)
    learning_rate: float = Field(1e-3, title="Learning rate", gt=0, le=1)
    weight_decay: float = Field(0.0, title="Weight decay", ge=0, le=1)
    divergence: float = Field(
        1e-5,
        title="Weight of the divergence",
        description="Of the latent space from a standard normal distribution, beside the mean squared error.",
        ge=0,
        le=10,
    )


class PerceptronTraining(EpochTraining):
    """How the perceptron is trained."""

    epochs: int = Field(200, title="Epochs", description="It is validated after each.", ge=1, le=10_000)
    learning_rate: float = Field(1e-3, title="Learning rate", gt=0, le=1)
    weight_decay: float = Field(0.0, title="Weight decay", ge=0, le=1)


class ChiParams(Params):
    """Train a model from SLD profiles to chi, and apply it."""

    model_name: str = model_name("chi")
    latent_dim: int = Field(16, title="Latent dimensions", ge=1, le=MAX_LATENT)
    filters: tuple[ChiFilter, ...] = Field(
        (),
        title="Ranges of chi to train with",
        description="Profiles outside are left out; what the model answers outside is marked.",
        max_length=MAX_CHI,
    )
    level: float = Field(
        0.9, title="Level of the intervals", description="Share of the true values in them.", ge=0.5, le=0.99
    )
    autoencoder: AutoencoderTraining = Field(default_factory=AutoencoderTraining)
    perceptron: PerceptronTraining = Field(default_factory=PerceptronTraining)


class ChiPoint(Params):
    """One chi: `x` counts from 1. `actual` is None for a profile whose chi nobody knows."""

    x: int = Field(title="Chi")
    predicted: float
    actual: float | None


class ChiPrediction(Params):
    """What the model makes of one profile, one number for each chi.

    `in_range` says which answers lie within what it was trained with, `typical` whether the profile is
    reconstructed as well as those were.
    """

    chi: list[float]
    low: list[float]
    high: list[float]
    in_range: list[bool]
    typical: bool
    latent: list[float]


class ChiScatter(Params):
    """Test profiles: true and predicted values of one chi."""

    actual: list[float]
    predicted: list[float]


class ChiProfile(Params):
    """A profile, on the points of the network, and what the autoencoder makes of it."""

    z: list[float]
    sld: list[float]
    reconstructed_sld: list[float]


class ChiResult(Params):
    """What a training gave; metrics are those of the whole test split, in units of chi."""

    model_name: str
    stopped_early: bool
    profiles: int
    flat_profiles: int
    filtered_profiles: int
    metrics: dict[str, float]
    channels: list[ChannelErrors] = shown("table", ON_TEST)
    seconds: Seconds = shown("pairs", "Seconds")
    provenance: Provenance
    autoencoder_losses: list[EpochLosses]
    perceptron_losses: list[EpochLosses]
    # Of the first profile to predict; without one, of the test profile whose error is the median.
    chi: list[ChiPoint] = shown("table", "Chi of one profile")
    # Of the profiles to predict.
    predictions: list[ChiPrediction] = shown("columns", "Profiles to predict")
    test: dict[Annotated[str, Field(pattern=r"^chi\d+$")], ChiScatter]
    # That of `chi`; of results that are older there is none.
    profile: ChiProfile | None = None


_UNSCALED = Extent(min=0.0, max=1.0)


class ChiStatistics(Params):
    """What pyreflect knows while it trains and does not keep: needed to import its networks."""

    # Limits of each chi in the training, which the perceptron means by -1 and 1.
    chi: tuple[Extent, ...] = Field(min_length=1, max_length=MAX_CHI)
    # What the network sees as 0 and 1; pyreflect itself scales no profiles.
    sld: Channels = Channels(x=_UNSCALED, y=_UNSCALED)


class NrSldChiParams(Params):
    """From reflectivity to SLD profiles, and from those to chi."""

    cnn: CnnParams | None = Field(
        default_factory=CnnParams,
        title="Network from reflectivity to profiles",
        description="Without it, the model in the roles weights and statistics is taken.",
    )
    chi: ChiParams = Field(default_factory=ChiParams)

    @model_validator(mode="after")
    def _two_names(self) -> NrSldChiParams:
        if self.cnn is not None and self.cnn.model_name == self.chi.model_name:
            refuse_field(self, ["chi", "model_name"], self.chi.model_name, "must differ from cnn.model_name")
        return self


class NrSldChiResult(Params):
    """What both parts gave; `chi.predictions` follow the curves of experimental_nr."""

    cnn: CnnResult | None = shown("sections", "From reflectivity to profiles")
    chi: ChiResult = shown("sections", "From profiles to chi")
    # The first of the curves that were predicted; of results that are older there is none.
    curve: PredictedCurve | None = None
