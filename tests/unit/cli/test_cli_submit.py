"""`guidehall submit` and `simulate`: from flags and files to the request, from a refusal back to flags."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guidehall.cli._app import run
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.errors import InvalidArgument, Violation
from tests.unit.cli.conftest import Peer

NR_SLD = "reflectometry.nr_sld"
FILM = """
model_name: film
stack:
  fronting: {sld: {min: 2.07, max: 2.07}}
  layers:
    - {thickness: {min: 10, max: 100}, sld: 3.4}
  backing: {sld: 6.3}
training: {epochs: 9, learning_rate: 1e-3}
"""


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.yml"
    path.write_text(FILM)
    return path


def test_flags_become_parameters_of_their_type(peer: Peer) -> None:
    code = run(
        ["submit", NR_SLD, "--training.epochs", "5", "--training.learning_rate=1e-4", "--curves_from_dataset"]
    )

    assert code == 0
    assert peer.params() == {"training": {"epochs": 5, "learning_rate": 1e-4}, "curves_from_dataset": True}


def test_flags_count_more_than_the_file(peer: Peer, film: Path) -> None:
    run(["submit", NR_SLD, "--from", str(film), "--training.epochs", "5", "--stack.layers.0.sld", "4"])

    params = peer.params()
    assert params["training"] == {"epochs": 5, "learning_rate": 0.001}
    assert params["stack"]["layers"] == [{"thickness": {"min": 10, "max": 100}, "sld": 4}]


def test_lists_grow_entry_by_entry_or_come_whole(peer: Peer) -> None:
    run(["submit", NR_SLD, "--stack.layers.0.sld.min", "1", "--stack.layers.1.sld", "2"])
    grown = peer.params()["stack"]["layers"]
    run(["submit", NR_SLD, "--stack.layers", '[{"sld": {"min": 1}}]', "--stack.layers.1.sld", "2"])

    assert grown == peer.params()["stack"]["layers"] == [{"sld": {"min": 1}}, {"sld": 2}]


def test_json_files_and_dashes_in_flags_are_fine(peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(json.dumps({"training": {"width": 64}}))

    run(["submit", NR_SLD, "--from", str(path), "--training.batch-size", "32"])

    assert peer.params() == {"training": {"width": 64, "batch_size": 32}}


def test_what_is_not_a_parameter_goes_beside_them(peer: Peer) -> None:
    options = "--name n --seed 7 --pool gpu --priority high --label run=12 --input curves=d@2 --timeout 1m"

    run(["--project", "lab", "submit", NR_SLD, "--dry-run", *options.split()])

    request: Any = peer.requests[-1]
    assert (request.parent, request.display_name, request.seed, request.pool) == (
        "projects/lab",
        "n",
        7,
        "gpu",
    )
    assert request.priority == jobs_pb2.JOB_PRIORITY_HIGH
    assert dict(request.labels) == {"run": "12"}
    assert dict(request.inputs) == {"curves": "projects/lab/datasets/d/versions/2"}
    assert (request.timeout_seconds, request.validate_only) == (60, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.epochs", "0"], "'--training.epochs': 0 is not from 1 to 10000"),
        (["--training.epochs", "many"], "'--training.epochs': 'many' is not an integer"),
        (["--training.epoch", "5"], "--training.epoch"),
        (["--stack.beam", "left"], "fronting, backing"),
        (["--stack.layers.1.sld", "2"], "'--stack.layers.1.sld': stack.layers has 0 entries"),
        (["--label", "run"], "--label"),
        (["--input", "curves=a/b"], "dataset"),
        (["--from", "/nowhere.yml"], "/nowhere.yml"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_submitted(
    peer: Peer, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["submit", NR_SLD, *arguments]) == 2

    assert said in capsys.readouterr().err
    assert peer.requests == []


def test_refusals_of_the_server_name_flags(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.error = InvalidArgument(
        "two parameters are wrong",
        violations=[
            Violation("params.stack.layers[1].sld.min", "got 7; allowed: at most 5"),
            Violation("pool", "got 'x'; allowed: cpu"),
        ],
    )

    assert run(["submit", NR_SLD, "--pool", "x"]) == 2

    said = capsys.readouterr().err.splitlines()
    assert said[1:] == [
        "  --stack.layers.1.sld.min: got 7; allowed: at most 5",
        "  --pool: got 'x'; allowed: cpu",
    ]


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("pool", "--pool"),
        ("display_name", "--name"),
        ("timeout_seconds", "--timeout"),
        ("inputs.curves", "--input curves"),
        ("labels.run", "--label run"),
    ],
)
def test_refusals_of_what_is_beside_the_parameters_name_flags(
    peer: Peer, capsys: pytest.CaptureFixture[str], field: str, flag: str
) -> None:
    peer.error = InvalidArgument.field(field, "x", "y")

    assert run(["submit", NR_SLD]) == 2

    assert capsys.readouterr().err == f"guidehall: {flag}: got 'x'; allowed: y\n"


@pytest.mark.parametrize(
    ("message", "violations", "said"),
    [
        ("none of 2 models fits: q is too low", [("model", "name one")], ["model: name one"]),
        ("a: b; more than that", [("a", "b")], []),
    ],
)
def test_message_that_says_more_than_its_violations_comes_first(
    peer: Peer,
    capsys: pytest.CaptureFixture[str],
    message: str,
    violations: list[tuple[str, str]],
    said: list[str],
) -> None:
    peer.error = InvalidArgument(message, violations=[Violation(*item) for item in violations])

    assert run(["submit", NR_SLD]) == 2

    assert capsys.readouterr().err.splitlines() == [f"guidehall: {message}", *(f"  {line}" for line in said)]


def test_message_that_repeats_its_violations_is_not_said(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.error = InvalidArgument("a: b; c: d", violations=[Violation("a", "b"), Violation("c", "d")])

    assert run(["submit", NR_SLD]) == 2

    assert capsys.readouterr().err.splitlines() == ["guidehall: these are refused:", "  a: b", "  c: d"]


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\t: x", "just text", b"\xff\xfe\x00x", ""])
def test_file_that_is_no_mapping_is_refused(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes
) -> None:
    path = tmp_path / "params.yml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)

    assert run(["submit", NR_SLD, "--from", str(path)]) == 2

    assert "params.yml" in capsys.readouterr().err
    assert peer.requests == []


def test_yaml_cannot_make_objects(peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "params.yml"
    path.write_text("a: !!python/object/apply:os.system ['touch made']")

    assert run(["submit", NR_SLD, "--from", str(path)]) == 2


def test_help_lists_every_parameter(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", NR_SLD, "--help"]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "--training.epochs INTEGER Epochs. The model is validated after each. [from 1 to 10000; default"
        in shown
    )
    assert "--stack.layers.N.thickness.min NUMBER Thickness, lowest. [angstrom;" in shown
    assert "--curves_from_dataset / --no-curves_from_dataset" in shown


def test_unknown_pipeline_is_not_found(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "alchemy.gold", "--help"]) == 3

    assert capsys.readouterr().err == "guidehall: alchemy.gold does not exist\n"


def test_submit_lists_pipelines_when_it_can(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "--help"]) == 0

    assert NR_SLD in capsys.readouterr().out


def test_submit_has_help_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUIDEHALL_DATA", str(tmp_path))
    monkeypatch.delenv("GUIDEHALL_ENDPOINTS", raising=False)

    assert run(["submit", "--help"]) == 0

    assert "none can be listed" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["simulate"], ["submit", NR_SLD]])
def test_help_without_a_server_shows_the_flags_that_need_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv("GUIDEHALL_ENDPOINTS", "trainer=127.0.0.1:1")

    assert run([*command, "--stack.beam", "fronting", "--help"]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "--from FILE" in shown
    assert "told by a running platform only: the trainer service at 127.0.0.1:1 cannot be reached" in shown


def test_simulate_prints_columns(peer: Peer, capsys: pytest.CaptureFixture[str], film: Path) -> None:
    peer.simulation.curve.q.extend([0.01, 0.02])
    peer.simulation.curve.r.extend([1.0, 0.5])
    peer.simulation.notes.add(code="ROUGHER_THAN_THICK", message="too rough")

    assert run(["simulate", "--stack.layers.0.thickness", "120", "--probe.points", "2"]) == 0

    said = capsys.readouterr()
    assert said.err == "note: too rough [ROUGHER_THAN_THICK]\n"
    heading, *rows = said.out.splitlines()
    assert heading == "# q R; q in 1/angstrom"
    assert [[float(value) for value in row.split()] for row in rows] == [[0.01, 1.0], [0.02, 0.5]]
    assert peer.params() == {"stack": {"layers": [{"thickness": 120}]}, "probe": {"points": 2}}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("guidehall jo", "job"),
        ("guidehall submit reflectometry.nr", NR_SLD),
        (f"guidehall submit {NR_SLD} --training.ep", "--training.epochs"),
    ],
)
def test_shell_completes_commands_pipelines_and_flags(peer: Peer, words: str, expected: str) -> None:
    assert expected in _completed(words)


def test_completion_is_silent_when_no_server_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEHALL_ENDPOINTS", "trainer=127.0.0.1:1")

    assert _completed(f"guidehall submit {NR_SLD} --dry") == ["--dry-run"]


def _completed(words: str) -> list[str]:
    environment = {
        **os.environ,
        "_GUIDEHALL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    finished = subprocess.run(
        [sys.executable, "-m", "guidehall.cli"], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.stderr == ""
    return [line.partition(",")[2] for line in finished.stdout.splitlines()]
