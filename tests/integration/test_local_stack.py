"""The whole platform on one machine, as `guidehall up` runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from guidehall.local import lock
from guidehall.local.control import down, status, tail_logs, up_detached
from guidehall.local.descendants import descendants, identity
from guidehall.local.errors import AlreadyRunning, StackError, UnknownService
from guidehall.local.probes import is_ready
from guidehall.local.stack import Options, up
from guidehall.science.reflectometry import engine

_ROOT = Path(__file__).parents[2]
_SERVICES = ("postgres", "nats", "s3", "storage", "trainer", "inference", "worker-1", "gateway")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The data folder of a stack that may or may not run; it does not after the last test."""
    path = Path(tempfile.mkdtemp(prefix="guidehall-test-"))
    yield path
    down(path)
    shutil.rmtree(path)


def _options(folder: Path) -> Options:
    # The checkout under test, wherever the tests run.
    return Options(folder, environment=os.environ | {"PYTHONPATH": str(_ROOT)})


@pytest.fixture
def running(folder: Path) -> Path:
    """The data folder of a stack that runs."""
    if lock.holder(folder) is None:
        up_detached(_options(folder))
    return folder


def _wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something in another process that no event tells of."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.05)


def test_everything_is_ready_when_up_returns(running: Path) -> None:
    now = status(running)

    assert now.healthy
    assert {service.name for service in now.services} == set(_SERVICES)
    assert {service.restarts for service in now.services} == {0}
    endpoints = json.loads((running / "endpoints.json").read_text())
    assert endpoints == now.endpoints
    assert all(is_ready(f"grpc://{endpoints[name]}") for name in ("trainer", "storage", "inference"))
    assert is_ready(f"{endpoints['ops']['gateway']}/health")
    engines = {service.name: service.reflectometry_engine for service in now.services}
    assert engines.pop("inference") == engines.pop("worker-1") == engine.name()
    assert set(engines.values()) == {""}


def test_a_second_stack_of_the_folder_is_refused_and_told_of_the_first(running: Path) -> None:
    supervisor = lock.holder(running)

    with pytest.raises(AlreadyRunning, match=f"process {supervisor}"):
        up_detached(_options(running))
    with pytest.raises(AlreadyRunning, match=f"process {supervisor}"):
        up(_options(running))

    assert status(running).healthy


def test_a_killed_service_comes_back_and_its_restart_is_counted(running: Path) -> None:
    before = {service.name: service for service in status(running).services}["gateway"]
    assert before.pid is not None

    os.kill(before.pid, signal.SIGKILL)
    _wait_until(lambda: identity(before.pid or 0) is None)
    _wait_until(lambda: status(running).healthy)

    after = {service.name: service for service in status(running).services}["gateway"]
    assert (after.restarts, after.exit_status) == (before.restarts + 1, -signal.SIGKILL)
    assert any("gateway" in line and "starting it again" in line for line in tail_logs(running, "supervisor"))


def test_logs_are_found_by_the_name_of_the_service(running: Path) -> None:
    assert "".join(tail_logs(running, "nats")).count("Server is ready") >= 1

    with pytest.raises(UnknownService, match=r"no log of 'natz'.*nats"):
        tail_logs(running, "natz")
    with pytest.raises(UnknownService, match="no log of"):
        tail_logs(running, "../secrets/nats")


def test_no_service_sees_a_secret_in_its_environment_or_on_its_command_line(running: Path) -> None:
    secrets = {path.name: path.read_bytes().strip() for path in (running / "secrets").iterdir()}
    supervisor = lock.holder(running)
    assert supervisor is not None

    for pid in descendants(supervisor):
        proc = Path(f"/proc/{pid}")
        if identity(pid) is None or proc.joinpath("comm").read_text().strip() == "rclone":
            continue  # rclone has its key in its environment, for want of another way
        visible = proc.joinpath("environ").read_bytes() + proc.joinpath("cmdline").read_bytes()
        assert not [name for name, secret in secrets.items() if secret in visible]


@pytest.mark.slow
def test_down_leaves_nothing_and_the_next_start_keeps_the_ports(running: Path) -> None:
    before = status(running)
    pids = [service.pid for service in before.services if service.pid is not None]

    stopped = down(running)

    assert stopped
    assert not down(running)
    assert [pid for pid in pids if identity(pid) is not None] == []
    assert status(running).stage == "stopped"
    assert not (running / "endpoints.json").exists()
    up_detached(_options(running))
    assert status(running).endpoints == before.endpoints


@pytest.mark.slow
def test_nothing_outlives_a_killed_supervisor_and_the_next_start_succeeds(running: Path) -> None:
    supervisor = lock.holder(running)
    assert supervisor is not None
    pids = descendants(supervisor)

    os.kill(supervisor, signal.SIGKILL)
    _wait_until(lambda: [pid for pid in pids if identity(pid) is not None] == [], seconds=30.0)

    assert len(pids) >= len(_SERVICES)
    assert status(running).stage == "stopped"
    up_detached(_options(running))
    assert status(running).healthy


@pytest.mark.slow
def test_where_callers_must_be_known_the_start_says_how_to_be(folder: Path) -> None:
    down(folder)
    said: list[str] = []
    options = replace(_options(folder), auth_mode="proxy", workers=0)
    up_detached(options, said.append)
    gateway = status(folder).endpoints["gateway"]
    credentials = status(folder).endpoints["credentials"]
    secret = Path(credentials["proxy_secret_file"]).read_text()

    def who(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "guidehall.cli", "whoami", "--json"]
        environment = options.environment | {"GUIDEHALL_DATA": str(folder), **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    request = urllib.request.Request(
        f"{gateway}/api/v1/whoami", headers={"X-User-ID": "ada", "X-Guidehall-Proxy-Secret": secret}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        through_proxy = json.loads(answer.read())
    by_itself, with_token_file, with_a_guess = (
        who(),
        who(GUIDEHALL_TOKEN_FILE=credentials["token_file"]),
        who(GUIDEHALL_TOKEN="guess"),
    )
    down(folder)

    assert all(path in "\n".join(said) for path in credentials.values())
    assert secret not in "\n".join(said)
    assert through_proxy["subject"] == "ada"
    assert json.loads(by_itself.stdout) == json.loads(with_token_file.stdout)
    assert json.loads(by_itself.stdout)["roles"] == ["ADMIN"]
    assert with_a_guess.returncode == 5


@pytest.mark.slow
def test_ctrl_c_stops_everything_in_reverse(folder: Path) -> None:
    down(folder)
    command = [sys.executable, "-m", "guidehall.cli", "up", "--data", str(folder), "--json"]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert ready["stage"] == "ready"
    assert {part["name"] for part in ready["services"]} == set(_SERVICES)
    assert json.loads(told)["stage"] == "stopped"
    stopped = [
        line.split()[0] for line in tail_logs(folder, "supervisor", 100) if line.rstrip().endswith("stopped")
    ]
    order = stopped[-len(_SERVICES) :]
    assert set(order) == set(_SERVICES)
    assert order.index("gateway") < order.index("trainer") < order.index("postgres")
    assert order.index("worker-1") < order.index("storage") < order.index("s3")


@pytest.mark.slow
def test_an_interrupt_while_starting_leaves_nothing(folder: Path) -> None:
    down(folder)
    command = [sys.executable, "-m", "guidehall.local", "--data", str(folder), "--workers", "1"]
    with subprocess.Popen([*command, "--auth-mode", "single"], cwd=_ROOT) as process:
        _wait_until(lambda: any(service.pid for service in status(folder).services))
        pids = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)

    assert code == 130
    assert (status(folder).stage, status(folder).error) == ("stopped", "")
    assert [pid for pid in pids if identity(pid) is not None] == []
    assert lock.holder(folder) is None


@pytest.mark.slow
def test_a_service_that_cannot_start_is_told_with_its_log(folder: Path) -> None:
    down(folder)
    options = _options(folder)
    broken = Options(folder, environment=options.environment | {"GUIDEHALL_GATEWAY__HTTP__PROT": "8000"})

    said: list[str] = []

    with pytest.raises(StackError, match=r"gateway does not start(.|\n)*PROT"):
        up_detached(broken, said.append)

    assert "PROT" not in "\n".join(said)
    assert status(folder).stage == "failed"
    assert "gateway does not start" in status(folder).error
