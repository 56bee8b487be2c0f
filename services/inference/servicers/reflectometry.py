"""ReflectometryService: typed curves in, physics out."""

# The protocol names methods and arguments.
# ruff: noqa: N802, ARG002

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from google.protobuf import json_format

from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2, reflectometry_pb2_grpc
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import project_of
from guidehall.science.pipeline import UserError
from guidehall.science.reflectometry.analysis import ANALYSIS_VERSION, Analysis, Band, Parameter
from guidehall.science.reflectometry.infer_params import MAX_SAMPLES
from guidehall.science.reflectometry.materials import MATERIALS
from guidehall.science.reflectometry.params import Note, SimulateParams, SimulateResult
from services.inference.analysis import CurveAnswer, Refinement, ReflectometryAnalysis
from services.inference.curves import Measurement, decode_curve
from services.inference.execution import user_fault
from services.inference.versions import Reference

FULL_NAME = reflectometry_pb2.DESCRIPTOR.services_by_name["ReflectometryService"].full_name

_REFINED = {
    reflectometry_pb2.ANALYSIS_STAGE_UNSPECIFIED: False,
    reflectometry_pb2.ANALYSIS_STAGE_NETWORK: False,
    reflectometry_pb2.ANALYSIS_STAGE_REFINED: True,
}
# As the seeds of jobs: what JSON holds exactly.
_MAX_SEED = 2**53 - 1


class ReflectometryServicer(reflectometry_pb2_grpc.ReflectometryServiceServicer):
    """Simulation and analysis of one curve; what films are made of."""

    def __init__(self, analysis: ReflectometryAnalysis, max_points: int) -> None:
        self._analysis = analysis
        self._max_points = max_points

    async def Simulate(
        self, request: reflectometry_pb2.SimulateRequest, context: Any
    ) -> reflectometry_pb2.SimulateResponse:
        params, result = await self._analysis.simulate(json_format.MessageToDict(request.params))
        return _simulated(params, result)

    async def AnalyzeCurve(
        self, request: reflectometry_pb2.AnalyzeCurveRequest, context: Any
    ) -> reflectometry_pb2.AnalyzeCurveResponse:
        refinement = _refinement(request)
        try:
            measurement = decode_curve(request.curve, self._max_points)
        except UserError as error:
            raise user_fault(error) from error
        answer = await self._analysis.analyse(
            current_principal(),
            Reference.of_resource(request.model, "model") if request.model else None,
            project_of(request.parent),
            measurement,
            refinement,
        )
        return _analysed(answer, measurement)

    async def ListMaterials(
        self, request: reflectometry_pb2.ListMaterialsRequest, context: Any
    ) -> reflectometry_pb2.ListMaterialsResponse:
        return reflectometry_pb2.ListMaterialsResponse(
            materials=[reflectometry_pb2.Material(**asdict(material)) for material in MATERIALS]
        )


def _refinement(request: reflectometry_pb2.AnalyzeCurveRequest) -> Refinement | None:
    """The fit that is asked for; None for the network's answer alone."""
    if request.stage not in _REFINED:
        raise InvalidArgument.field("stage", request.stage, "NETWORK or REFINED")
    if not 0 <= request.samples <= MAX_SAMPLES:
        raise InvalidArgument.field("samples", request.samples, f"0 to {MAX_SAMPLES}")
    if not 0 <= request.seed <= _MAX_SEED:
        raise InvalidArgument.field("seed", request.seed, "0 to 2^53 - 1")
    if _REFINED[request.stage]:
        return Refinement(request.samples, request.seed)
    if request.samples:
        allowed = "0: only an answer of stage REFINED has intervals and bands"
        raise InvalidArgument.field("samples", request.samples, allowed)
    return None


def _simulated(params: SimulateParams, result: SimulateResult) -> reflectometry_pb2.SimulateResponse:
    stack = params.stack
    beam = curve_pb2.BEAM_SIDE_BACKING if stack.beam == "backing" else curve_pb2.BEAM_SIDE_FRONTING
    curve = curve_pb2.Curve(
        q=result.q,
        r=result.reflectivity,
        dq=result.resolution,
        q_unit=curve_pb2.Q_UNIT_INVERSE_ANGSTROM,
        dq_convention=curve_pb2.RESOLUTION_CONVENTION_SIGMA,
        beam_side=beam,
        fronting=curve_pb2.Medium(
            material=stack.fronting.name, sld=stack.fronting.sld, isld=stack.fronting.isld
        ),
        backing=curve_pb2.Medium(material=stack.backing.name, sld=stack.backing.sld, isld=stack.backing.isld),
    )
    profile = reflectometry_pb2.Profile(z_angstrom=result.z, sld=result.sld, isld=result.isld)
    return reflectometry_pb2.SimulateResponse(curve=curve, profile=profile, notes=_notes(result.notes))


def _analysed(answer: CurveAnswer, measurement: Measurement) -> reflectometry_pb2.AnalyzeCurveResponse:
    analysis = answer.analysis
    refined = analysis.stage == "refined"
    response = reflectometry_pb2.AnalyzeCurveResponse(
        model_version=answer.published.name,
        model_digest=answer.published.digest,
        stage=(
            reflectometry_pb2.ANALYSIS_STAGE_REFINED if refined else reflectometry_pb2.ANALYSIS_STAGE_NETWORK
        ),
        parameters=[_parameter(parameter) for parameter in analysis.parameters],
        profile=reflectometry_pb2.Profile(
            z_angstrom=analysis.z, sld=analysis.sld, isld=analysis.isld, sld_band=_band(analysis.sld_band)
        ),
        calculated=_calculated(analysis, measurement),
        used_points=measurement.points[analysis.used_points],
        normalized_residuals=() if analysis.residuals is None else analysis.residuals,
        chi_square=analysis.chi_square,
        reduced_chi_square=analysis.reduced_chi_square,
        mean_abs_log10_error=analysis.mean_abs_log10_error,
        notes=_notes((*analysis.notes, *answer.notes)),
        analysis_version=ANALYSIS_VERSION,
        explanations=[
            reflectometry_pb2.Explanation(values=film.values, chi_square=film.chi_square)
            for film in analysis.explanations
        ],
        calculated_band=_band(analysis.calculated_band),
        effective_samples=analysis.effective_samples,
    )
    masked = int(np.sum(np.diff(measurement.points, prepend=-1) - 1))
    if masked:
        response.notes.add(code="POINTS_MASKED", message=f"{masked} points are masked and were left out")
    return response


def _notes(notes: Iterable[Note]) -> list[reflectometry_pb2.Note]:
    return [reflectometry_pb2.Note(code=note.code, message=note.message) for note in notes]


def _parameter(parameter: Parameter) -> reflectometry_pb2.Parameter:
    return reflectometry_pb2.Parameter(
        name=parameter.name,
        value=parameter.value,
        unit=parameter.unit,
        lower=parameter.lower,
        upper=parameter.upper,
        standard_error=parameter.standard_error,
        interval_68=_interval(parameter.interval_68),
        interval_95=_interval(parameter.interval_95),
    )


def _interval(ends: tuple[float, float] | None) -> reflectometry_pb2.Interval | None:
    return None if ends is None else reflectometry_pb2.Interval(lower=ends[0], upper=ends[1])


def _band(band: Band | None) -> reflectometry_pb2.Band | None:
    if band is None:
        return None
    return reflectometry_pb2.Band(
        lower_68=band.lower_68, upper_68=band.upper_68, lower_95=band.lower_95, upper_95=band.upper_95
    )


def _calculated(analysis: Analysis, measurement: Measurement) -> curve_pb2.Curve:
    """The answer's curve, in the caller's unit of q."""
    return curve_pb2.Curve(
        q=analysis.q / measurement.q_scale, r=analysis.calculated, q_unit=measurement.q_unit
    )
