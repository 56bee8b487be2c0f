"""`guidehall worker`: workers of this machine at a trainer that runs elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from guidehall.cli._app import run
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import InvalidArgument, PermissionDenied
from guidehall.local.workers import Options, Workers
from tests.fixtures.trainer import Cast, TrainerSite

QUICK = {"GUIDEHALL_WORKER__CHILD__SPARE": "false", "GUIDEHALL_SCIENCE_MODULES": "tests.toy_science"}


def options(site: TrainerSite, pool: str, token: str, **more: object) -> Options:
    # Nobody listens where storage should be: these workers have no job.
    endpoints = {"trainer": site.target, "storage": "127.0.0.1:1"}
    given = {"count": 2, "endpoints": endpoints, "token": token, "environment": {**os.environ, **QUICK}}
    return Options(pool, **(given | more))


@pytest.mark.slow
async def test_workers_come_with_a_credential_that_ends_with_them(trainer: TrainerSite) -> None:
    cast = Cast(trainer)
    operator = cast.owner("olga", Role.OPERATOR).pools
    command = [
        *(
            sys.executable,
            "-m",
            "guidehall.cli",
            "--endpoints",
            f"trainer={trainer.target},storage=127.0.0.1:1",
        ),
        *("worker", "--pool", cast.pool, "--count", "2", "--json"),
    ]
    environ = os.environ | QUICK | {"GUIDEHALL_TOKEN": trainer.token("olga", Role.OPERATOR)}
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=PIPE, stderr=PIPE)
    try:
        request = workers_pb2.ListWorkersRequest(pool=cast.pool)
        async with asyncio.timeout(60):
            while len((await operator.ListWorkers(request, timeout=10)).workers) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert process.returncode == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"stage": stage, "pool": cast.pool, "count": 2} for stage in ("ready", "stopped")
    ]
    stopped = {tuple(line.split()[:2]) for line in err.decode().splitlines()[-2:]}
    assert stopped == {("worker-1", "stopped"), ("worker-2", "stopped")}
    listing = workers_pb2.ListWorkerCredentialsRequest(parent=f"pools/{cast.pool}")
    (credential,) = (await operator.ListWorkerCredentials(listing, timeout=10)).credentials
    assert credential.HasField("revoke_time")
    assert credential.note.startswith("guidehall worker on ")
    await cast.close()


async def test_who_may_not_make_a_credential_starts_no_worker(trainer: TrainerSite, tmp_path: Path) -> None:
    workers = Workers(options(trainer, "cpu", trainer.token("sam")))
    with pytest.raises(PermissionDenied):
        workers.start()
    missing = options(trainer, "cpu", "", credential_file=tmp_path / "none")
    with pytest.raises(InvalidArgument, match="credential_file"):
        Workers(missing).start()


@pytest.mark.parametrize(
    ("wrong", "field"), [({"pool": "No Pool"}, "pool"), ({"pool": "a", "count": 0}, "count")]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        Options(**wrong)  # type: ignore[arg-type]
    assert refusal.value.violations[0].field == field


def test_the_command_line_refuses_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--endpoints", "trainer=127.0.0.1:1,storage=127.0.0.1:1", "worker", "--pool", "No Pool"]) != 0
    assert "pool: got 'No Pool'" in capsys.readouterr().err
    assert run(["worker", "--count", "0"]) == 2
