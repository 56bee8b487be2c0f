"""`guidehall predict`: from a file to the request, and from the answer to a table, JSON and a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guidehall.cli import predict
from guidehall.cli._app import run
from guidehall.contracts.reflectometry.v1 import curve_pb2, reflectometry_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.science.reflectometry import infer_params
from services.gateway.api import inference
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
    np.testing.assert_allclose(curve.q, Q / 10)
    assert len(curve.dr) == len(Q)
    assert (curve.relative_dq, list(curve.dq)) == (0.05, [])
    assert curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_FWHM
    assert curve.beam_side == curve_pb2.BEAM_SIDE_BACKING
    assert curve.q_unit == curve_pb2.Q_UNIT_INVERSE_ANGSTROM
    assert (request.samples, request.seed) == (500, 0)


def test_network_alone_is_the_default(answered: Peer, measured: Path) -> None:
    run(["predict", str(measured)])

    request: reflectometry_pb2.AnalyzeCurveRequest = answered.requests[-1]
    assert (request.model, request.parent) == ("", "projects/default")
    assert request.stage == reflectometry_pb2.ANALYSIS_STAGE_NETWORK
    assert request.curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_UNSPECIFIED
    assert request.samples == 0


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


@pytest.mark.parametrize(
    ("options", "samples", "seed"),
    [("", 500, 0), ("--samples 0", 0, 0), ("--samples 5000 --seed 9007199254740991", 5000, 2**53 - 1)],
)
def test_samples_and_seed_are_sent(
    answered: Peer, measured: Path, options: str, samples: int, seed: int
) -> None:
    assert run(["predict", str(measured), "--refine", *options.split()]) == 0

    assert (answered.requests[-1].samples, answered.requests[-1].seed) == (samples, seed)


def test_the_limit_of_samples_is_the_same_everywhere() -> None:
    assert predict._MAX_SAMPLES == infer_params.MAX_SAMPLES == inference.MAX_SAMPLES


def test_without_error_bars_no_samples_are_asked_for(answered: Peer, measured: Path) -> None:
    np.savetxt(measured, np.loadtxt(measured)[:, :2])

    assert run(["predict", str(measured), "--refine"]) == 0

    assert answered.requests[-1].samples == 0


def sampled(answer: reflectometry_pb2.AnalyzeCurveResponse) -> None:
    """Gives the answer intervals, bands and a second film."""
    first, second = answer.parameters
    for parameter, width in ((first, 1.5), (second, 0.125)):
        for name, deviations in (("interval_68", 1), ("interval_95", 2)):
            interval = getattr(parameter, name)
            interval.lower = parameter.value - deviations * width
            interval.upper = parameter.value + deviations * width
    for band, middle in (
        (answer.calculated_band, np.array(answer.calculated.r)),
        (answer.profile.sld_band, np.array(answer.profile.sld)),
    ):
        for name, factor in (("lower_68", 0.9), ("upper_68", 1.1), ("lower_95", 0.8), ("upper_95", 1.2)):
            getattr(band, name).extend(factor * middle)
    answer.explanations.add(values=[123.4, 4.0], chi_square=41.0)
    answer.explanations.add(values=[98.7, 4.8], chi_square=44.5)
    answer.effective_samples = 130.6


def test_intervals_and_other_films_are_shown(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled(answered.analysis)

    assert run(["predict", str(measured), "--refine"]) == 0

    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "PARAMETER VALUE ± 1 SD 68 % 95 % UNIT LOWEST HIGHEST" in lines
    assert "film.thickness 123.4 1.5 121.9 to 124.9 120.4 to 126.4 angstrom 50 200" in lines
    assert "film.sld 4 3.875 to 4.125 3.75 to 4.25 1e-6/angstrom^2 4 5 at lower bound" in lines
    assert "2 films explain the curve, the best first" in lines
    assert "film.thickness 123.4 98.7" in lines
    assert "chi-square 41 44.5" in lines
    assert "independent samples about 131" in lines


def test_json_holds_intervals_bands_and_other_films(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled(answered.analysis)

    assert run(["predict", str(measured), "--refine", "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["parameters"][0]["interval_95"] == [pytest.approx(120.4), pytest.approx(126.4)]
    assert document["explanations"][1] == {
        "values": {"film.thickness": 98.7, "film.sld": 4.8},
        "chi_square": 44.5,
    }
    assert len(document["calculated_band"]["lower_95"]) == 38
    assert len(document["profile"]["sld_band"]["upper_68"]) == 3
    assert document["effective_samples"] == 130.6


def test_bands_are_drawn(answered: Peer, measured: Path, tmp_path: Path) -> None:
    plain, banded = tmp_path / "plain.svg", tmp_path / "banded.svg"
    assert run(["predict", str(measured), "--plot", str(plain)]) == 0
    sampled(answered.analysis)

    assert run(["predict", str(measured), "--refine", "--plot", str(banded)]) == 0

    # Two bands of the curve and two of the profile.
    fills = [path.read_text().count('id="FillBetween') for path in (plain, banded)]
    assert fills == [0, 4]


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
        (["--samples", "10"], "need --refine"),
        (["--seed", "1"], "need --refine"),
        (["--refine", "--samples", "5001"], "--samples"),
        (["--refine", "--seed", "-1"], "--seed"),
        (["--data-set", "2"], "--data-set: measured.dat holds 1 curve (1): none is '2'"),
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
        "guidehall: --dq: measured.dat has a resolution and does not say what it is; say sigma or fwhm\n"
    )
    assert run(["predict", str(measured), "--dq", "sigma"]) == 0
    assert len(answered.requests[-1].curve.dq) == len(Q)


def test_a_resolution_is_not_said_twice(
    answered: Peer, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savetxt(measured, np.column_stack([np.loadtxt(measured), 0.02 * Q]))

    assert run(["predict", str(measured), "--dq", "sigma", "--resolution", "0.05"]) == 2
    assert "--resolution: measured.dat has a resolution" in capsys.readouterr().err


def orso(path: Path) -> Path:
    """Two data sets; dq is a standard deviation, as the format has it."""
    from orsopy.fileio import Column, ErrorColumn, Orso, OrsoDataset, save_orso

    columns = [Column("Qz", "1/angstrom"), Column("R"), ErrorColumn("R"), ErrorColumn("Qz")]
    sets = []
    for name, scale in (("in air", 1.0), ("in water", 0.5)):
        header = Orso.empty()
        header.data_set, header.columns = name, columns
        sets.append(OrsoDataset(header, np.column_stack([Q, scale * R, 0.1 * R, 0.02 * Q])))
    save_orso(sets, str(path))
    return path


@pytest.mark.parametrize("data_set", ["2", "in water"])
def test_a_curve_of_an_orso_file_is_sent(answered: Peer, tmp_path: Path, data_set: str) -> None:
    assert run(["predict", str(orso(tmp_path / "two.ort")), "--data-set", data_set]) == 0

    curve = answered.requests[-1].curve
    np.testing.assert_allclose(curve.r, 0.5 * R)
    np.testing.assert_allclose(curve.dq, 0.02 * Q)
    assert curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_SIGMA


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "say which"), (["--data-set", "3"], "none is '3'"), (["--data-set", "0"], "'0'")],
)
def test_one_of_several_curves_must_be_named(
    answered: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(["predict", str(orso(tmp_path / "two.ort")), *options]) == 2

    shown = capsys.readouterr().err
    assert "--data-set: two.ort holds 2 curves (1 in air, 2 in water)" in shown
    assert said in shown
    assert answered.requests == []


def test_a_curve_of_a_nexus_file_is_sent(answered: Peer, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "measured.nxs"
    with h5py.File(path, "w") as file:
        data = file.create_group("entry/data")
        data.attrs["NX_class"], data.attrs["signal"], data.attrs["axes"] = "NXdata", "R", "Q"
        data["Q"], data["R"] = Q * 10, R
        data["Q"].attrs["units"] = "1/nm"

    assert run(["predict", str(path)]) == 0

    np.testing.assert_allclose(answered.requests[-1].curve.q, Q)
    np.testing.assert_allclose(answered.requests[-1].curve.r, R)


def test_columns_with_names_are_understood(
    answered: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "measured.csv"
    rows = [f"{r},{q * 10},{0.02 * q * 10},1" for q, r in zip(Q, R, strict=True)]
    path.write_text("\n".join(["R,Q (1/nm),dq_fwhm,monitor", *rows]))

    assert run(["predict", str(path)]) == 0

    curve = answered.requests[-1].curve
    np.testing.assert_allclose(curve.q, Q)
    np.testing.assert_allclose(curve.dq, 0.02 * Q / 2.3548200, rtol=1e-6)
    assert "monitor" in capsys.readouterr().out


def without_science(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where the science cannot read files."""
    code = (
        "import sys; sys.modules['orsopy'] = None\n"
        "from guidehall.cli._app import run\n"
        f"status = run({list(arguments)!r})\n"
        "assert 'guidehall.science' not in sys.modules\n"
        "sys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_text_is_read_without_the_science(answered: Peer, measured: Path) -> None:
    np.savetxt(measured, np.column_stack([np.loadtxt(measured), 0.02 * Q]))

    finished = without_science("predict", str(measured), "--dq", "fwhm", "--q-unit", "1/nm")

    assert finished.returncode == 0, finished.stderr
    curve = answered.requests[-1].curve
    np.testing.assert_allclose(curve.q, Q)
    assert curve.q_unit == curve_pb2.Q_UNIT_INVERSE_NANOMETRE
    assert curve.dq_convention == curve_pb2.RESOLUTION_CONVENTION_FWHM


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"# # ORSO reflectivity data file | 1.1 standard\n", (), "measured.dat is an ORSO file"),
        (b"\x89HDF\r\n\x1a\n", (), "measured.dat is an HDF5 file"),
        (b"0.1 1\n0.2 1\n", ("--data-set", "2"), "--data-set"),
        (b"q,R,dR,dq,monitor\n0.1,1,1,1,1\n", (), "measured.dat line 2"),
    ],
)
def test_what_needs_the_science_is_said(
    answered: Peer, measured: Path, content: bytes, options: tuple[str, ...], said: str
) -> None:
    measured.write_bytes(content)

    finished = without_science("predict", str(measured), *options)

    assert finished.returncode in (1, 2)
    assert said in finished.stderr
    assert "pip install '.[science]'" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert answered.requests == []


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
