"""`guidehall predict`: from a file to the request, and from the answer to a table, JSON and a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guidehall.cli._app import run
from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2
from guidehall.core.errors import InvalidArgument
from tests.unit.cli.conftest import Peer

Q = np.geomspace(0.01, 0.2, 40)
R = 1e-8 / Q**4


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Three columns; the last point went below zero when the background was taken away."""
    r = R.copy()
    r[-1] = -1e-7
    path = tmp_path / "measured.dat"
    np.savetxt(path, np.column_stack([Q, r, 0.1 * R]))
    return path


@pytest.fixture
def answered(peer: Peer) -> Peer:
    """An analysis that leaves the first two points out."""
    answer = peer.analysis
    answer.model_version = "projects/default/models/film/versions/3"
    answer.model_digest = "d" * 64
    answer.stage = reflectometry_pb2.ANALYSIS_STAGE_REFINED
    answer.parameters.add(
        name="film.thickness", value=123.4, unit="angstrom", lower=50, upper=200, standard_error=1.5
    )
    answer.parameters.add(name="film.sld", value=4.0, unit="1e-6/angstrom^2", lower=4, upper=5)
    answer.profile.z_angstrom.extend([0, 50, 100])
    answer.profile.sld.extend([2.07, 4.0, 6.3])
    answer.profile.isld.extend([0, 0, 0])
    answer.calculated.q.extend(Q[2:])
    answer.calculated.r.extend(R[2:])
    answer.used_points.extend(range(2, len(Q)))
    answer.normalized_residuals.extend(np.zeros(len(Q) - 2))
    answer.chi_square, answer.reduced_chi_square = 41.0, 1.08
    answer.mean_abs_log10_error = 0.04
    answer.notes.add(code="POINTS_CUT", message="2 points lie below the trained range")
    return peer


def test_file_and_options_make_the_request(answered: Peer, measured: Path) -> None:
    options = "--model film@3 --refine --dq fwhm --resolution 0.05 --beam-side backing --q-unit 1/nm"

    assert run(["predict", str(measured), *options.split()]) == 0

    request: reflectometry_pb2.AnalyzeCurveRequest = answered.requests[-1]
    curve = request.curve
    assert request.model == "projects/default/models/film/versions/3"
    assert request.stage == reflectometry_pb2.ANALYSIS_STAGE_REFINED
    np.testing.assert_allclose(curve.q, Q)
    assert len(curve.dr) == len(Q)
    assert (curve.relative_dq, list(curve.dq)) == (0.05, [])
    assert curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_FWHM
    assert curve.beam_side == curve_pb2.BEAM_SIDE_BACKING
    assert curve.q_unit == curve_pb2.Q_UNIT_INVERSE_NANOMETRE


def test_network_alone_is_the_default(answered: Peer, measured: Path) -> None:
    run(["predict", str(measured)])

    request: reflectometry_pb2.AnalyzeCurveRequest = answered.requests[-1]
    assert (request.model, request.parent) == ("", "projects/default")
    assert request.stage == reflectometry_pb2.ANALYSIS_STAGE_NETWORK
    assert request.curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_UNSPECIFIED


def test_answer_is_a_table_with_what_a_reader_must_know(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["predict", str(measured)])

    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["film.thickness", "123.4", "1.5", "angstrom", "50", "200"] in rows
    assert ["film.sld", "4", "1e-6/angstrom^2", "4", "5", "at", "lower", "bound"] in rows
    assert "41 (1.08 per degree of freedom)" in shown
    assert "38 of 40" in shown
    assert "note: 2 points lie below the trained range [POINTS_CUT]" in shown


def test_chi_square_without_errors_is_said_to_be_unknown(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered.analysis.ClearField("chi_square")

    run(["predict", str(measured)])

    assert "not known without dR" in capsys.readouterr().out


def test_json_holds_everything(answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["predict", str(measured), "--json"])

    document = json.loads(capsys.readouterr().out)
    assert document["stage"] == "refined"
    assert document["parameters"][1]["standard_error"] is None
    assert len(document["calculated"]["q"]) == 38


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
@pytest.mark.parametrize("with_errors", [True, False])
def test_plot_is_drawn(
    answered: Peer, measured: Path, tmp_path: Path, suffix: str, with_errors: bool
) -> None:
    if not with_errors:
        np.savetxt(measured, np.loadtxt(measured)[:, :2])
        del answered.analysis.normalized_residuals[:]
    measured = measured.rename(tmp_path / "a$b$c_{.dat")
    path = tmp_path / f"fit{suffix}"

    assert run(["predict", str(measured), "--plot", str(path)]) == 0

    magic = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("name", "said"), [("fit.xyz", ".png"), ("fit", ".png"), ("nowhere/fit.png", "no folder")]
)
def test_picture_that_cannot_be_drawn_is_refused_before_the_work(
    answered: Peer, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert run(["predict", str(measured), "--plot", str(tmp_path / name)]) == 2

    shown = capsys.readouterr().err
    assert name in shown
    assert said in shown
    assert answered.requests == []


def test_missing_matplotlib_is_said_before_the_work(answered: Peer, measured: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from guidehall.cli._app import run\n"
        f"sys.exit(run(['predict', {str(measured)!r}, '--plot', {str(tmp_path / 'fit.png')!r}]))"
    )

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert "pip install '.[plot]'" in finished.stderr
    assert answered.requests == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resolution", "0.05"], "--resolution needs --dq"),
        (["--resolution", "0", "--dq", "fwhm"], "--resolution"),
        (["--dq", "hwhm"], "--dq"),
        (["--model", "a/b"], "model"),
    ],
)
def test_wrong_options_are_refused(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(["predict", str(measured), *options]) == 2

    assert said in capsys.readouterr().err
    assert answered.requests == []


def test_fourth_column_needs_its_meaning(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savetxt(measured, np.column_stack([np.loadtxt(measured), 0.02 * Q]))

    assert run(["predict", str(measured)]) == 2
    assert capsys.readouterr().err == (
        "guidehall: --dq: measured.dat has a fourth column: say whether it is sigma or fwhm\n"
    )
    assert run(["predict", str(measured), "--dq", "sigma"]) == 0
    assert len(answered.requests[-1].curve.dq) == len(Q)


def test_refusals_of_the_server_name_flags(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered.error = InvalidArgument.field("curve.relative_dq", 0.9, "0 to 0.3")

    assert run(["predict", str(measured), "--resolution", "0.9", "--dq", "fwhm"]) == 2

    assert capsys.readouterr().err == "guidehall: --resolution: got 0.9; allowed: 0 to 0.3\n"


def test_simulation_is_drawn(peer: Peer, tmp_path: Path) -> None:
    peer.simulation.curve.q.extend(Q)
    peer.simulation.curve.r.extend(R)
    peer.simulation.profile.z_angstrom.extend([0, 1])
    peer.simulation.profile.sld.extend([2.07, 6.3])
    peer.simulation.profile.isld.extend([0.0, 0.1])
    path = tmp_path / "film.png"

    assert run(["simulate", "--plot", str(path)]) == 0

    assert path.read_bytes().startswith(b"\x89PNG")
