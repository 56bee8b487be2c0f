"""The reference pages name everything that there is."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from guidehall.cli._app import cli
from guidehall.cli._exit import ExitCode
from guidehall.client import Client

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
CLI = (REFERENCE / "cli.md").read_text(encoding="utf-8")
PYTHON = (REFERENCE / "python-client.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_described(command: str) -> None:
    assert f"`guidehall {command}" in CLI


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_described(code: ExitCode) -> None:
    assert f"\n| {code.value} | " in CLI


@pytest.mark.parametrize(
    "method", [name for name, _ in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_"]
)
def test_every_method_is_described(method: str) -> None:
    assert f"`{method}(" in PYTHON
