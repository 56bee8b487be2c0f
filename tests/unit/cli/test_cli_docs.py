"""The reference pages name everything that there is, and the how-tos nothing else."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from guidehall.cli._app import cli, run
from guidehall.cli._exit import ExitCode
from guidehall.client import Client

DOCS = Path(__file__).parents[3] / "docs"
REFERENCE = DOCS / "reference"
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


def commands(text: str) -> Iterator[list[str]]:
    """What a page has people type after `guidehall`, up to a pipe or a redirection."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("guidehall "):
                words = shlex.split(line, comments=True)
                end = next((place for place, word in enumerate(words) if word in (">", "|")), len(words))
                yield words[1:end]


HOW_TO = [
    (page.name, words)
    for page in sorted((DOCS / "how-to").glob("*.md"))
    for words in commands(page.read_text())
]


def test_how_tos_have_commands() -> None:
    assert ("run-workers.md", ["workers", "credentials", "--pool", "h200"]) in HOW_TO


@pytest.mark.parametrize(
    ("page", "words"), HOW_TO, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_command_of_a_how_to_is_understood(page: str, words: list[str]) -> None:
    assert run([*words, "--help"]) == 0, page
