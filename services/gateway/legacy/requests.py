"""What the old web app asks for: the body of /generate, /generate/stream and /jobs/submit, and its limits."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

from services.gateway.settings import LimitSettings

Gpu = Literal["T4", "L4", "A10G", "L40S", "A100", "A100-80GB", "H100", "H200", "B200"]
Parameter = Literal["sld", "isld", "thickness", "roughness"]
Architecture = Literal["physical", "pyreflect_cnn"]
# In 1e-6/angstrom^2. The old app took 0 to 10 and so refused water and titanium; these are all materials.
SLD_RANGE = (-10.0, 150.0)
# What a bound of a layer's parameter may be, in the parameter's unit.
PARAMETER_RANGES: dict[Parameter, tuple[float, float]] = {
    "sld": SLD_RANGE,
    "isld": (0.0, 1.0),
    "thickness": (0.0, 1000.0),
    "roughness": (0.0, 200.0),
}
# Substrate, oxide and air, around the film.
OUTER_LAYERS = 3


class _Part(BaseModel):
    """Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, alias_generator=to_camel)


class FilmLayer(_Part):
    """A layer: SLD in 1e-6/angstrom^2, thickness and roughness in angstrom."""

    name: str = "layer"
    sld: float = Field(ge=SLD_RANGE[0], le=SLD_RANGE[1])
    isld: float = Field(0.0, ge=0, le=1)
    thickness: float = Field(100.0, ge=0, le=1000)
    roughness: float = Field(10.0, ge=0, le=200)


class LayerBound(_Part):
    """What a layer's parameter may be."""

    i: int = Field(ge=0)
    par: Parameter
    bounds: tuple[float, float]


class Generator(_Part):
    """The curves to train with."""

    num_curves: int = Field(1000, ge=1, le=100_000)
    # 0 is a film that is nothing but an oxide, and needs bounds.
    num_film_layers: int = Field(5, ge=0, le=20)
    layer_bound: list[LayerBound] | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.num_film_layers == 0 and not self.layer_bound:
            kind = PydanticCustomError(
                "greater_than_equal", "Input should be greater than or equal to 1", {"ge": 1}
            )
            details = InitErrorDetails(type=kind, loc=("numFilmLayers",), input=0)
            raise ValidationError.from_exception_data("Generator", [details])
        return self


class Training(_Part):
    """How long and how the networks are trained."""

    batch_size: int = Field(32, ge=1, le=512)
    epochs: int = Field(10, ge=1, le=1000)
    layers: int = Field(12, ge=1, le=20)
    dropout: float = Field(0.0, ge=0, le=0.9)
    latent_dim: int = Field(16, ge=2, le=128)
    ae_epochs: int = Field(50, ge=1, le=500)
    mlp_epochs: int = Field(50, ge=1, le=500)
    # Not of the old app: which network; where it is left out, the gateway's settings say it.
    architecture: Architecture | None = None


class GenerateRequest(_Part):
    """A run."""

    layers: list[FilmLayer]
    generator: Generator
    training: Training
    name: str | None = None
    data_source: Literal["synthetic", "real"] = "synthetic"
    workflow: Literal["nr_sld", "sld_chi", "nr_sld_chi"] = "nr_sld"
    mode: Literal["train", "infer"] = "train"
    auto_generate_model_stats: bool = True
    gpu: Gpu = "T4"

    @property
    def is_real(self) -> bool:
        """Whether it is about measured data."""
        return self.data_source == "real"

    @property
    def bounds(self) -> list[LayerBound]:
        """The bounds of the layers; without any, the layers do not shape the data."""
        return self.generator.layer_bound or []


_Rule = tuple[str, str, str]
# Where a request has it, its name, and the limit's.
_GENERATOR_LIMITS: tuple[_Rule, ...] = (
    ("generator", "num_curves", "max_curves"),
    ("generator", "num_film_layers", "max_film_layers"),
)
_TRAINING_LIMITS: tuple[_Rule, ...] = (
    ("training", "batch_size", "max_batch_size"),
    ("training", "epochs", "max_epochs"),
    ("training", "layers", "max_cnn_layers"),
    ("training", "dropout", "max_dropout"),
    ("training", "latent_dim", "max_latent_dim"),
    ("training", "ae_epochs", "max_ae_epochs"),
    ("training", "mlp_epochs", "max_mlp_epochs"),
)


def exceeded(request: GenerateRequest, limits: LimitSettings) -> str:
    """Every limit that a request exceeds, in one sentence; empty when it keeps them all.

    Curves and layers of a run on measured data are not made, and so not limited.
    """
    rules = _TRAINING_LIMITS if request.is_real else _GENERATOR_LIMITS + _TRAINING_LIMITS
    found = []
    for part, name, limit in rules:
        value, most = getattr(getattr(request, part), name), getattr(limits, limit)
        if value > most:
            found.append(f"{part}.{to_camel(name)}: got {value:g}; the limit is {most:g}")
    return "; ".join(found)


def wrong_bounds(request: GenerateRequest) -> str:
    """What is wrong with the bounds, in one sentence; empty when nothing is."""
    bounds, layers = request.bounds, request.layers
    if not bounds or request.is_real:
        return ""
    if len(layers) < OUTER_LAYERS:
        return f"layers: got {len(layers)}; with bounds at least {OUTER_LAYERS}: substrate, oxide, air"
    films = len(layers) - OUTER_LAYERS
    if request.generator.num_film_layers != films:
        return (
            f"generator.numFilmLayers: got {request.generator.num_film_layers};"
            f" with bounds it is the number of layers less {OUTER_LAYERS}, {films}"
        )
    for place, bound in enumerate(bounds):
        field = f"generator.layerBound[{place}]"
        low, high = bound.bounds
        lowest, highest = PARAMETER_RANGES[bound.par]
        if bound.i >= len(layers):
            return f"{field}.i: got {bound.i}; allowed: 0 to {len(layers) - 1}, the layers"
        if low > high:
            return f"{field}.bounds: got {low:g} to {high:g}; the first must not be above the second"
        for value in bound.bounds:
            if not lowest <= value <= highest:
                return f"{field}.bounds: got {value:g}; allowed for {bound.par}: {lowest:g} to {highest:g}"
    return ""


def kept(request: GenerateRequest) -> dict[str, Any]:
    """The request as it is kept with its job and in the history, defaults filled in."""
    return request.model_dump(mode="json", by_alias=True)
