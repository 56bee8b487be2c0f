"""Asking models: tensors of any science, and reflectivity curves."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guidehall.client import _names, types
from guidehall.client._config import Config
from guidehall.client._steps import Call, Operation, Rpc
from guidehall.client._tensors import from_tensor, to_tensor
from guidehall.contracts.prediction.v1 import prediction_pb2, prediction_pb2_grpc
from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2, reflectometry_pb2_grpc
from guidehall.core.errors import InvalidArgument
from guidehall.core.structs import to_struct

_PREDICT = Rpc("inference", prediction_pb2_grpc.PredictionServiceStub, "Predict")
_SIMULATE = Rpc("inference", reflectometry_pb2_grpc.ReflectometryServiceStub, "Simulate")
_ANALYZE = Rpc("inference", reflectometry_pb2_grpc.ReflectometryServiceStub, "AnalyzeCurve")

_CONVENTIONS = {
    types.Resolution.SIGMA: curve_pb2.RESOLUTION_CONVENTION_SIGMA,
    types.Resolution.FWHM: curve_pb2.RESOLUTION_CONVENTION_FWHM,
}
_SIDES = {
    types.BeamSide.FRONTING: curve_pb2.BEAM_SIDE_FRONTING,
    types.BeamSide.BACKING: curve_pb2.BEAM_SIDE_BACKING,
}
_Q_UNITS = {
    types.QUnit.INVERSE_ANGSTROM: curve_pb2.Q_UNIT_INVERSE_ANGSTROM,
    types.QUnit.INVERSE_NANOMETRE: curve_pb2.Q_UNIT_INVERSE_NANOMETRE,
}
_STAGES = {
    types.Stage.NETWORK: reflectometry_pb2.ANALYSIS_STAGE_NETWORK,
    types.Stage.REFINED: reflectometry_pb2.ANALYSIS_STAGE_REFINED,
}


def predict(
    config: Config, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> Operation[types.Prediction]:
    """Tensors in, tensors out."""
    request = prediction_pb2.PredictRequest(
        model=_names.model(config, model),
        inputs={name: to_tensor(array, f"inputs.{name}") for name, array in inputs.items()},
        outputs=outputs,
    )
    answer = yield Call(_PREDICT, request, config.timeouts.call_seconds)
    return types.Prediction(
        model_version=answer.model_version,
        model_digest=answer.model_digest,
        outputs={name: from_tensor(tensor, name) for name, tensor in answer.outputs.items()},
    )


def simulate(config: Config, params: Mapping[str, Any]) -> Operation[types.Simulation]:
    """The curve that a film would give."""
    request = reflectometry_pb2.SimulateRequest(params=to_struct(params, "params"))
    answer = yield Call(_SIMULATE, request, config.timeouts.call_seconds)
    return types.Simulation(_from_curve(answer.curve), _profile(answer.profile), _notes(answer.notes))


def analyze(
    config: Config, curve: types.Curve, model: str | None, stage: types.Stage | str, samples: int, seed: int
) -> Operation[types.Analysis]:
    """Physics from a measured curve."""
    try:
        stage = types.Stage(stage)
    except ValueError as error:
        raise InvalidArgument.field("stage", stage, "one of network, refined") from error
    request = reflectometry_pb2.AnalyzeCurveRequest(
        model=_names.model(config, model) if model else "",
        curve=_to_curve(curve),
        stage=_STAGES[stage],
        parent=f"projects/{config.project}",
        samples=_whole(samples, "samples", 31),
        seed=_whole(seed, "seed", 53),
    )
    answer = yield Call(_ANALYZE, request, config.timeouts.call_seconds)
    return _analysis(answer)


def _whole(value: int, field: str, bits: int) -> int:
    """What the message can hold; whether it is sensible, the service says."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 1 << bits:
        raise InvalidArgument.field(field, value, f"an integer from 0 to 2^{bits} - 1")
    return number


def _to_curve(curve: types.Curve) -> curve_pb2.Curve:
    message = curve_pb2.Curve(q_unit=_Q_UNITS[curve.q_unit])
    for field in ("q", "r", "dr", "dq"):
        getattr(message, field).extend(_numbers(getattr(curve, field), f"curve.{field}"))
    if curve.dq_convention is not None:
        message.dq_convention = _CONVENTIONS[curve.dq_convention]
    if curve.relative_dq is not None:
        message.relative_dq = curve.relative_dq
    if curve.beam_side is not None:
        message.beam_side = _SIDES[curve.beam_side]
    message.mask.extend(_flags(curve.mask, "curve.mask"))
    for field, medium in (("fronting", curve.fronting), ("backing", curve.backing)):
        if medium is not None:
            getattr(message, field).CopyFrom(curve_pb2.Medium(**asdict(medium)))
    message.segments.extend(curve_pb2.AngleSegment(**asdict(segment)) for segment in curve.segments)
    if curve.measurement is not None:
        message.measurement.CopyFrom(curve_pb2.MeasurementInfo(**asdict(curve.measurement)))
    return message


def _numbers(values: Any, field: str) -> list[float]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument.field(field, values, "numbers, one for each point") from error
    if array.ndim != 1:
        raise InvalidArgument.field(field, f"shape {array.shape}", "numbers, one for each point")
    return list(array.tolist())


def _flags(values: Any, field: str) -> list[bool]:
    array = np.asarray(values)
    # Indices of points would read as flags, too.
    if array.ndim != 1 or (array.size and array.dtype != np.bool_):
        got = f"shape {array.shape}, {array.dtype}"
        raise InvalidArgument.field(field, got, "true or false, one for each point")
    return list(array.tolist())


def _known(table: Mapping[Any, Any], number: int) -> Any:
    return next((value for value, code in table.items() if code == number), None)


def _from_curve(message: curve_pb2.Curve) -> types.Curve:
    return types.Curve(
        q=np.array(message.q),
        r=np.array(message.r),
        dr=np.array(message.dr),
        dq=np.array(message.dq),
        q_unit=_known(_Q_UNITS, message.q_unit) or types.QUnit.INVERSE_ANGSTROM,
        dq_convention=_known(_CONVENTIONS, message.dq_convention),
        relative_dq=message.relative_dq if message.HasField("relative_dq") else None,
        beam_side=_known(_SIDES, message.beam_side),
        mask=np.array(message.mask, dtype=np.bool_),
        fronting=_medium(message, "fronting"),
        backing=_medium(message, "backing"),
        segments=tuple(map(_segment, message.segments)),
        measurement=_measurement(message.measurement) if message.HasField("measurement") else None,
    )


def _medium(message: Any, field: str) -> types.Medium | None:
    if not message.HasField(field):
        return None
    medium: curve_pb2.Medium = getattr(message, field)
    return types.Medium(medium.sld, medium.isld, medium.material)


def _segment(message: curve_pb2.AngleSegment) -> types.AngleSegment:
    return types.AngleSegment(
        first_point=message.first_point,
        end_point=message.end_point,
        angle_degrees=message.angle_degrees,
        scale=_optional(message, "scale"),
        background=_optional(message, "background"),
        relative_dq=_optional(message, "relative_dq"),
    )


def _measurement(message: curve_pb2.MeasurementInfo) -> types.MeasurementInfo:
    return types.MeasurementInfo(
        sample=message.sample,
        run=message.run,
        proposal=message.proposal,
        instrument=message.instrument,
        facility=message.facility,
        start_time=message.start_time,
        other=dict(message.other),
    )


def _notes(messages: Iterable[reflectometry_pb2.Note]) -> tuple[types.Note, ...]:
    return tuple(types.Note(note.code, note.message) for note in messages)


def _profile(message: reflectometry_pb2.Profile) -> types.Profile:
    return types.Profile(
        np.array(message.z_angstrom),
        np.array(message.sld),
        np.array(message.isld),
        _band(message, "sld_band"),
    )


def _band(message: Any, field: str) -> types.Band | None:
    if not message.HasField(field):
        return None
    band: reflectometry_pb2.Band = getattr(message, field)
    return types.Band(
        np.array(band.lower_68), np.array(band.upper_68), np.array(band.lower_95), np.array(band.upper_95)
    )


def _interval(message: Any, field: str) -> tuple[float, float] | None:
    if not message.HasField(field):
        return None
    interval: reflectometry_pb2.Interval = getattr(message, field)
    return interval.lower, interval.upper


def _parameter(message: reflectometry_pb2.Parameter) -> types.Parameter:
    return types.Parameter(
        name=message.name,
        value=message.value,
        unit=message.unit,
        lower=message.lower,
        upper=message.upper,
        standard_error=_optional(message, "standard_error"),
        interval_68=_interval(message, "interval_68"),
        interval_95=_interval(message, "interval_95"),
    )


def _optional(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def _analysis(message: reflectometry_pb2.AnalyzeCurveResponse) -> types.Analysis:
    return types.Analysis(
        model_version=message.model_version,
        model_digest=message.model_digest,
        stage=_known(_STAGES, message.stage) or types.Stage.NETWORK,
        parameters=tuple(_parameter(parameter) for parameter in message.parameters),
        profile=_profile(message.profile),
        calculated=_from_curve(message.calculated),
        used_points=np.array(message.used_points, dtype=np.int64),
        normalized_residuals=np.array(message.normalized_residuals),
        chi_square=_optional(message, "chi_square"),
        reduced_chi_square=_optional(message, "reduced_chi_square"),
        mean_abs_log10_error=message.mean_abs_log10_error,
        notes=_notes(message.notes),
        analysis_version=message.analysis_version,
        explanations=tuple(
            types.Explanation(
                dict(zip((parameter.name for parameter in message.parameters), film.values, strict=False)),
                film.chi_square,
            )
            for film in message.explanations
        ),
        calculated_band=_band(message, "calculated_band"),
        effective_samples=_optional(message, "effective_samples"),
    )
