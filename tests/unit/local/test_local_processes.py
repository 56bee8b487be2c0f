from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from guidehall.local.descendants import identity
from guidehall.local.errors import Interrupted, StackError
from guidehall.local.logfiles import last_lines
from guidehall.local.ports import Ports
from guidehall.local.processes import Program, RestartPolicy, launch, reap
from guidehall.local.supervisor import Supervisor

_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
# What the supervisor itself adds: it starts another Python and the program's own start takes its time.
_QUICK = RestartPolicy(first_seconds=0.01, longest_seconds=0.02, healthy_seconds=3600.0)


@pytest.fixture
def server(tmp_path: Path) -> Program:
    """A real HTTP server as a program; its folder is empty."""
    port = _any_port()
    return Program(
        name="server",
        argv=(
            sys.executable,
            "-I",
            "-m",
            "http.server",
            str(port),
            "--bind",
            "127.0.0.1",
            "-d",
            str(tmp_path),
        ),
        probe=f"http://127.0.0.1:{port}/",
        environment=_ENVIRONMENT,
        start_seconds=20.0,
    )


def _script(server: Program, name: str, code: str) -> Program:
    return replace(_elsewhere(server), name=name, argv=(sys.executable, "-I", "-S", "-c", code))


def _any_port() -> int:
    with Ports(None, usual=False) as ports:
        return ports.choose("server", 8000)


def _elsewhere(server: Program) -> Program:
    """The same server on another port."""
    port = str(_any_port())
    used = server.argv[4]
    argv = tuple(port if argument == used else argument for argument in server.argv)
    return replace(server, argv=argv, probe=server.probe.replace(used, port))


def test_the_delay_between_restarts_doubles_up_to_its_bound() -> None:
    policy = RestartPolicy(first_seconds=0.1, longest_seconds=30.0)

    assert [policy.delay(failures) for failures in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert policy.delay(10**6) == 30.0


def test_a_crashed_program_is_started_again(server: Program, tmp_path: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor(tmp_path / "logs", _QUICK, lines.append)
    supervisor.start([server])
    process = supervisor.processes["server"]
    first = process.pid

    process.send(signal.SIGKILL)
    assert process.wait_gone(10.0)
    process.wait_ready()
    second = process.pid
    supervisor.stop()

    assert first != second
    assert process.restarts == 1
    assert any("ended with status -9; starting it again" in line for line in lines)
    assert identity(second or 0) is None


@pytest.mark.parametrize(("healthy_seconds", "delay"), [(3600.0, 0.1), (0.0, 0.01)])
def test_a_healthy_time_ends_the_memory_of_earlier_crashes(
    server: Program, tmp_path: Path, healthy_seconds: float, delay: float
) -> None:
    policy = RestartPolicy(first_seconds=0.01, factor=10.0, healthy_seconds=healthy_seconds)
    supervisor = Supervisor(tmp_path / "logs", policy)
    supervisor.start([server])
    process = supervisor.processes["server"]

    for _ in range(2):
        process.send(signal.SIGKILL)
        assert process.wait_gone(10.0)
        process.wait_ready()
    supervisor.stop()

    assert process.retry_seconds == pytest.approx(delay)


def test_a_program_that_never_becomes_ready_is_given_up_with_the_end_of_its_log(
    server: Program, tmp_path: Path
) -> None:
    broken = _script(server, "broken", "print('no such setting: DATABSE'); raise SystemExit(3)")
    supervisor = Supervisor(tmp_path / "logs", _QUICK)

    with pytest.raises(StackError, match="exit status 3") as caught:
        supervisor.start([broken])

    assert "no such setting: DATABSE" in str(caught.value)


def test_a_failed_start_leaves_nothing_running(server: Program, tmp_path: Path) -> None:
    broken = _script(replace(server, after=("server",)), "broken", "raise SystemExit(1)")
    supervisor = Supervisor(tmp_path / "logs", _QUICK)

    with pytest.raises(StackError, match="broken"):
        supervisor.start([server, broken])

    assert supervisor.processes["server"].pid is None


def test_programs_start_after_those_they_need_and_stop_before_them(server: Program, tmp_path: Path) -> None:
    lines: list[str] = []
    client = replace(_elsewhere(server), name="client", after=("server",))
    supervisor = Supervisor(tmp_path / "logs", _QUICK, lines.append)

    supervisor.start([server, client])
    supervisor.stop()

    assert [line.split()[:2] for line in lines] == [
        ["server", "ready"],
        ["client", "ready"],
        ["client", "stopped"],
        ["server", "stopped"],
    ]


def test_an_interrupted_start_stops_what_it_had_started(server: Program, tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs", _QUICK)
    never = _script(replace(server, after=("server",)), "never", "import time; time.sleep(60)")
    interrupting = replace(server, provision=lambda: threading.Timer(0.1, supervisor.interrupted.set).start())

    with pytest.raises(Interrupted):
        supervisor.start([interrupting, never])

    assert [process.pid for process in supervisor.processes.values()] == [None, None]


def test_a_program_that_ignores_the_request_to_stop_is_killed(server: Program, tmp_path: Path) -> None:
    code = f"""
import runpy, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.argv = {["http.server", *server.argv[4:]]}
runpy.run_module("http.server", run_name="__main__")
"""
    stubborn = replace(server, name="stubborn", argv=(sys.executable, "-I", "-c", code), stop_seconds=0.1)
    supervisor = Supervisor(tmp_path / "logs", _QUICK)
    supervisor.start([stubborn])

    supervisor.stop()

    assert supervisor.processes["stubborn"].exit_status == -signal.SIGKILL


def test_output_goes_to_the_log(server: Program, tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs", _QUICK)

    supervisor.start([replace(server, prepare=lambda run: run(("/bin/echo", "prepared"), _ENVIRONMENT))])
    supervisor.stop()

    lines = last_lines(tmp_path / "logs" / "server.log", 100)
    assert lines[0] == "prepared"
    assert any("GET / " in line for line in lines)


def test_a_failed_preparation_is_told_with_its_output(server: Program, tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", "echo no such table; exit 7")
    supervisor = Supervisor(tmp_path / "logs", _QUICK)

    with pytest.raises(StackError, match="ended with status 7") as caught:
        supervisor.start([replace(server, prepare=lambda run: run(command, _ENVIRONMENT))])

    assert "no such table" in str(caught.value)


def test_a_program_inherits_neither_our_variables_nor_ignored_signals(tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", "env; grep SigIgn /proc/self/status; umask")
    process = launch(command, {"ONLY": "this"}, tmp_path, None, signal.SIGTERM)
    assert process.stdout is not None
    with process.stdout as stream:
        output = stream.read().decode().split()
    reap(process)

    variables = {line.partition("=")[0] for line in output if "=" in line}
    # The shell adds three, Python one.
    assert variables <= {"ONLY", "PWD", "SHLVL", "_", "LC_CTYPE"}
    assert output[-3:] == ["SigIgn:", "0000000000000000", "0077"]


def test_what_a_program_leaves_behind_in_its_group_ends_with_it(tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    process = launch(command, _ENVIRONMENT, tmp_path, None, signal.SIGTERM)
    assert process.stdout is not None
    with process.stdout as stream:
        orphan = int(stream.read())

    reap(process)

    _wait_until(lambda: identity(orphan) is None)


def test_a_program_dies_with_its_starter_however_that_dies(tmp_path: Path) -> None:
    code = """
import signal, sys
from pathlib import Path
from guidehall.local.processes import launch
process = launch(("/bin/sleep", "60"), {}, Path("/"), None, signal.SIGTERM)
print(process.pid, flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        _wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
        starter.kill()

    _wait_until(lambda: identity(child) is None)


def test_a_process_has_an_identity_of_its_own_only_while_it_runs() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        mine, other = identity(os.getpid()), identity(process.pid)
        process.kill()

    assert mine == identity(os.getpid())
    assert mine != other
    assert identity(process.pid) is None


def _wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something that no event tells of: the end of a process that is not our child."""
    ended = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        ended.wait(0.01)
    raise AssertionError("it did not happen in time")
