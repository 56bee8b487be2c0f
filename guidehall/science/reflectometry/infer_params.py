"""Parameters and results of `reflectometry.infer`. Units as in `params`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from guidehall.science.pipeline import UserError, refuse_field, shown
from guidehall.science.reflectometry.params import (
    MAX_SEGMENTS,
    LayerName,
    LayerPrior,
    Note,
    Params,
    Range,
    ResolutionConvention,
    ResolutionMode,
    SegmentParameter,
    StackPrior,
    Tie,
    TrainingProbe,
    segment_bounds,
)

MAX_CURVES = 200
MAX_SAMPLES = 5000
MAX_STARTS = 1000
MAX_LAYER_COUNT = 8


class Instrument(Params):
    """What is known of the measurement besides the film. Each curve has values of its own."""

    scale: Range = Field(
        Range(min=0.8, max=1.2), title="Scale", description="Measured = scale x reflectivity + background."
    )
    background: Range = Field(
        Range(min=1e-9, max=1e-4), title="Background", description="Searched evenly in its logarithm."
    )
    q_offset: Range = Field(
        Range(min=0.0, max=0.0),
        title="Offset of q",
        description="The true q is the measured one plus this.",
        json_schema_extra={"unit": "1/angstrom"},
    )
    footprint_q: Range = Field(
        Range(min=0.0, max=0.0),
        title="Footprint",
        description="Below this q the beam is wider than the sample, which reflects q / footprint of it.",
        json_schema_extra={"unit": "1/angstrom"},
    )
    segments: bool = Field(
        False,
        title="Own scale and background of each segment",
        description="Where a curve was measured at several angles that its file keeps apart.",
    )
    segment_bounds: dict[SegmentParameter, Range] = Field(
        default_factory=dict,
        title="Bounds of single segments",
        description='By name, such as "scale[2]" and "background[2]" of the second; others have the bounds'
        " of the first.",
        max_length=2 * MAX_SEGMENTS,
    )
    resolution: float = Field(
        0.05,
        title="Resolution dq/q",
        description="Of curves that come without one. 0 for none.",
        ge=0,
        le=0.3,
    )
    resolution_convention: ResolutionConvention = Field("fwhm", title="What that resolution means")
    resolution_mode: ResolutionMode = Field("quadrature", title="How resolution is calculated")

    @model_validator(mode="after")
    def _possible(self) -> Instrument:
        try:
            probe = probe_of(self)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            refuse_field(self, [str(part) for part in fault["loc"]], fault["input"], fault["msg"])
        for name, bounds in self.segment_bounds.items():
            if not self.segments:
                refuse_field(self, ["segment_bounds"], name, "only where segments is set")
            try:
                segment_bounds(probe, name, bounds)
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]
                path = ["segment_bounds", name, *(str(part) for part in fault["loc"][1:])]
                refuse_field(self, path, fault["input"], fault["msg"])
        return self


def probe_of(instrument: Instrument) -> TrainingProbe:
    """The same as a prior reads it."""
    width = Range(min=instrument.resolution, max=instrument.resolution)
    return TrainingProbe(
        # Not used: each curve has its own range.
        q_min=0.001,
        q_max=1.0,
        scale=instrument.scale,
        background=instrument.background,
        q_offset=instrument.q_offset,
        footprint_q=instrument.footprint_q,
        resolution=width,
        resolution_convention=instrument.resolution_convention,
        resolution_mode=instrument.resolution_mode,
    )


class OwnBounds(Params):
    """What of one curve's sample differs from the others'."""

    curve: str = Field(
        ..., title="Curve", description="Its name in the file, or its place: 1, 2, …", max_length=200
    )
    bounds: dict[str, Range] = Field(
        title="Own bounds",
        description='By the parameter\'s name, such as "water.sld", "scale" or "scale[2]".',
        max_length=100,
    )


def own_bounds(contrasts: Sequence[OwnBounds], names: Sequence[str]) -> list[dict[str, Range]]:
    """For each of the curves, which are called so, the bounds that hold for it alone.

    Raises:
        UserError: there is no such curve.
    """
    own: dict[str, dict[str, Range]] = {name: {} for name in names}
    for place, contrast in enumerate(contrasts):
        name = contrast.curve
        if name not in own and name.isdecimal() and 1 <= int(name) <= len(names):
            name = names[int(name) - 1]
        if name not in own:
            allowed = f"the curves are {', '.join(names[:10])}"
            raise UserError(f"contrasts[{place}].curve", contrast.curve, allowed)
        own[name].update(contrast.bounds)
    return list(own.values())


class InferParams(Params):
    """Find the film behind measured curves."""

    stack: StackPrior
    instrument: Instrument = Field(default_factory=Instrument)
    relation: Literal["independent", "contrasts", "series"] = Field(
        "independent",
        title="How the curves belong together",
        description="independent: a film each. contrasts: one film, seen several times, such as in several"
        " liquids. series: a film that changes, each curve fitted from the answer to the one before.",
    )
    contrasts: tuple[OwnBounds, ...] = Field(
        (),
        title="What differs between contrasts",
        description="Of all other parameters the curves share one value.",
        max_length=MAX_CURVES,
    )
    dq_convention: ResolutionConvention | None = Field(
        None, title="What dq in the file means", description="Needed where the file has dq and does not say."
    )
    layer_counts: int = Field(
        0,
        title="Layers to count up to",
        description="Compares films with 1 to so many layers in the place of one, for each curve or for all"
        " contrasts together. 0 does not.",
        ge=0,
        le=MAX_LAYER_COUNT,
    )
    counted_layer: LayerName | None = Field(
        None,
        title="Layer to count",
        description="Needed where more than one layer of the stack has bounds of SLD and thickness.",
    )
    starts: int = Field(24, title="Starts of each fit", ge=1, le=MAX_STARTS)
    samples: int = Field(
        500,
        title="Samples of the posterior",
        description="For intervals and bands, where the curve has dr. 0 leaves them out.",
        ge=0,
        le=MAX_SAMPLES,
    )

    @model_validator(mode="after")
    def _consistent(self) -> InferParams:
        if self.contrasts and self.relation != "contrasts":
            refuse_field(self, ["contrasts"], self.relation, "only where relation is contrasts")
        if self.layer_counts and self.relation == "series":
            allowed = "must be 0 where relation is series: the layers of a film that changes are not counted"
            refuse_field(self, ["layer_counts"], self.layer_counts, allowed)
        if self.layer_counts:
            able = [layer.name for layer in self.stack.layers if _counts(layer)]
            if self.counted_layer not in (able if len(able) != 1 else (*able, None)):
                there = f"a layer with bounds of SLD and thickness: {', '.join(able) or 'there is none'}"
                refuse_field(self, ["counted_layer"], self.counted_layer or "none", there)
            try:
                self.with_layers(self.layer_counts)
            except ValidationError as error:
                allowed = f"must be 0 for this stack: {error.errors(include_url=False)[0]['msg']}"
                refuse_field(self, ["layer_counts"], self.layer_counts, allowed)
        return self

    def with_layers(self, count: int) -> StackPrior:
        """The stack with `count` layers in the place of the one that is counted: layer1, layer2, …

        Raises:
            ValidationError: a group or an expression names the layer that is gone, or a medium is called so.
        """
        layers: list[LayerPrior] = []
        for layer in self.stack.layers:
            if layer.name == self.counted_layer or (self.counted_layer is None and _counts(layer)):
                layers += (
                    layer.model_copy(update={"name": f"layer{place}"}) for place in range(1, count + 1)
                )
            else:
                layers.append(layer)
        return StackPrior.model_validate({**dict(self.stack), "layers": layers})


def _counts(layer: LayerPrior) -> bool:
    """Whether more of a layer could explain more: it has bounds of SLD and of thickness."""
    found = (getattr(layer, kind) for kind in ("sld", "thickness"))
    return all(isinstance(item, Range) and not isinstance(item, Tie) and not item.fixed for item in found)


class FoundParameter(Params):
    """A parameter that was found."""

    name: str = Field(title="Parameter")
    value: float
    standard_error: float | None = Field(title="± 1 SD")
    interval_68: tuple[float, float] | None = Field(title="68 %")
    interval_95: tuple[float, float] | None = Field(title="95 %")
    unit: str
    lower: float = Field(title="Lowest")
    upper: float = Field(title="Highest")
    at_bound: str = Field(
        "", title="", description="Where the value rests at a bound, which chose it instead of the curve."
    )


class FoundFilm(Params):
    """One of the films that explain the curves, by parameter; chi-square is that of all curves of the fit."""

    values: dict[str, float]
    chi_square: float = Field(title="chi-square")


class FittedCurve(Params):
    """One curve and the answer to it. Artifacts begin with its `label`."""

    label: LayerName = Field(title="Files begin with")
    name: str
    points: int
    chi_square: float | None = Field(title="Chi-square")
    reduced_chi_square: float | None = Field(title="Chi-square per degree of freedom")
    mean_abs_log10_error: float | None = Field(title="Mean |Δ log10 R|")
    effective_samples: float | None = Field(title="Independent samples, about")
    parameters: list[FoundParameter] = shown("table", "Parameters")
    explanations: list[FoundFilm] = shown("columns", "Films that explain the curve, the best first")
    notes: list[Note] = shown("table", "What to know of this answer")


class LayerEvidence(Params):
    """How well a number of layers explains a curve: differences of log evidence beyond 5 are decisive."""

    # Empty where the curves are contrasts, which have one film.
    curve: str = ""
    layers: int
    log_evidence: float = Field(title="Log evidence")
    probability: float
    chi_square: float = Field(title="Chi-square")
    # Probabilities compare these films alone: the best of them may be wrong, too.
    doubts: str = Field("", title="Doubts")


class InferResult(Params):
    """What the curves say."""

    curves: list[FittedCurve] = shown("sections", "Curve")
    # Curves that were not fitted are missing then.
    stopped_early: bool = False
    layer_evidence: list[LayerEvidence] = shown("table", "How many layers the data support")
    engine: str
    seconds: float
