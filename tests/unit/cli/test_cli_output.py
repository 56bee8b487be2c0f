"""How answers are shown: nothing cut in a pipe, nothing that steers a terminal, JSON that is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click
import numpy as np
import pytest

from guidehall.cli import _output
from guidehall.cli._app import cli, run
from guidehall.cli.predict import at_bound
from guidehall.client import JobEvent, JobState, Note, Parameter, Pool, Progress, StoredObject

NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


def test_table_in_a_pipe_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _output.table(("NAME", "COUNT"), [("x" * 300, 7), ("y", 12345)])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "COUNT"]
    assert lines[1].split() == ["x" * 300, "7"]
    assert lines[2].split() == ["y", "12345"]


def test_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    _output.table(("NAME",), [], empty="no jobs")

    assert capsys.readouterr().out == "no jobs\n"


def test_names_of_others_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _output.table(("NAME",), [("\x1b[2Jevil\x07 [red]name[/red]\n",)])
    _output.pairs({"name": "\x1b]0;title\x07"})

    shown = capsys.readouterr().out
    assert not any(sign in shown for sign in "\x1b\x07")
    assert "[red]name[/red]" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (200000, "2 d"), (-5, "0 s")],
)
def test_durations_are_told_in_their_largest_unit(seconds: float, text: str) -> None:
    assert _output.duration(seconds) == text
    assert _output.age(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_are_told_in_their_unit(count: int, text: str) -> None:
    assert _output.size(count) == text


def test_documents_are_json_whatever_is_in_them() -> None:
    event = JobEvent(
        "projects/default/jobs/j", 3, NOW, "progress", Progress("train", 1, 2, {"loss": float("nan")})
    )

    document = json.loads(json.dumps(_output.document(event), allow_nan=False))

    assert document["kind"] == "progress"
    assert document["time"] == "2030-01-01T00:00:00+00:00"
    assert document["payload"] == {"phase": "train", "step": 1, "total": 2, "metrics": {"loss": None}}


def test_documents_hold_ids_enums_arrays_and_paths() -> None:
    document = _output.document(
        {
            "pool": Pool("pools/cpu", 1, 2, 3, 4, 5, 6.0, "cpu", 60, None),
            "state": JobState.FAILED,
            "array": np.array([[1.0, np.inf]]),
            "object": StoredObject("ab", 1, "text/plain"),
            "notes": (Note("A", "b"),),
            "path": Path("out"),
        }
    )

    assert document["pool"]["id"] == "cpu"
    assert document["state"] == "FAILED"
    assert document["array"] == [[1.0, None]]
    assert document["notes"] == [{"code": "A", "message": "b"}]
    assert document["path"] == "out"


@pytest.mark.parametrize(
    ("value", "lower", "upper", "said"),
    [
        (5.0, 0.0, 10.0, ""),
        (0.0005, 0.0, 10.0, "at lower bound"),
        (0.005, 0.0, 10.0, ""),
        (10.0, 0.0, 10.0, "at upper bound"),
        (3, 3, 3, "fixed"),
    ],
)
def test_parameters_that_stick_to_a_bound_are_told(
    value: float, lower: float, upper: float, said: str
) -> None:
    assert at_bound(Parameter("film.thickness", value, "angstrom", lower, upper, None)) == said


def _commands(command: click.Command, words: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    if command.invoke_without_command:
        yield words, command
    for name, inner in command.commands.items():
        yield from _commands(inner, f"{words} {name}".strip())


def test_every_command_answers_programs() -> None:
    known = dict(_commands(cli))

    assert {"up", "workers credentials revoke", "models show"} <= set(known)
    silent = [
        words for words, command in known.items() if not any("--json" in item.opts for item in command.params)
    ]
    # Those write nothing but JSON.
    assert silent == ["audit export", "people export"]


@pytest.mark.parametrize(
    ("words", "fields", "told"),
    [
        (["jobs", "--limit", "0"], ["--limit"], "0 is not in the range"),
        (["jobs", "--nosuch"], [], "No such option"),
        (["dead", "--all"], [], "jobs and --all go with --redrive"),
        (["job"], ["job"], "Missing argument"),
    ],
)
def test_wrong_arguments_are_told_to_programs_as_every_other_error(
    words: list[str], fields: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--json"]) == 2

    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "USAGE")
    assert told in error["message"]
    assert [item["field"] for item in error["violations"]] == fields
