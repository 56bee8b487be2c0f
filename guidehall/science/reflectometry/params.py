"""Parameters and results of the reflectometry pipelines.

Units throughout: q in 1/angstrom, thickness and roughness in angstrom, scattering length density (SLD) in
1e-6/angstrom^2. A stack runs from the fronting medium through the layers to the backing medium; roughness
belongs to the interface between a layer and its neighbour on the fronting side. Resolution is relative, dq/q,
and says whether it is a standard deviation or a full width at half maximum (FWHM).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from guidehall.science.pipeline import MODEL_NAME, Provenance, refuse_field, shown
from guidehall.science.reflectometry.expressions import (
    Expression,
    Interval,
    Tangled,
    identifier,
    order,
)
from guidehall.science.reflectometry.expressions import bounds as bounds_of

MAX_LAYERS = 40
# With those that are repeated counted as often as they are there.
MAX_LAYERS_IN_ALL = 400
MAX_POINTS = 20_000
MAX_FIXED_CURVES = 200_000
# Runs of a curve, such as angles, that are kept apart.
MAX_SEGMENTS = 32
# Titles in the results of trainings.
ON_TEST, RESIMULATED = "Errors on the test split", "Curves of the answers, calculated again"
# 2 sqrt(2 ln 2)
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))

SLD_UNIT = "1e-6/angstrom^2"
_SLD_LIMITS = (-10.0, 150.0)
_ISLD_LIMITS = (0.0, 50.0)
_THICKNESS_LIMITS = (0.0, 20_000.0)
# Beyond this the Nevot-Croce factor overflows for the strongest contrasts allowed here.
_ROUGHNESS_LIMITS = (0.0, 200.0)

_LONGEST_EXPRESSION = 200

BeamSide = Literal["fronting", "backing"]
ResolutionConvention = Literal["fwhm", "sigma"]
# "quadrature" integrates over the resolution function; "refl1d" does what that package does without
# oversampling.
ResolutionMode = Literal["quadrature", "refl1d"]


def _quantity(default: Any, title: str, unit: str = "", **more: Any) -> Any:
    """A field with what forms and documentation show; `...` as default makes it required."""
    return Field(default, title=title, json_schema_extra={"unit": unit} if unit else None, **more)


class Params(BaseModel):
    """Base of all parameters and results."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")]
# Of a further segment of a curve; the first has no number.
SegmentParameter = Annotated[str, Field(pattern=r"^(scale|background)\[([2-9]|[12][0-9]|3[0-2])\]$")]
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_ -]{0,39}$")]


def _limited(limits: tuple[float, float]) -> dict[str, float]:
    return {"ge": limits[0], "le": limits[1]}


class Medium(Params):
    """A semi-infinite medium."""

    name: LayerName = _quantity("medium", "Name")
    sld: float = _quantity(..., "SLD", SLD_UNIT, description="Real part.", **_limited(_SLD_LIMITS))
    isld: float = _quantity(
        0.0, "Absorption", SLD_UNIT, description="Imaginary part of the SLD.", **_limited(_ISLD_LIMITS)
    )


class Backing(Medium):
    """The medium behind the last layer."""

    roughness: float = _quantity(
        0.0,
        "Roughness",
        "angstrom",
        description="Of its interface with what is in front of it.",
        **_limited(_ROUGHNESS_LIMITS),
    )


class Layer(Backing):
    """A layer of known structure."""

    name: LayerName = _quantity("layer", "Name")
    thickness: float = _quantity(..., "Thickness", "angstrom", **_limited(_THICKNESS_LIMITS))


class Repeat(Params):
    """A group of neighbouring layers that is there several times, one behind the other: a multilayer.

    All are alike. The roughness of the group's first layer is that of the interface before each of them.
    """

    first: LayerName = Field(title="First layer")
    last: LayerName = Field(title="Last layer")
    times: int = Field(title="Times in all", ge=2, le=MAX_LAYERS_IN_ALL)


def _repeats() -> Any:
    return Field((), title="Repeated groups", max_length=MAX_LAYERS)


def _sequence(stack: Stack | StackPrior) -> tuple[int, ...]:
    """Index of each layer from fronting to backing, those of repeated groups several times.

    Raises:
        ValidationError: a group cannot be.
    """
    names = [layer.name for layer in stack.layers]
    times = {}
    ends: dict[int, int] = {}
    for number, group in enumerate(stack.repeats):
        for end in ("first", "last"):
            name: str = getattr(group, end)
            if names.count(name) != 1:
                allowed = "must be the name of one layer" + (" only" if name in names else "")
                refuse_field(stack, ["repeats", number, end], name, allowed)
        start, stop = names.index(group.first), names.index(group.last)
        if stop < start:
            refuse_field(stack, ["repeats", number, "last"], group.last, "must not be in front of first")
        if any(start <= other_stop and other_start <= stop for other_start, other_stop in ends.items()):
            refuse_field(stack, ["repeats", number, "first"], group.first, "groups must not overlap")
        ends[start], times[start] = stop, group.times
    found: list[int] = []
    place = 0
    while place < len(names):
        stop = ends.get(place, place)
        found += list(range(place, stop + 1)) * times.get(place, 1)
        place = stop + 1
    if len(found) > MAX_LAYERS_IN_ALL:
        allowed = f"at most {MAX_LAYERS_IN_ALL} layers in all"
        refuse_field(stack, ["repeats"], f"{len(found)} layers", allowed)
    return tuple(found)


class Stack(Params):
    """A film of known structure between two media."""

    fronting: Medium = Field(title="Fronting medium", description="First medium, such as air or silicon.")
    # A multilayer may be written out.
    layers: tuple[Layer, ...] = Field((), title="Layers", max_length=MAX_LAYERS_IN_ALL)
    backing: Backing = Field(title="Backing medium", description="Last medium, such as silicon or a liquid.")
    beam: BeamSide = _quantity("fronting", "Beam side", description="The medium that the beam comes through.")
    repeats: tuple[Repeat, ...] = _repeats()

    @model_validator(mode="after")
    def _repeatable(self) -> Stack:
        _sequence(self)
        return self

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers, those of repeated groups as often as they are there."""
        return tuple(self.layers[index] for index in _sequence(self))


_Q_OFFSET = "The true q is the measured one plus this; at most half of the lowest q."
_FOOTPRINT = (
    "Below, only the share q / footprint_q of the beam meets the sample; 0 for none."
    " It is 4 pi w / (wavelength x length of the sample), w the width of the beam."
)


def _check_offset(probe: Probe | TrainingProbe, path: Sequence[str], value: float) -> None:
    # So that no q becomes negative.
    most = 0.5 * probe.q_min
    if abs(value) > most:
        refuse_field(probe, path, value, f"must be between {-most:g} and {most:g}")


class Probe(Params):
    """Where and how a curve is measured."""

    q_min: float = _quantity(0.008, "Lowest q", "1/angstrom", gt=0, le=5)
    q_max: float = _quantity(0.2, "Highest q", "1/angstrom", gt=0, le=5)
    points: int = _quantity(300, "Points", ge=2, le=MAX_POINTS)
    spacing: Literal["log", "linear"] = _quantity("log", "Spacing")
    resolution: float = _quantity(0.05, "Resolution dq/q", description="0 for none.", ge=0, le=0.3)
    resolution_convention: ResolutionConvention = _quantity("fwhm", "What the resolution means")
    scale: float = _quantity(
        1.0, "Scale", description="Measured = scale x reflectivity + background.", gt=0, le=10
    )
    background: float = _quantity(0.0, "Background", ge=0, le=0.1)
    q_offset: float = _quantity(0.0, "Offset of q", "1/angstrom", description=_Q_OFFSET, ge=-2.5, le=2.5)
    footprint_q: float = _quantity(
        0.0, "Over-illuminated below q", "1/angstrom", description=_FOOTPRINT, ge=0, le=5
    )

    @model_validator(mode="after")
    def _ordered(self) -> Probe:
        if self.q_max <= self.q_min:
            refuse_field(self, ["q_max"], self.q_max, f"must be larger than q_min, {self.q_min}")
        _check_offset(self, ["q_offset"], self.q_offset)
        return self

    def q(self) -> np.ndarray:
        """The points, in 1/angstrom."""
        return grid(self.q_min, self.q_max, self.points, self.spacing)

    @property
    def relative_sigma(self) -> float:
        """Resolution dq/q as a standard deviation."""
        return sigma_of(self.resolution, self.resolution_convention)


class SimulateParams(Params):
    """A stack and how it is measured."""

    stack: Stack
    probe: Probe = Field(default_factory=Probe)
    profile_points: int = _quantity(500, "Points of the SLD profile", ge=10, le=MAX_POINTS)

    @model_validator(mode="after")
    def _affordable(self) -> SimulateParams:
        points = self.probe.points
        if points * (len(self.stack.all_layers) + 1) > 1_000_000:
            refuse_field(self, ["probe", "points"], points, "points x interfaces must not be above 1e6")
        return self


@dataclass(frozen=True)
class Note:
    """What a reader of an answer must know. `code` is for programs and stays the same."""

    code: str
    message: str


class SimulateResult(Params):
    """A calculated curve and the profile behind it."""

    q: list[float]
    reflectivity: list[float]
    # One standard deviation.
    resolution: list[float]
    z: list[float]
    sld: list[float]
    isld: list[float]
    notes: list[Note] = Field(default_factory=list)


class Range(Params):
    """What a parameter may be; the same number twice, or a plain number, fixes it."""

    min: float = Field(title="Lowest")
    max: float = Field(title="Highest")

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"min": value, "max": value} if number else value

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.max < self.min:
            refuse_field(self, ["max"], self.max, f"must not be below min, {self.min}")
        return self

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to find out."""
        return self.min == self.max


class Tie(Range):
    """A parameter that others decide; what lies beyond `min` or `max` is brought to that end."""

    expression: str = Field(title="Expression", max_length=_LONGEST_EXPRESSION)

    @model_validator(mode="after")
    def _readable(self) -> Tie:
        try:
            Expression(self.expression)
        except ValueError as error:
            refuse_field(self, ["expression"], self.expression, str(error))
        return self

    @property
    def fixed(self) -> bool:
        """There is nothing to find out that others do not tell."""
        return True


_TIED = {
    "type": "string",
    "title": "Expression",
    "description": "Of other parameters, such as 2 * film.thickness, in the place of both bounds.",
    "maxLength": _LONGEST_EXPRESSION,
}


@dataclass(frozen=True)
class _Within:
    """Annotates a field of type Range: both ends lie between these, which its JSON Schema says too.

    With `tied`, an expression is accepted in the place of the bounds, and the field then holds a Tie.
    """

    lowest: float
    highest: float
    tied: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        # A reference could not say limits that differ from field to field.
        shared = handler.resolve_ref_schema(handler(schema))
        limits = {"minimum": self.lowest, "maximum": self.highest}
        ends = {name: {**end, **limits} for name, end in shared["properties"].items()}
        if not self.tied:
            return {**shared, "properties": ends}
        either = {key: value for key, value in shared.items() if key != "required"}
        return {**either, "properties": {**ends, "expression": _TIED}}

    def _read(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Range:
        if self.tied and isinstance(value, str):
            value = {"expression": value}
        if self.tied and isinstance(value, Mapping) and value.get("expression") is not None:
            bounds: Range = Tie.model_validate({"min": self.lowest, "max": self.highest, **value})
        else:
            bounds = handler(value)
        for end in ("min", "max"):
            number: float = getattr(bounds, end)
            if not self.lowest <= number <= self.highest:
                refuse_field(bounds, [end], number, f"must be between {self.lowest:g} and {self.highest:g}")
        return bounds


SldRange = Annotated[SerializeAsAny[Range], _Within(*_SLD_LIMITS, tied=True)]
IsldRange = Annotated[SerializeAsAny[Range], _Within(*_ISLD_LIMITS, tied=True)]
ThicknessRange = Annotated[SerializeAsAny[Range], _Within(*_THICKNESS_LIMITS, tied=True)]
RoughnessRange = Annotated[SerializeAsAny[Range], _Within(*_ROUGHNESS_LIMITS, tied=True)]


def _range(default: Any, title: str, unit: str = "", description: str | None = None) -> Any:
    if default is not ...:
        default = Range(min=default[0], max=default[1])
    return _quantity(default, title, unit, description=description)


class MediumPrior(Params):
    """A semi-infinite medium with bounds."""

    name: LayerName = _quantity("medium", "Name")
    sld: SldRange = _range(..., "SLD", SLD_UNIT, "Real part.")
    isld: IsldRange = _range((0.0, 0.0), "Absorption", SLD_UNIT, "Imaginary part of the SLD.")


class BackingPrior(MediumPrior):
    """The medium behind the last layer, with bounds."""

    roughness: RoughnessRange = _range(
        (0.0, 0.0), "Roughness", "angstrom", "Of its interface with what is in front of it."
    )


class Molecules(Params):
    """What a layer one molecule thick is made of."""

    b: Annotated[SerializeAsAny[Range], _Within(-1e6, 1e6, tied=True)] = _range(
        ..., "Scattering length", "fm", "Of one molecule, in 1e-5 angstrom."
    )
    volume: Annotated[SerializeAsAny[Range], _Within(1.0, 1e7, tied=True)] = _range(
        ..., "Volume of one molecule", "angstrom^3"
    )
    area: Annotated[SerializeAsAny[Range], _Within(1.0, 1e6, tied=True)] = _range(
        ..., "Area per molecule", "angstrom^2"
    )


def _thickness_or_molecules(schema: dict[str, Any]) -> None:
    required = [name for name in schema["required"] if name not in ("sld", "thickness")]
    schema.pop("required")
    if required:
        schema["required"] = required
    schema["anyOf"] = [{"required": ["sld", "thickness"]}, {"required": ["molecules"]}]


class LayerPrior(BackingPrior):
    """A layer with bounds.

    With a volume fraction phi of solvent, the liquid of the stack, `sld` and `isld` are those of the dry
    layer and the film has (1 - phi) sld + phi sld(liquid), as with `vfsolv` of refnx.

    Molecules of scattering length b (fm), volume V and area A each fill in what is left out:

        sld       = 10 b / V            in 1e-6/angstrom^2
        thickness = V / (A (1 - phi))   where it is left out, with phi = 0 unless it is given
        phi       = 1 - V / (A t)       where the thickness t is given and phi is not

    as in Lu et al., Adv. Colloid Interface Sci. 84 (2000) 143, and in `LipidLeaflet` of refnx. The layer then
    also has `b`, `volume` and `area` for expressions.
    """

    model_config = ConfigDict(json_schema_extra=_thickness_or_molecules)

    name: LayerName = _quantity("layer", "Name")
    thickness: ThicknessRange = _range(..., "Thickness", "angstrom", "Needed unless there are molecules.")
    solvent: Annotated[SerializeAsAny[Range], _Within(0.0, 1.0, tied=True)] | None = _quantity(
        None, "Solvent", description="Volume fraction of the liquid; SLD and absorption are those without it."
    )
    molecules: Molecules | None = Field(
        None, title="Molecules", description="Give SLD and thickness, or SLD and solvent, of the layer."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_molecules(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("molecules") is None:
            return data
        name = identifier(str(data.get("name", "layer")))
        given = {key: value for key, value in data.items() if value is not None}
        found: dict[str, Any] = {"sld": f"10 * {name}.b / {name}.volume"}
        if "thickness" in given:
            found["solvent"] = f"1 - {name}.volume / ({name}.area * {name}.thickness)"
        else:
            found["thickness"] = f"{name}.volume / ({name}.area * (1 - {name}.solvent))"
            found["solvent"] = 0.0
        return {**found, **given}


@dataclass(frozen=True)
class Quantity:
    """A number that belongs to a film of a prior, or that expressions use.

    Attributes:
        name: such as "film.thickness".
        key: what expressions call it.
        kind: the part of the name behind the point; "parameter" for those that the user declared.
        path: of its field below the StackPrior.
    """

    name: str
    key: str
    kind: str
    path: tuple[str | int, ...]
    bounds: Range


def _quantity_of(part: str, kind: str, path: tuple[str | int, ...], bounds: Range) -> Quantity:
    return Quantity(f"{part}.{kind}", f"{identifier(part)}.{kind}", kind, path, bounds)


_FILM_KINDS = ("thickness", "sld", "isld", "roughness", "solvent")
# Beside the film, a fit finds these.
_TAKEN = ("scale", "background", "q_offset", "footprint_q")


class StackPrior(Params):
    """What is known of a film before it is measured."""

    fronting: MediumPrior = Field(title="Fronting medium")
    layers: tuple[LayerPrior, ...] = Field(
        title="Layers", max_length=MAX_LAYERS, json_schema_extra={"minItems": 1}
    )
    backing: BackingPrior = Field(title="Backing medium")
    beam: BeamSide = _quantity("fronting", "Beam side", description="The medium that the beam comes through.")
    repeats: tuple[Repeat, ...] = _repeats()
    liquid: BeamSide = _quantity("backing", "Liquid", description="The medium that is the solvent of layers.")
    max_roughness_share: float | None = _quantity(
        None,
        "Largest roughness",
        description="As a share of the thickness of the thinner layer beside it; what is more is cut.",
        gt=0,
        le=1,
    )
    parameters: dict[ParameterName, Annotated[SerializeAsAny[Range], _Within(-1e6, 1e6, tied=True)]] = Field(
        default_factory=dict,
        title="Further parameters",
        description="Names and bounds of parameters that expressions use.",
        max_length=MAX_LAYERS,
    )

    @model_validator(mode="after")
    def _names_and_freedom(self) -> StackPrior:
        # pydantic's own min_length would also complain whenever a layer is wrong.
        if not self.layers:
            refuse_field(self, ["layers"], "none", "at least one layer is needed")
        seen = {self.fronting.name: "fronting", self.backing.name: "backing"}
        if len(seen) < 2:
            refuse_field(
                self, ["backing", "name"], self.backing.name, "must differ from the name of fronting"
            )
        for index, layer in enumerate(self.layers):
            if layer.name in seen:
                refuse_field(
                    self,
                    ["layers", index, "name"],
                    layer.name,
                    f"must differ from that of {seen[layer.name]}",
                )
            seen[layer.name] = f"layers[{index}]"
        # First: parameters that need one another in a circle leave nothing free either, but that is why.
        self.intervals()
        if all(item.bounds.fixed for item in self.quantities()):
            refuse_field(
                self, ["layers"], "only fixed values", "at least one parameter must have min below max"
            )
        _ = self.sequence
        return self

    @property
    def sequence(self) -> tuple[int, ...]:
        """Index of each layer of the film, those of repeated groups several times."""
        return _sequence(self)

    def quantities(self) -> list[Quantity]:
        """All numbers of the film from fronting to backing, then the further parameters."""
        found = []
        paths: list[tuple[str | int, ...]] = [("layers", index) for index in range(len(self.layers))]
        parts = (self.fronting, *self.layers, self.backing)
        for path, part in zip([("fronting",), *paths, ("backing",)], parts, strict=True):
            for kind in _FILM_KINDS:
                bounds: Range | None = getattr(part, kind, None)
                if bounds is not None:
                    found.append(_quantity_of(part.name, kind, (*path, kind), bounds))
            if isinstance(part, LayerPrior) and part.molecules is not None:
                found += [
                    _quantity_of(part.name, kind, (*path, "molecules", kind), bounds)
                    for kind, bounds in part.molecules
                ]
        for name, bounds in self.parameters.items():
            found.append(Quantity(name, name, "parameter", ("parameters", name), bounds))
        return found

    def intervals(self) -> dict[str, Interval]:
        """What each quantity may be, by its key; those with an expression come after what they need.

        Raises:
            ValidationError: an expression is impossible.
        """
        quantities = {item.key: item for item in self.quantities()}
        ties = {key: item.bounds for key, item in quantities.items() if isinstance(item.bounds, Tie)}

        def refuse(key: str, allowed: str) -> NoReturn:
            refuse_field(self, [*quantities[key].path, "expression"], ties[key].expression, allowed)

        parsed = {key: Expression(tie.expression) for key, tie in ties.items()}
        for key, expression in parsed.items():
            if unknown := sorted(expression.names - quantities.keys()):
                near = difflib.get_close_matches(unknown[0], quantities, 3) or sorted(quantities)[:20]
                refuse(key, f"{unknown[0]} is unknown; there are {', '.join(near)}")
        self._check_parameters(quantities, parsed)
        found = {
            key: Interval(item.bounds.min, item.bounds.max)
            for key, item in quantities.items()
            if key not in ties
        }
        try:
            sequence = order(parsed)
        except Tangled as tangled:
            refuse(tangled.name, str(tangled))
        for key in sequence:
            low, high = ties[key].min, ties[key].max
            try:
                interval = bounds_of(parsed[key], found)
            except ValueError as error:
                refuse(key, str(error))
            if interval.high < low or interval.low > high:
                refuse(key, f"lies between {interval.low:g} and {interval.high:g}, never {low:g} to {high:g}")
            found[key] = interval.clamp(low, high)
        return found

    def _check_parameters(self, known: Mapping[str, Quantity], parsed: Mapping[str, Expression]) -> None:
        used = frozenset[str]().union(*(expression.names for expression in parsed.values()))
        for name in self.parameters:
            if name in _TAKEN or name != identifier(name):
                refuse_field(self, ["parameters", name], name, "this word is taken")
        for item in known.values():
            # A number of a molecule may be there for the record; a free one would never be found.
            silent = item.kind in Molecules.model_fields and item.bounds.fixed
            if item.kind not in _FILM_KINDS and not silent and item.key not in used:
                refuse_field(self, item.path, item.name, "must be in an expression")
        derived = self.max_roughness_share is not None or any(
            layer.solvent is not None for layer in self.layers
        )
        if (parsed or derived) and len(known) < len(self.quantities()):
            keys = [item.key for item in self.quantities()]
            twice = next(item for item in self.quantities() if keys.count(item.key) > 1)
            allowed = "expressions cannot tell it from another that differs only in spaces, - and _"
            refuse_field(self, [*twice.path[:-1], "name"], twice.name, allowed)


class TrainingProbe(Params):
    """The measurements that a model is made for."""

    q_min: float = _quantity(0.008, "Lowest q", "1/angstrom", gt=0, le=5)
    q_max: float = _quantity(0.2, "Highest q", "1/angstrom", gt=0, le=5)
    points: int = _quantity(
        128, "Points of the network's own grid", description="Spaced evenly in log q.", ge=16, le=1024
    )
    resolution: Annotated[Range, _Within(0.0, 0.3)] = _range((0.02, 0.08), "Resolution dq/q")
    resolution_convention: ResolutionConvention = _quantity("fwhm", "What the resolution means")
    resolution_mode: ResolutionMode = _quantity(
        "quadrature",
        "How resolution is calculated",
        description="refl1d blurs straight lines between the points of the grid, as that package does.",
    )
    partial_curves: float = _quantity(
        0.5,
        "Share of partial curves",
        description="So many training curves leave out a part of the range at its ends.",
        ge=0,
        le=1,
    )
    scale: Annotated[Range, _Within(0.01, 10.0)] = _range(
        (0.9, 1.1), "Scale", "", "Measured = scale x reflectivity + background."
    )
    background: Annotated[Range, _Within(0.0, 0.1)] = _range(
        (1e-8, 1e-5), "Background", "", "Drawn evenly in its logarithm: above 0 unless it is fixed."
    )
    q_offset: Annotated[Range, _Within(-2.5, 2.5)] = _range(
        (0.0, 0.0),
        "Offset of q",
        "1/angstrom",
        _Q_OFFSET,
    )
    footprint_q: Annotated[Range, _Within(0.0, 5.0)] = _range(
        (0.0, 0.0), "Over-illuminated below q", "1/angstrom", _FOOTPRINT
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingProbe:
        if self.q_max < 2 * self.q_min:
            refuse_field(self, ["q_max"], self.q_max, f"must be at least twice q_min, {2 * self.q_min:g}")
        if self.resolution_mode == "refl1d" and not self.resolution.fixed:
            refuse_field(
                self, ["resolution", "max"], self.resolution.max, "must equal min where the mode is refl1d"
            )
        if self.background.min < 1e-12 and not self.background.fixed:
            allowed = "must be at least 1e-12 where max is larger"
            refuse_field(self, ["background", "min"], self.background.min, allowed)
        for end, value in self.q_offset:
            _check_offset(self, ["q_offset", end], value)
        return self

    def q(self) -> np.ndarray:
        """The network's grid, in 1/angstrom."""
        return grid(self.q_min, self.q_max, self.points, "log")


def segment_bounds(probe: TrainingProbe, name: str, bounds: Range) -> Range:
    """The bounds of a further segment's parameter, such as "scale[2]", held to the rules of the first's.

    Raises:
        ValidationError: they break one; its path begins with "scale" or "background".
    """
    kind = name.partition("[")[0]
    checked: Range = getattr(TrainingProbe.model_validate({**dict(probe), kind: bounds}), kind)
    return checked


class Noise(Params):
    """Errors of measured points: dR^2 = (relative_error R)^2 + R / counts."""

    relative_error: float = _quantity(
        0.02, "Relative error", description="Part that does not depend on R.", ge=0, le=0.5
    )
    counts: Annotated[Range, _Within(1e2, 1e15)] = _range(
        (1e5, 1e8), "Neutrons per point at R = 1", "", "Drawn evenly in its logarithm."
    )


class Training(Params):
    """How long and how a network is trained."""

    epochs: int = _quantity(30, "Epochs", description="The model is validated after each.", ge=1, le=10_000)
    steps_per_epoch: int = _quantity(100, "Steps per epoch", ge=1, le=100_000)
    batch_size: int = _quantity(128, "Curves per step", ge=1, le=8192)
    fixed_curves: int = _quantity(
        0,
        "Curves made beforehand",
        description="0 makes fresh curves at every step.",
        ge=0,
        le=MAX_FIXED_CURVES,
    )
    validation_curves: int = _quantity(
        256,
        "Curves held back for validation",
        description="And as many others for the test, which training never sees.",
        ge=1,
        le=8192,
    )
    micro_batch: int = _quantity(
        0,
        "Curves calculated at a time",
        description="Fewer than those of a step need less memory and more time; 0 for all of them.",
        ge=0,
        le=8192,
    )
    checkpoint_epochs: int = _quantity(
        0,
        "Epochs between checkpoints",
        description="Beside those that are made about once a minute; 0 for none.",
        ge=0,
        le=10_000,
    )
    patience: int = _quantity(
        0,
        "Epochs without improvement before it ends",
        description="0 goes on to the last epoch. The best model is kept in any case.",
        ge=0,
        le=10_000,
    )
    learning_rate: float = _quantity(1e-3, "Highest learning rate", gt=0, le=1)
    width: int = _quantity(256, "Width of the network", ge=8, le=2048)
    depth: int = _quantity(4, "Residual blocks of the network", ge=1, le=32)


class NrSldParams(Params):
    """Train a network that reads the layers of a film from its reflectivity."""

    model_name: str = _quantity(
        "film", "Model name", pattern=f"^{MODEL_NAME.pattern}$", description="Each run adds a version to it."
    )
    stack: StackPrior
    probe: TrainingProbe = Field(default_factory=TrainingProbe)
    noise: Noise = Field(default_factory=Noise)
    training: Training = Field(default_factory=Training)
    curves_from_dataset: bool = _quantity(
        False, "Train on the job's dataset", description="In the role `curves`; makes no curves of its own."
    )

    @model_validator(mode="after")
    def _affordable(self) -> NrSldParams:
        training, points = self.training, self.probe.points
        # Curves that are calculated at once: this bounds the memory of a run to a few gigabytes.
        for name in ("batch_size", "validation_curves"):
            curves: int = getattr(training, name)
            if curves * points * (len(self.stack.sequence) + 1) > 5_000_000:
                allowed = f"{name} x points x interfaces must not be above 5e6"
                refuse_field(self, ["training", name], curves, allowed)
        if training.fixed_curves * points > 50_000_000:
            allowed = "fixed_curves x points must not be above 5e7"
            refuse_field(self, ["training", "fixed_curves"], training.fixed_curves, allowed)
        return self


def with_smaller_pieces(params: NrSldParams) -> NrSldParams | None:
    """The same training with less memory, in pieces half as large; None when there are none.

    Only the rounding of its numbers differs.
    """
    training = params.training
    size = min(training.micro_batch or training.batch_size, training.batch_size) // 2
    if size == 0:
        return None
    return params.model_copy(update={"training": training.model_copy(update={"micro_batch": size})})


class EpochLosses(Params):
    """Mean losses of one epoch."""

    epoch: int
    train_loss: float
    validation_loss: float


class ChannelErrors(Params):
    """How far the answers to the test split are from the truth, in the channel's own unit."""

    name: str = Field(title="Channel")
    rmse: float = Field(title="RMSE")
    mae: float = Field(title="MAE")
    # None where the truth does not vary.
    r2: float | None = Field(title="R²")
    unit: str


class Residuals(Params):
    """Curves calculated from the answers to the test split less the true ones, in log10 R.

    They are calculated at the resolution of the measurement. Numbers are None where there is no curve.

    Attributes:
        unphysical: answers that no curve can be calculated from.
        median_abs, percentile_95_abs: over the curves, of the mean |log10 R| of each.
        chi_square_per_point: its median over the curves, where they have error bars; the truth has about 1.
    """

    curves: int = Field(title="Curves")
    unphysical: int = Field(title="Answers without a curve")
    mean: float | None = Field(title="Mean Δ log10 R")
    mean_abs: float | None = Field(title="Mean |Δ log10 R|")
    median_abs: float | None = Field(title="Median of the curves")
    percentile_95_abs: float | None = Field(title="95 % of the curves are below")
    chi_square_per_point: float | None = Field(None, title="Median chi-square per point")


class Seconds(Params):
    """How long the attempt took that came to the end."""

    generation: float = Field(title="Making or reading curves")
    training: float = Field(title="Training")
    evaluation: float = Field(title="Testing")
    # Of results that are older nobody measured it.
    inference: float = Field(0.0, title="Answering with the finished model")
    total: float = Field(title="All in all")


class PredictionExample(Params):
    """A test curve and what the model makes of it."""

    q: list[float]
    reflectivity: list[float]
    predicted_reflectivity: list[float]
    z: list[float]
    sld: list[float]
    predicted_sld: list[float]
    parameters: dict[str, float]
    predicted_parameters: dict[str, float]


class NrSldResult(Params):
    """What a training gave; metrics are those of the test curves."""

    model_name: str
    stopped_early: bool
    curves_seen: int
    # Curves calculated at a time, where that was fewer than those of a step.
    micro_batch: int = 0
    # Of the file of weights, in 1e6 bytes.
    model_megabytes: float = Field(0.0, title="Size of the model (MB)")
    metrics: dict[str, float]
    channels: list[ChannelErrors] = shown("table", ON_TEST)
    residuals: Residuals = shown("pairs", RESIMULATED)
    seconds: Seconds = shown("pairs", "Seconds")
    provenance: Provenance
    losses: list[EpochLosses]
    example: PredictionExample


def grid(low: float, high: float, points: int, spacing: Literal["log", "linear"]) -> np.ndarray:
    """`points` values from `low` to `high`, both included exactly."""
    return np.geomspace(low, high, points) if spacing == "log" else np.linspace(low, high, points)


def sigma_of(width: float, convention: ResolutionConvention) -> float:
    """A resolution as one standard deviation."""
    return width / FWHM_PER_SIGMA if convention == "fwhm" else width
