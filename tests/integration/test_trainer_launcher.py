"""Launchers: workers are started once when a pool has work and none, and whoever fails is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import Role
from services.trainer.launcher import Launches
from services.trainer.settings import TrainerSettings
from services.trainer.workers import Workers
from tests.fixtures.trainer import Cast, TrainerSite


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when the condition holds."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 (another process tells)
            await asyncio.sleep(0.1)


def script(path: Path, *lines: str) -> list[str]:
    """A command that runs a few lines of Python."""
    path.write_text("import os, pathlib, sys\n" + "\n".join(lines) + "\n")
    return [sys.executable, str(path)]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def launcher_of(cast: Cast, *roles: Role) -> workers_pb2.Launcher:
    request = workers_pb2.GetPoolRequest(name=f"pools/{cast.pool}")
    return (await cast.owner("ada", *roles).pools.GetPool(request, timeout=10)).launcher


@pytest.mark.slow
async def test_two_replicas_start_one_worker_which_comes_to_work(
    own_trainer: Callable[..., TrainerSite], tmp_path: Path
) -> None:
    port, marks = free_port(), tmp_path / "launched"
    command = script(
        tmp_path / "launch.py",
        f"open({str(marks)!r}, 'a').write(f'{{os.getpid()}}\\n')",
        "assert os.environ['GUIDEHALL_DEVICE_CLASS'] == 'T4'",
        # What the trainer knows is not for those that it starts.
        "assert not [name for name in os.environ if name.startswith('GUIDEHALL_TRAINER__')]",
        "os.execv(sys.executable, [sys.executable, '-m', 'services.trainer', 'worker'])",
    )
    pools = {"t4": {"launcher": {"kind": "command", "command": command, "timeout_seconds": 4}}}
    site = own_trainer(POOLS=json.dumps(pools), GRPC__PORT=port)
    site.environ |= {
        "GUIDEHALL_WORKER__CREDENTIAL_FILE": str(tmp_path / "credential"),
        "GUIDEHALL_WORKER__TRAINER__TARGET": f"127.0.0.1:{port}",
        "GUIDEHALL_WORKER__STORAGE__TARGET": "127.0.0.1:1",
        "GUIDEHALL_WORKER__CHILD__SPARE": "false",
        "GUIDEHALL_WORKER__TEMP_DIR": str(tmp_path),
    }
    site.start()
    site.start(GRPC__PORT=0)
    cast = Cast(site)
    cast.pool = "t4"
    (tmp_path / "credential").write_text(await cast.credential())
    before = await launcher_of(cast)
    assert (before.kind, before.target) == ("command", Path(sys.executable).name)
    assert before.waiting_for == "no job waits"
    await cast.owner().submit()
    try:

        async def works() -> bool:
            name = workers_pb2.GetPoolRequest(name="pools/t4")
            return bool((await cast.owner().pools.GetPool(name, timeout=10)).live_workers)

        await until(works)
        told = await launcher_of(cast)
        assert told.HasField("last_launch_time")
        assert told.last_error == ""
        assert len(marks.read_text().splitlines()) == 1
    finally:
        for pid in marks.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        await cast.close()


async def test_a_launch_that_fails_is_told_and_tried_again_later(
    own_trainer: Callable[..., TrainerSite], tmp_path: Path
) -> None:
    marks, fixed = tmp_path / "launched", tmp_path / "fixed"
    command = script(
        tmp_path / "launch.py",
        f"open({str(marks)!r}, 'a').write('x\\n')",
        f"sys.exit(0 if pathlib.Path({str(fixed)!r}).exists() else 3)",
    )
    launcher = {"kind": "command", "command": command, "retry_seconds": 0.5, "start_seconds": 600}
    site = own_trainer(POOLS=json.dumps({"gpu": {"launcher": launcher}}))
    site.start()
    cast = Cast(site)
    cast.pool = "gpu"
    await cast.owner().submit()

    async def failed() -> bool:
        return "ended with status 3" in (await launcher_of(cast, Role.OPERATOR)).last_error

    async def launched() -> bool:
        return (await launcher_of(cast)).last_error == ""

    await until(failed)
    assert (await launcher_of(cast)).last_error == "it failed; operators see why"
    fixed.touch()
    await until(launched)
    assert len(marks.read_text().splitlines()) >= 2
    assert (await launcher_of(cast)).waiting_for == "a launch is under way"
    await cast.close()


# Over HTTP ----------------------------------------------------------------------------------------------


class Answers(ThreadingHTTPServer):
    """Remembers what it was asked, and answers as the test wants."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, str, Any]] = []
        self.active: list[Any] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(content) if content else None
        self.server.asked.append((self.command, self.path, self.headers["Authorization"], body))
        answer = json.dumps({"items": self.server.active} if self.command == "GET" else body).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _answer  # noqa: N815 (the base class calls them so)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def answers() -> Iterator[Answers]:
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def launch(site: TrainerSite, pool: str, launcher: dict[str, Any]) -> str:
    """Launches now, whatever was before; why it failed."""
    pools = json.dumps({pool: {"device_class": "H200", "launcher": launcher}})
    settings = TrainerSettings.load(site.environ | {"GUIDEHALL_TRAINER__POOLS": pools})
    await site.fetch("UPDATE trainer.launches SET locked_until = NULL WHERE pool = $1", pool)
    async with site.connect() as database:
        launches = Launches(database, Workers(database, settings.lease), settings)
        assert await launches.launch(pool)
        # Nobody else does so meanwhile.
        assert not await launches.launch(pool)
        return (await launches.of_pools([pool]))[pool].error


async def test_a_webhook_is_asked_with_its_secret(
    trainer: TrainerSite, answers: Answers, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    hook = {"kind": "webhook", "url": f"{answers.url}/spawn?site=a", "secret_file": str(secret)}
    assert await launch(trainer, "hooked", hook) == ""
    body = {"pool": "hooked", "device_class": "H200"}
    assert answers.asked == [("POST", "/spawn?site=a", "Bearer s3cret", body)]
    # The secret is not carried on to where an answer points.
    for status in (302, 503):
        answers.status = status
        assert await launch(trainer, "hooked", hook) == f"127.0.0.1 answered POST with {status}"
    assert {path for _, path, _, _ in answers.asked} == {"/spawn?site=a"}
    hook["url"] = "http://127.0.0.1:1/"
    assert "refused" in (await launch(trainer, "hooked", hook)).lower()


async def test_kubernetes_gets_one_job_at_a_time(
    trainer: TrainerSite, answers: Answers, tmp_path: Path
) -> None:
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("account-token")
    (account / "namespace").write_text("lab")
    template = tmp_path / "job.yaml"
    template.write_text(
        """
        apiVersion: batch/v1
        kind: Job
        spec: {template: {spec: {restartPolicy: Never, containers: [{name: worker, image: guidehall}]}}}
        """
    )
    launcher = {
        "kind": "kubernetes",
        "url": answers.url,
        "template_file": str(template),
        "account_dir": str(account),
    }
    assert await launch(trainer, "h200", launcher) == ""
    (look, make) = answers.asked
    jobs_path = "/apis/batch/v1/namespaces/lab/jobs"
    assert look == (
        "GET",
        f"{jobs_path}?labelSelector=guidehall.dev%2Fpool%3Dh200",
        "Bearer account-token",
        None,
    )
    assert make[:3] == ("POST", jobs_path, "Bearer account-token")
    assert make[3]["metadata"]["generateName"] == "guidehall-worker-h200-"
    container = make[3]["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "GUIDEHALL_WORKER__POOL", "value": "h200"} in container["env"]

    # Its pod may wait for a node: another job would only wait beside it.
    answers.active = [{"status": {"active": 1}}]
    assert await launch(trainer, "h200", launcher) == ""
    assert [method for method, *_ in answers.asked] == ["GET", "POST", "GET"]
    template.write_text("kind: Pod")
    assert await launch(trainer, "h200", launcher) == "template_file: its kind must be Job"
    (account / "token").unlink()
    assert "No such file" in await launch(trainer, "h200", launcher)
