"""Curves to physics over the wire: simulate, analyse, refine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy

from guidehall.client import Analysis, AsyncClient, Band, Client, Curve, Resolution, Stage
from guidehall.client.errors import InvalidArgument as ClientInvalidArgument
from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2, reflectometry_pb2_grpc
from guidehall.core.errors import (
    AppError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    from_rpc_error,
)
from guidehall.science.pipeline import Example, Manifest, sha256
from tests.fixtures.inference import (
    StartInference,
    StoredModel,
    line_model,
    publish,
    reflectometry_model,
)
from tests.fixtures.storage import StorageSite
from tests.processes import Server

Stub = reflectometry_pb2_grpc.ReflectometryServiceStub
NETWORK, REFINED = reflectometry_pb2.ANALYSIS_STAGE_NETWORK, reflectometry_pb2.ANALYSIS_STAGE_REFINED
FILM = {
    "stack": {
        "fronting": {"name": "air", "sld": 0},
        "layers": [{"name": "film", "sld": 4.5, "thickness": 150, "roughness": 5}],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": 3},
    },
    "probe": {"q_min": 0.01, "q_max": 0.2, "points": 120},
}


@pytest.fixture(scope="module")
def film_model(storage: StorageSite) -> str:
    """A model for one film on silicon in air."""
    return publish(storage, "film-in-air", reflectometry_model()).name


@pytest.fixture
def stub(inference: Server, film_model: str) -> Iterator[Stub]:
    with grpc.insecure_channel(inference.target) as channel:
        yield Stub(channel)


def simulate(stub: Stub, params: dict[str, Any]) -> reflectometry_pb2.SimulateResponse:
    request = reflectometry_pb2.SimulateRequest()
    request.params.update(params)
    try:
        return stub.Simulate(request, timeout=20)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def analyse(stub: Stub, curve: curve_pb2.Curve, **fields: Any) -> reflectometry_pb2.AnalyzeCurveResponse:
    try:
        return stub.AnalyzeCurve(reflectometry_pb2.AnalyzeCurveRequest(curve=curve, **fields), timeout=60)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def measured(stub: Stub, **changes: Any) -> curve_pb2.Curve:
    """A simulated film with 3 % errors."""
    curve = simulate(stub, FILM).curve
    r = np.array(curve.r)
    dr = 0.03 * r + 1e-7
    noisy = r + dr * np.random.default_rng(4).standard_normal(len(r))
    fields = {"q": curve.q, "r": noisy, "dr": dr, "dq": curve.dq, "dq_convention": curve.dq_convention}
    return curve_pb2.Curve(**{**fields, **changes})


def test_a_simulation_gives_curve_and_profile(stub: Stub) -> None:
    answer = simulate(stub, FILM)
    assert len(answer.curve.q) == len(answer.curve.r) == len(answer.curve.dq) == 120
    assert answer.curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_SIGMA
    assert answer.curve.r[0] > 0.9 > answer.curve.r[-1] > 0
    assert answer.profile.sld[0] == pytest.approx(0, abs=1e-3)
    assert answer.profile.sld[-1] == pytest.approx(2.07, abs=1e-3)
    assert not answer.notes


def test_a_simulation_says_what_the_formula_is_not_made_for(stub: Stub) -> None:
    layers = [{"name": "film", "sld": 4.5, "thickness": 20, "roughness": 30}]
    answer = simulate(stub, {"stack": {**FILM["stack"], "layers": layers}})
    assert [note.code for note in answer.notes] == ["ROUGHER_THAN_THICK"]


def test_each_wrong_parameter_of_a_simulation_is_named(stub: Stub) -> None:
    layers = [{"name": "film", "sld": 4.5, "thickness": -1, "roughness": "rough"}]
    with pytest.raises(InvalidArgument) as caught:
        simulate(stub, {"stack": {**FILM["stack"], "layers": layers}})
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["params.stack.layers[0].roughness", "params.stack.layers[0].thickness"]


def test_a_curve_becomes_layers_and_a_fit_makes_them_right(stub: Stub, film_model: str) -> None:
    curve = measured(stub)
    network = analyse(stub, curve, model=film_model)
    assert (network.model_version, network.stage) == (film_model, NETWORK)
    assert not any(parameter.HasField("standard_error") for parameter in network.parameters)
    fit = analyse(stub, curve, model=film_model, stage=REFINED)
    assert fit.stage == REFINED
    found = {parameter.name: parameter for parameter in fit.parameters}
    assert found["film.thickness"].value == pytest.approx(150, abs=1)
    assert found["film.sld"].value == pytest.approx(4.5, abs=0.1)
    assert found["film.thickness"].standard_error < 1
    assert found["film.thickness"].unit == "angstrom"
    assert fit.reduced_chi_square == pytest.approx(1, abs=0.4)
    assert fit.reduced_chi_square < network.reduced_chi_square
    assert list(fit.used_points) == list(range(120))
    residuals = (np.array(curve.r) - np.array(fit.calculated.r)) / np.array(curve.dr)
    np.testing.assert_allclose(fit.normalized_residuals, residuals, rtol=1e-6, atol=1e-9)


SAMPLED = {"stage": REFINED, "samples": 300}


def test_samples_give_intervals_and_bands(stub: Stub, film_model: str) -> None:
    curve = measured(stub)
    answer = analyse(stub, curve, model=film_model, seed=7, **SAMPLED)
    found = {parameter.name: parameter for parameter in answer.parameters}
    thickness = found["film.thickness"]
    for parameter in answer.parameters:
        narrow, wide = parameter.interval_68, parameter.interval_95
        assert parameter.lower <= wide.lower <= narrow.lower < narrow.upper <= wide.upper <= parameter.upper
    assert thickness.interval_95.lower < 150 < thickness.interval_95.upper
    width = 0.5 * (thickness.interval_68.upper - thickness.interval_68.lower)
    assert width == pytest.approx(thickness.standard_error, rel=0.4)
    assert 1 < answer.effective_samples <= 300
    for band, middle in (
        (answer.profile.sld_band, answer.profile.sld),
        (answer.calculated_band, answer.calculated.r),
    ):
        assert len(band.lower_68) == len(band.upper_95) == len(middle)
        assert np.all(np.array(band.lower_95) <= band.lower_68)
        assert np.all(np.array(band.upper_68) <= band.upper_95)
    first = answer.explanations[0]
    assert list(first.values) == pytest.approx([parameter.value for parameter in answer.parameters])
    assert first.chi_square == pytest.approx(answer.chi_square, rel=1e-3)
    assert analyse(stub, curve, model=film_model, seed=7, **SAMPLED) == answer
    other = analyse(stub, curve, model=film_model, seed=8, **SAMPLED)
    assert other.calculated_band != answer.calculated_band


def test_without_samples_or_error_bars_there_are_no_intervals(stub: Stub, film_model: str) -> None:
    plain = analyse(stub, measured(stub), model=film_model, stage=REFINED)
    bare = analyse(stub, measured(stub, dr=()), model=film_model, **SAMPLED)
    for answer in (plain, bare):
        assert answer.explanations
        assert not answer.HasField("effective_samples")
        assert not answer.HasField("calculated_band")
        assert not answer.profile.HasField("sld_band")
        assert not any(parameter.HasField("interval_68") for parameter in answer.parameters)
    assert "NOT_SAMPLED" not in {note.code for note in plain.notes}
    assert "NOT_SAMPLED" in {note.code for note in bare.notes}


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"stage": REFINED, "samples": -1}, "samples", "0 to 5000"),
        ({"stage": REFINED, "samples": 5001}, "samples", "0 to 5000"),
        ({"stage": NETWORK, "samples": 10}, "samples", "REFINED"),
        ({"stage": REFINED, "seed": -1}, "seed", "0 to 2^53 - 1"),
        ({"stage": REFINED, "seed": 2**53}, "seed", "0 to 2^53 - 1"),
        ({"stage": 9}, "stage", "NETWORK or REFINED"),
    ],
)
def test_a_wrong_option_is_named(stub: Stub, fields: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(InvalidArgument, match=allowed.replace("^", r"\^")) as caught:
        analyse(stub, curve_pb2.Curve(), **fields)
    assert caught.value.violations[0].field == field


@pytest.mark.slow
def test_a_fit_with_samples_ends_at_the_time_limit(film_model: str, start_inference: StartInference) -> None:
    # Less than it takes to start the process.
    server = start_inference(REFINEMENT__TIMEOUT_SECONDS=0.2)
    with grpc.insecure_channel(server.target) as channel:
        stub = Stub(channel)
        with pytest.raises(DeadlineExceeded) as caught:
            analyse(stub, measured(stub), model=film_model, stage=REFINED, samples=5000)
        assert caught.value.reason == "REFINEMENT_TIMEOUT"
        assert analyse(stub, measured(stub), model=film_model).stage == NETWORK


def test_both_clients_decode_the_same_answer(inference: Server, stub: Stub, film_model: str) -> None:
    message = measured(stub)
    columns = {name: np.array(getattr(message, name)) for name in ("q", "r", "dr", "dq")}
    curve = Curve(**columns, dq_convention=Resolution.SIGMA)
    endpoints = dict.fromkeys(("trainer", "storage", "inference"), inference.target)

    async def ask() -> Analysis:
        async with AsyncClient(endpoints) as client:
            return await client.analyze(curve, film_model, Stage.REFINED, samples=200, seed=3)

    with Client(endpoints) as client:
        answer = client.analyze(curve, film_model, "refined", samples=200, seed=3)
        with pytest.raises(ClientInvalidArgument, match="samples"):
            client.analyze(curve, film_model, "refined", samples=1.5)  # type: ignore[arg-type]
    again = asyncio.run(ask())
    assert again.parameters == answer.parameters
    assert again.explanations == answer.explanations
    assert again.effective_samples == answer.effective_samples
    (thickness,) = (item for item in answer.parameters if item.name == "film.thickness")
    assert thickness.interval_95 is not None
    assert thickness.interval_95[0] < 150 < thickness.interval_95[1]
    assert answer.explanations[0].values["film.thickness"] == pytest.approx(thickness.value)
    assert isinstance(answer.profile.sld_band, Band)
    assert answer.calculated_band is not None
    assert len(answer.calculated_band.lower_68) == len(answer.calculated.q) == 120
    assert len(answer.profile.sld_band.upper_95) == len(answer.profile.z)


def blind_model() -> StoredModel:
    """The model of one film, whose network answers a corner of the prior whatever it sees."""
    from guidehall.science.reflectometry.predictor import PhysicalPredictor

    model = reflectometry_model()
    tensors = safetensors.numpy.load(model.weights)
    last = next(name for name in tensors if name.startswith("head") and tensors[name].ndim == 2)
    bias = last.replace("weight", "bias")
    corner = {last: 0.01 * tensors[last], bias: np.full_like(tensors[bias], -3)}
    weights = safetensors.numpy.save({**tensors, **corner})
    manifest = Manifest.from_json(json.dumps(model.manifest).encode())
    assert manifest.example is not None
    inputs = {name: array.array("FP32") for name, array in manifest.example.inputs.items()}
    example = Example.of(inputs, PhysicalPredictor.load(manifest, weights).predict(inputs))
    changed = manifest.model_copy(update={"example": example, "weights_sha256": sha256(weights)})
    return StoredModel(json.loads(changed.to_json()), weights)


@pytest.mark.slow
def test_without_a_model_named_the_best_of_those_that_accept_the_curve_is_taken(
    storage: StorageSite, film_model: str, start_inference: StartInference
) -> None:
    newer = publish(storage, "film-unseen", blind_model()).name
    server = start_inference()
    with grpc.insecure_channel(server.target) as channel:
        stub = Stub(channel)
        answer = analyse(stub, measured(stub))
        (note,) = (note for note in answer.notes if note.code == "MODELS_COMPARED")
        named = analyse(stub, measured(stub), model=newer)
    assert answer.model_version == film_model
    assert named.mean_abs_log10_error > answer.mean_abs_log10_error
    assert note.message.startswith("film-in-air@1 explains the curve best")
    assert f"film-unseen@1 {named.mean_abs_log10_error:.3g}, film-in-air@1" in note.message
    assert "MODELS_COMPARED" not in {note.code for note in named.notes}
    only_newest = start_inference(ANALYSIS__MAX_CANDIDATES=1)
    with grpc.insecure_channel(only_newest.target) as channel:
        answer = analyse(Stub(channel), measured(Stub(channel)))
    assert answer.model_version == newer
    assert "MODELS_COMPARED" not in {note.code for note in answer.notes}


def test_without_a_model_that_accepts_the_curve_the_reasons_are_told(stub: Stub, film_model: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        analyse(stub, measured(stub, beam_side=curve_pb2.BEAM_SIDE_BACKING))
    assert caught.value.reason == "NO_MODEL_FITS"
    with pytest.raises(NotFound) as none:
        analyse(stub, measured(stub), parent="projects/empty")
    assert none.value.reason == "NO_MODEL"


def test_points_are_answered_in_the_callers_unit_and_indices(stub: Stub, film_model: str) -> None:
    curve = measured(stub)
    q = [10 * value for value in curve.q]
    # The last two lie outside the trained range, the first is masked. How well a small network does without
    # error bars is its own affair.
    q[-2:] = [2.2, 2.3]
    unit = curve_pb2.Q_UNIT_INVERSE_NANOMETRE
    fields = {"q": q, "dq": (), "dq_convention": 0, "dr": (), "q_unit": unit}
    answer = analyse(stub, measured(stub, mask=[True] + [False] * 119, **fields), model=film_model)
    assert list(answer.used_points) == list(range(1, 118))
    assert answer.calculated.q_unit == unit
    np.testing.assert_allclose(answer.calculated.q, q[1:118])
    assert not answer.HasField("chi_square")
    codes = {note.code for note in answer.notes} - {"POOR_FIT"}
    assert codes == {"POINTS_CUT", "POINTS_MASKED", "NO_ERROR_BARS", "RESOLUTION_ASSUMED"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"q": [0.1, 0.05] + [0.2] * 118}, "curve.q[1]"),
        ({"r": [1.0] * 119 + [float("nan")]}, "curve.r[119]"),
        ({"r": [1.0] * 119}, "curve.r"),
        ({"dr": [0.0] * 120}, "curve.dr[0]"),
        ({"dq_convention": 0}, "curve.dq_convention"),
        ({"q": np.linspace(1, 2, 120)}, "curve.q"),
        ({"beam_side": curve_pb2.BEAM_SIDE_BACKING}, "curve.beam_side"),
        ({"backing": curve_pb2.Medium(material="D2O", sld=6.36)}, "curve.backing.sld"),
    ],
)
def test_a_wrong_curve_is_named(stub: Stub, film_model: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        analyse(stub, measured(stub, **changes), model=film_model)
    assert caught.value.violations[0].field == field


def test_a_model_of_another_science_cannot_read_curves(storage: StorageSite, stub: Stub) -> None:
    name = publish(storage, "no-curves", line_model(slope=1)).name
    with pytest.raises(FailedPrecondition, match=r"toy\.line/1"):
        analyse(stub, measured(stub), model=name)


@pytest.mark.slow
def test_too_many_fits_are_refused_with_a_time_to_come_back(
    film_model: str, start_inference: StartInference
) -> None:
    server = start_inference(REFINEMENT__MAX_QUEUED=0)
    with grpc.insecure_channel(server.target) as channel, ThreadPoolExecutor(4) as threads:
        stub = Stub(channel)
        curve = measured(stub)
        # The process is spawned for the first fit: long enough for the others to come in between.
        calls = [threads.submit(analyse, stub, curve, model=film_model, stage=REFINED) for _ in range(4)]
        errors = [error for call in calls if (error := call.exception()) is not None]
    assert len(errors) == 3
    for error in errors:
        assert isinstance(error, ResourceExhausted)
        assert error.retry_after_seconds
    assert isinstance(errors[0], AppError)


@pytest.mark.slow
def test_fitting_processes_end_with_a_server_that_is_killed(
    film_model: str, start_inference: StartInference
) -> None:
    server = start_inference()
    with grpc.insecure_channel(server.target) as channel:
        analyse(Stub(channel), measured(Stub(channel)), model=film_model, stage=REFINED)
    children = children_of(server.pid)
    assert children
    server.stop(signal.SIGKILL)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end, "a process outlived its server"
        time.sleep(0.02)


def children_of(parent: int) -> list[int]:
    """Processes that were started by `parent`, apart from Python's own helper that watches for leaks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"spawn_main" in command:
            found.append(int(path.parent.name))
    assert os.getpid() not in found
    return found
