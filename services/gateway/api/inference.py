"""Predictions and simulations."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.prediction.v1 import prediction_pb2
from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import MODEL, MODEL_VERSION
from services.gateway.api.common import INT64, BackendsDep, Body, Text, Version, answer, resource, returns
from services.gateway.messages import to_struct

router = APIRouter(tags=["inference"])

# The pipeline whose parameters `/simulate` takes.
SIMULATION = "reflectometry.simulate"
MAX_POINTS = 100_000
MAX_SEGMENTS = 1000
MAX_SAMPLES = 5000
Numbers = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=MAX_POINTS, fail_fast=True)
]


class TensorBody(Body):
    """A dense tensor: row-major, little-endian bytes in base64."""

    datatype: Text = Field(examples=["FP64"], max_length=8)
    shape: list[Annotated[int, Field(ge=0, lt=INT64)]] = Field(max_length=8, examples=[[1, 3]])
    content: str = Field(description="base64")

    def message(self, field: str) -> common_pb2.Tensor:
        """The tensor as the inference service takes it."""
        try:
            content = base64.b64decode(self.content, validate=True)
        except ValueError as error:
            raise InvalidArgument.field(f"{field}.content", self.content[:40], "base64") from error
        return common_pb2.Tensor(datatype=self.datatype, shape=self.shape, content=content)


Tag = Annotated[Text, Field(max_length=63, description='Instead of version: a tag, such as "production"')]


class PredictBody(Body):
    """Tensors for a model of any science."""

    model: Text = Field(max_length=128, description="Model id")
    version: Version = 0
    tag: Tag = ""
    inputs: dict[Text, TensorBody] = Field(max_length=64)
    outputs: list[Text] = Field(default_factory=list, max_length=64, description="Empty for all")


class MediumBody(Body):
    """A semi-infinite medium."""

    material: Text = Field("", max_length=100)
    sld: float = Field(ge=-10, le=150, allow_inf_nan=False, description="1e-6 per square angstrom")
    isld: float = Field(0.0, ge=0, le=150, allow_inf_nan=False)


class SegmentBody(Body):
    """Points measured at one setting of the instrument."""

    first_point: int = Field(ge=0, lt=INT64, description="Index of the first of them")
    end_point: int = Field(ge=0, lt=INT64, description="Index after the last of them")
    angle_degrees: float = Field(0.0, allow_inf_nan=False)
    scale: float | None = Field(None, allow_inf_nan=False, description="Where it is known")
    background: float | None = Field(None, allow_inf_nan=False, description="Where it is known")
    relative_dq: float | None = Field(
        None, ge=0, le=1, description="dq/q of these points where dq is empty, by the curve's dq_convention"
    )


class MeasurementBody(Body):
    """Where a curve comes from."""

    sample: Text = Field("", max_length=1000)
    run: Text = Field("", max_length=1000)
    proposal: Text = Field("", max_length=1000)
    instrument: Text = Field("", max_length=1000)
    facility: Text = Field("", max_length=1000)
    start_time: Text = Field("", max_length=100, examples=["2026-03-01T09:30:00Z"])
    other: dict[Text, Text] = Field(default_factory=dict, max_length=100)


class CurveBody(Body):
    """A measured reflectivity curve."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"q": [0.01, 0.02], "r": [0.9, 0.1], "relative_dq": 0.05, "dq_convention": "FWHM"}
            ]
        },
    )  # fmt: skip

    q: Numbers
    r: Numbers
    dr: Numbers = Field(default_factory=list, description="One standard deviation of r")
    dq: Numbers = Field(default_factory=list, description="Resolution in the unit of q")
    q_unit: Literal["INVERSE_ANGSTROM", "INVERSE_NANOMETRE"] = "INVERSE_ANGSTROM"
    dq_convention: Literal["SIGMA", "FWHM"] | None = Field(None, description="What dq and relative_dq mean")
    relative_dq: float | None = Field(None, gt=0, lt=1, description="dq/q where dq is empty")
    beam_side: Literal["FRONTING", "BACKING"] | None = None
    fronting: MediumBody | None = None
    backing: MediumBody | None = None
    mask: list[bool] = Field(
        default_factory=list, max_length=MAX_POINTS, fail_fast=True, description="True leaves the point out"
    )
    segments: list[SegmentBody] = Field(default_factory=list, max_length=MAX_SEGMENTS)
    measurement: MeasurementBody | None = None

    def message(self) -> curve_pb2.Curve:
        """The curve as the inference service takes it."""
        curve = curve_pb2.Curve(
            q=self.q,
            r=self.r,
            dr=self.dr,
            dq=self.dq,
            mask=self.mask,
            q_unit=curve_pb2.QUnit.Value(f"Q_UNIT_{self.q_unit}"),
            relative_dq=self.relative_dq,
            segments=[curve_pb2.AngleSegment(**segment.model_dump()) for segment in self.segments],
        )
        if self.dq_convention is not None:
            curve.dq_convention = curve_pb2.ResolutionConvention.Value(
                f"RESOLUTION_CONVENTION_{self.dq_convention}"
            )
        if self.beam_side is not None:
            curve.beam_side = curve_pb2.BeamSide.Value(f"BEAM_SIDE_{self.beam_side}")
        for name in ("fronting", "backing"):
            medium: MediumBody | None = getattr(self, name)
            if medium is not None:
                getattr(curve, name).CopyFrom(curve_pb2.Medium(**medium.model_dump()))
        if self.measurement is not None:
            curve.measurement.CopyFrom(curve_pb2.MeasurementInfo(**self.measurement.model_dump()))
        return curve


class AnalyzeBody(Body):
    """A curve, and how it shall be answered."""

    curve: CurveBody
    model: Text = Field(
        "",
        max_length=128,
        description="Model id; empty takes, of the newest versions of the models that accept the curve, the"
        " one whose network explains it best",
    )
    version: Version = 0
    tag: Tag = ""
    stage: Literal["NETWORK", "REFINED"] = Field(
        "NETWORK", description="REFINED: a fit follows, from the network's answer and from elsewhere"
    )
    samples: int = Field(
        0,
        ge=0,
        le=MAX_SAMPLES,
        description="Of the posterior, for intervals and bands; 0 draws none. Only for REFINED; needs dr",
    )
    seed: int = Field(0, ge=0, lt=2**53, description="Of the fit's starts and of the samples")


class SimulateBody(Body):
    """Parameters of the pipeline `reflectometry.simulate`."""

    params: dict[str, Any]


def _model_name(body: PredictBody | AnalyzeBody) -> str:
    if body.version and body.tag:
        raise InvalidArgument.field("tag", body.tag, "a version or a tag, not both")
    version = body.version or body.tag
    if not version:
        return resource(MODEL, model=body.model)
    return resource(MODEL_VERSION, model=body.model, version=version)


@router.post("/predict", **returns(prediction_pb2.PredictResponse))
async def predict(body: PredictBody, backends: BackendsDep) -> JSONResponse:
    """Runs a model on tensors."""
    request = prediction_pb2.PredictRequest(
        model=_model_name(body),
        inputs={name: tensor.message(f"inputs.{name}") for name, tensor in body.inputs.items()},
        outputs=body.outputs,
    )
    return await answer(await backends.prediction.Predict(request, timeout=backends.timeouts.analysis))


@router.post("/analyze", **returns(reflectometry_pb2.AnalyzeCurveResponse))
async def analyze(body: AnalyzeBody, backends: BackendsDep) -> JSONResponse:
    """A measured reflectivity curve in; profile, parameters, calculated curve and chi-square out.

    With `samples` also credible intervals, bands, and every film that the curve allows.
    """
    request = reflectometry_pb2.AnalyzeCurveRequest(
        model=_model_name(body) if body.model else "",
        curve=body.curve.message(),
        stage=reflectometry_pb2.AnalysisStage.Value(f"ANALYSIS_STAGE_{body.stage}"),
        samples=body.samples,
        seed=body.seed,
    )
    return await answer(
        await backends.reflectometry.AnalyzeCurve(request, timeout=backends.timeouts.analysis)
    )


@router.post("/simulate", **returns(reflectometry_pb2.SimulateResponse))
async def simulate(body: SimulateBody, backends: BackendsDep) -> JSONResponse:
    """The reflectivity and profile of a film, at once."""
    request = reflectometry_pb2.SimulateRequest(params=to_struct(body.params, "params"))
    return await answer(await backends.reflectometry.Simulate(request, timeout=backends.timeouts.analysis))


@router.get("/materials", **returns(reflectometry_pb2.ListMaterialsResponse))
async def list_materials(backends: BackendsDep) -> JSONResponse:
    """Common materials of neutron reflectometry: formula, density, scattering length density."""
    request = reflectometry_pb2.ListMaterialsRequest()
    return await answer(await backends.reflectometry.ListMaterials(request, timeout=backends.timeouts.call))
