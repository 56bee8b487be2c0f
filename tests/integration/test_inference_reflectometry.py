"""Curves to physics over the wire: simulate, analyse, refine."""

from __future__ import annotations

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

from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2, reflectometry_pb2_grpc
from guidehall.core.errors import (
    AppError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    from_rpc_error,
)
from tests.fixtures.inference import (
    StartInference,
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


def test_without_a_model_named_the_newest_that_fits_is_taken(stub: Stub, film_model: str) -> None:
    assert analyse(stub, measured(stub)).model_version == film_model
    with pytest.raises(InvalidArgument) as caught:
        analyse(stub, measured(stub, beam_side=curve_pb2.BEAM_SIDE_BACKING))
    assert caught.value.reason == "NO_MODEL_FITS"
    with pytest.raises(NotFound) as none:
        analyse(stub, measured(stub), parent="projects/empty")
    assert none.value.reason == "NO_MODEL"


def test_points_are_answered_in_the_callers_unit_and_indices(stub: Stub, film_model: str) -> None:
    curve = measured(stub)
    q = [10 * value for value in curve.q]
    # The last two lie outside the trained range, the first is masked. Without error bars and in another
    # resolution the small network is far off.
    q[-2:] = [2.2, 2.3]
    unit = curve_pb2.Q_UNIT_INVERSE_NANOMETRE
    fields = {"q": q, "dq": (), "dq_convention": 0, "dr": (), "q_unit": unit}
    answer = analyse(stub, measured(stub, mask=[True] + [False] * 119, **fields), model=film_model)
    assert list(answer.used_points) == list(range(1, 118))
    assert answer.calculated.q_unit == unit
    np.testing.assert_allclose(answer.calculated.q, q[1:118])
    assert not answer.HasField("chi_square")
    codes = {note.code for note in answer.notes}
    assert codes == {"POINTS_CUT", "POINTS_MASKED", "NO_ERROR_BARS", "RESOLUTION_ASSUMED", "POOR_FIT"}


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
