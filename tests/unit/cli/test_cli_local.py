"""`guidehall logs`, `status` and `up` on the command line: what is shown and what the exit code says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from guidehall.cli import _context
from guidehall.cli._app import run
from guidehall.cli.local import _engines
from guidehall.local import lock
from guidehall.local.control import ServiceStatus
from tests.missing import missing

_LINE = json.dumps(
    {"ts": "-", "level": "INFO", "logger": "uvicorn", "msg": "up", "color_message": "\x1b[1mup"}
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a log of two lines."""
    log = tmp_path / "logs" / "gateway.log"
    log.parent.mkdir()
    log.write_text(f"{_LINE}\nplain\x1b[31m\n")
    return tmp_path


def test_logs_are_readable(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "gateway", "--data", str(data)]) == 0

    assert capsys.readouterr().out == "--:--:--.--- INFO    uvicorn: up\nplain\ufffd[31m\n"


def test_logs_for_programs_are_as_they_were_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "gateway", "--data", str(data), "--json", "-n", "2"]) == 0

    assert json.loads(capsys.readouterr().out.splitlines()[0]) == json.loads(_LINE)


def test_down_for_programs_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down", "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": False, "deleted": []}

    (tmp_path / lock.NAME).touch()
    assert run(["down", "--data", str(tmp_path), "--delete-data", "--yes", "--json"]) == 0

    said = capsys.readouterr()
    assert json.loads(said.out) == {"stopped": False, "deleted": [str(tmp_path)]}
    assert "deleted what was in" in said.err
    assert not tmp_path.exists()


@pytest.mark.parametrize("words", [["up"], ["status"], ["logs", "nats"], ["down"], ["worker"], ["demo"]])
def test_where_no_platform_can_run_that_is_said(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")

    assert run([*words, "--json"]) == 1

    error = json.loads(capsys.readouterr().err)["error"]
    assert error["reason"] == "NEEDS_LINUX"
    assert "on Linux, not on Windows" in error["message"]


def test_log_of_nobody_is_not_found(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "nosuch", "--data", str(data)]) == 3

    assert "there are: gateway" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engines", "shown"),
    [
        ({"storage": ""}, ""),
        ({"storage": "", "inference": "c (avx2)", "worker-1": "c (avx2)"}, "c (avx2)"),
        (
            {"inference": "torch", "worker-1": "c (any)", "worker-2": "torch"},
            "torch in inference, worker-2; c (any) in worker-1",
        ),
    ],
)
def test_engine_is_told_with_its_places_where_they_differ(engines: dict[str, str], shown: str) -> None:
    parts = [ServiceStatus(name, "ready", True, "", 1, 0, None, engine) for name, engine in engines.items()]

    assert _engines(parts) == shown


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The token of a stack in the folder that is looked at by default."""
    for name in ("ENDPOINTS", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"GUIDEHALL_{name}", raising=False)
    monkeypatch.setenv("GUIDEHALL_DATA", str(tmp_path))
    path = tmp_path / "administrator.token"
    path.write_text("the-token")
    (tmp_path / "endpoints.json").write_text(json.dumps({"credentials": {"token_file": str(path)}}))
    return path


def test_token_of_the_stack_of_this_machine_is_found(token_file: Path) -> None:
    assert _context.own_token() == "the-token"


@pytest.mark.parametrize("name", ["ENDPOINTS", "TOKEN", "TOKEN_FILE"])
def test_token_of_the_stack_is_not_sent_where_another_is_named(
    token_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"GUIDEHALL_{name}", "something")

    assert _context.own_token() is None


def test_token_of_somebody_else_is_not_taken(token_file: Path) -> None:
    if os.geteuid() != 0:
        missing("only root can give a file to somebody else")
    os.chown(token_file, 65_534, 65_534)

    assert _context.own_token() is None


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"credentials": {"token_file": "/nowhere"}}'])
def test_stack_that_needs_no_token_has_none(token_file: Path, content: str) -> None:
    (token_file.parent / "endpoints.json").write_text(content)

    assert _context.own_token() is None
