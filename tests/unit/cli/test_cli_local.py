"""`guidehall logs`, `status` and `up` on the command line: what is shown and what the exit code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guidehall.cli._app import run

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


def test_log_of_nobody_is_not_found(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs", "nosuch", "--data", str(data)]) == 3

    assert "there are: gateway" in capsys.readouterr().err
