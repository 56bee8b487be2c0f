"""A pipeline in a real child process, without any service: what it says, how it ends, what it can reach."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from guidehall.science.pipeline import Desired
from services.trainer.worker.child_process import ChildOptions, ChildProcess
from services.trainer.worker.children import Children, SupplyOptions
from services.trainer.worker.messages import (
    ArtifactWritten,
    Broke,
    CheckpointSaved,
    End,
    FromChild,
    Left,
    Limits,
    Logged,
    ModelWritten,
    OutOfMemory,
    Previewed,
    Progressed,
    Refused,
    SelfTest,
    Start,
    Started,
    Succeeded,
)
from services.trainer.worker.workspace import Workspace

MODULES = "tests.toy_science,tests.odd_science"
PR_SET_CHILD_SUBREAPER = 36
# Longer than anything here takes, shorter than a pipeline that sleeps.
PATIENCE_SECONDS = 30.0


@pytest.fixture
async def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChildProcess]:
    monkeypatch.setenv("GUIDEHALL_SCIENCE_MODULES", MODULES)
    monkeypatch.setenv("GUIDEHALL_WORKER__NATS__PASSWORD", "k4b7")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k4b7")
    workspace = Workspace(tmp_path)
    process = ChildProcess.spawn(workspace, ChildOptions())
    try:
        yield process
    finally:
        await process.close()
        assert not process.folder.exists()
        workspace.close()


def start(child: ChildProcess, pipeline: str, **more: Any) -> Start:
    folder = child.folder.with_name(f"job-{uuid.uuid4().hex}")
    folder.mkdir(mode=0o700)
    fields: dict[str, Any] = {
        "job": "projects/default/jobs/7",
        "folder": str(folder),
        "pipeline": pipeline,
        "params": {},
        "seed": 5,
        "device": "cpu",
        "dataset_versions": {},
        "dataset_files": {},
        "progress_seconds": 0.05,
    }
    return Start(**fields | more)


class Told:
    """What a child said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.messages: list[FromChild] = []
        self.lines: list[str] = []
        self.status: int | None = None

    @property
    def end(self) -> FromChild | None:
        return self.messages[-1] if self.messages and isinstance(self.messages[-1], End) else None

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]


async def run(child: ChildProcess, what: Start) -> Told:
    told = Told(Path(what.folder))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await child.begin(what, told.lines.append)
        while (message := await child.receive()) is not None:
            told.messages.append(message)
            if isinstance(message, End):
                await child.rest()
                return told
        told.status = await child.exited()
    return told


async def test_a_run_is_told_from_start_to_result(child: ChildProcess) -> None:
    told = await run(child, start(child, "toy.line", params={"steps": 25, "model_name": "my-line"}))
    assert isinstance(told.messages[0], Started)
    assert told.of(Progressed)[-1].step == 25
    assert [message.step for message in told.of(CheckpointSaved)] == [10, 20]
    assert told.of(Logged)[-1].line.startswith("slope 2.0")
    (model,) = told.of(ModelWritten)
    assert model.name == "my-line"
    assert model.manifest["provenance"]["job"] == "projects/default/jobs/7"
    assert model.manifest["provenance"]["seed"] == 5
    assert (told.folder / model.file.name).stat().st_size == model.file.size_bytes
    (artifact,) = told.of(ArtifactWritten)
    assert (artifact.name, artifact.media_type) == ("points.npy", "application/x-npy")
    assert isinstance(told.end, Succeeded)
    assert told.end.document["steps"] == 25


async def test_a_second_attempt_goes_on_from_the_checkpoint_to_the_same_numbers(
    child: ChildProcess, tmp_path: Path
) -> None:
    params = {"steps": 25, "checkpoint_every": 20}
    first = await run(child, start(child, "toy.line", params=params))
    (saved,) = first.of(CheckpointSaved)
    assert isinstance(first.end, Succeeded)
    workspace = Workspace(tmp_path)
    second = ChildProcess.spawn(workspace, ChildOptions())
    state = str(first.folder / saved.file.name)
    resumed = await run(second, start(second, "toy.line", params=params, checkpoint_file=state))
    assert "goes on at step 20" in [message.line for message in resumed.of(Logged)]
    assert isinstance(resumed.end, Succeeded)
    assert resumed.end.document == first.end.document
    await second.close()
    workspace.close()


async def test_progress_at_every_step_is_coalesced(child: ChildProcess) -> None:
    params = {"steps": 5000, "checkpoint_every": 5000}
    told = await run(child, start(child, "toy.line", params=params, progress_seconds=0.5))
    steps = [message.step for message in told.of(Progressed)]
    assert steps[-1] == 5000
    assert len(steps) < 50


async def test_of_many_previews_the_first_and_the_newest_come(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.show_previews", params={"amount": 500}))
    shown = [json.loads(message.document) for message in told.of(Previewed)]
    assert shown[0] == {"number": 0, "share": None}
    assert {"number": 499, "share": None} in shown[-2:]
    assert {"numbers": [499]} in shown[-2:]
    assert len(shown) == 3


async def test_a_state_is_saved_in_the_rhythm_that_the_worker_sets(child: ChildProcess) -> None:
    params = {"steps": 100, "step_seconds": 0.01, "checkpoint_every": 100_000}
    told = await run(child, start(child, "toy.line", params=params, checkpoint_seconds=0.2))
    assert 2 <= len(told.of(CheckpointSaved)) < 50


async def test_a_device_that_calculates_passes_its_test_and_one_that_is_not_there_fails(
    child: ChildProcess,
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await child.begin(SelfTest(device="cpu"), [].append)
        assert isinstance(await child.receive(), Succeeded)
        await child.begin(SelfTest(device="cuda:99"), [].append)
        assert isinstance(await child.receive(), Broke)


async def test_an_error_of_the_device_is_told_from_one_of_the_program(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.break_the_device"))
    assert isinstance(told.end, Broke)
    assert told.end.device_fault == "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(("wanted", "because"), [(Desired.CANCEL, "cancelled"), (Desired.PAUSE, "paused")])
async def test_what_is_wanted_reaches_a_running_step(
    child: ChildProcess, wanted: Desired, because: str
) -> None:
    params = {"steps": 100_000, "step_seconds": 0.001}
    async with asyncio.timeout(PATIENCE_SECONDS):
        await child.begin(start(child, "toy.line", params=params), [].append)
        while not isinstance(message := await child.receive(), End):
            if isinstance(message, Progressed):
                await child.want(wanted)
        assert message == Left(because=because)  # type: ignore[arg-type]


async def test_stop_ends_early_with_a_result(child: ChildProcess) -> None:
    params = {"steps": 100_000, "step_seconds": 0.001}
    told = await run(child, start(child, "toy.line", params=params, desired=Desired.STOP))
    assert isinstance(told.end, Succeeded)
    assert told.end.document["steps"] == 0


async def test_wrong_parameters_are_refused_with_their_path(child: ChildProcess) -> None:
    told = await run(child, start(child, "toy.line", params={"steps": -1}))
    assert isinstance(told.end, Refused)
    assert told.end.field == "steps"


async def test_a_user_error_names_field_value_and_what_is_allowed(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.refuse", params={"amount": 3}))
    assert told.end == Refused(field="amount", description="got 3; must be something else")


async def test_a_missing_dataset_is_the_users_error(child: ChildProcess) -> None:
    told = await run(child, start(child, "toy.line", params={"from_dataset": True}))
    assert isinstance(told.end, Refused)
    assert told.end.field == "inputs.points"


async def test_another_exception_keeps_its_traceback_out_of_the_log(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.break_down"))
    assert isinstance(told.end, Broke)
    assert "RuntimeError: a secret inside" in told.end.traceback
    assert told.lines == []
    assert [message.line for message in told.of(Logged)] == ["about to break"]


async def test_a_crash_ends_the_messages_and_leaves_its_status(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.exit_at_once", params={"amount": 7}))
    assert told.end is None
    assert told.status == 7
    assert isinstance(told.messages[-1], Started | Progressed)


async def test_everything_printed_is_captured(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.print_much", params={"amount": 2000}))
    assert isinstance(told.end, Succeeded)
    # The program and the logging write unbuffered, so their place among the rest may differ.
    assert {"from print", "100 %", "ångström σ", "from logging", "from a program", "no line end"} <= set(
        told.lines
    )
    assert "50 %" not in "".join(told.lines)
    assert [line for line in told.lines if line.startswith("line ")] == [f"line {n}" for n in range(2000)]


async def test_a_child_holds_no_secret_and_no_connection(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.show_environment"))
    assert isinstance(told.end, Succeeded)
    seen: Any = told.end.document["told"]
    assert "k4b7" not in str(seen["environment"])
    assert [name for name in seen["environment"] if name.startswith("GUIDEHALL_")] == [
        "GUIDEHALL_SCIENCE_MODULES"
    ]
    assert seen["folder"] == str(told.folder)
    assert seen["temporary"].startswith(str(child.folder))
    assert seen["folder_mode"] == 0o700
    sockets = [target for target in seen["descriptors"] if target.startswith("socket:")]
    assert len(sockets) == 1
    # Nothing that could reach a service, and nothing slow, is imported.
    assert seen["modules"] == []


async def test_too_little_memory_is_told_as_such(child: ChildProcess) -> None:
    told = await run(
        child, start(child, "odd.use_memory", params={"amount": 8 << 30}, limits=Limits(memory_bytes=1 << 30))
    )
    assert isinstance(told.end, OutOfMemory)


async def test_the_processor_limit_ends_a_child_by_its_own_signal(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.use_processor", limits=Limits(cpu_seconds=1)))
    assert told.end is None
    assert told.status == -signal.SIGXCPU


async def test_an_output_beyond_the_limit_is_refused(child: ChildProcess) -> None:
    told = await run(
        child, start(child, "odd.fill_a_file", params={"amount": 2 << 20}, limits=Limits(file_bytes=1 << 20))
    )
    assert told.end == Refused(
        field="artifacts.large.bin", description="got 2097152 bytes; at most 1048576 bytes are allowed"
    )


async def test_a_result_beyond_the_limit_is_refused(child: ChildProcess) -> None:
    told = await run(child, start(child, "odd.return_too_much", params={"amount": 20 << 20}))
    assert isinstance(told.end, Refused)
    assert told.end.field == "result"


async def test_a_fatal_signal_leaves_a_report_for_the_log_alone(child: ChildProcess) -> None:
    lines: list[str] = []
    await child.begin(start(child, "odd.sleep_on"), lines.append)
    while not isinstance(await child.receive(), Logged):
        pass
    os.kill(child.pid, signal.SIGSEGV)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await child.exited() == -signal.SIGSEGV
    assert "sleep_on" in child.crash_report()
    assert lines == []


async def test_killing_a_child_ends_what_it_started(child: ChildProcess) -> None:
    await child.begin(start(child, "odd.spawn_and_sleep"), [].append)
    async with asyncio.timeout(PATIENCE_SECONDS):
        program = await started_program(child)
        child.kill()
        assert await child.exited() == -signal.SIGKILL
        await gone(program)


async def test_a_killed_child_is_not_listened_to_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDEHALL_SCIENCE_MODULES", MODULES)
    workspace = Workspace(tmp_path)
    child = ChildProcess.spawn(workspace, ChildOptions(reap_seconds=0.2))
    await child.begin(start(child, "odd.lend_the_link"), [].append)
    async with asyncio.timeout(PATIENCE_SECONDS):
        program = await started_program(child)
        try:
            child.kill()
            assert await child.receive() is None
            assert await child.exited() == -signal.SIGKILL
        finally:
            os.kill(program, signal.SIGKILL)
    await child.close()
    workspace.close()


# It is given up while it still runs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_test_of_a_device_that_cannot_even_be_killed_blames_the_device(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    # No process ends as soon as that.
    children = Children(workspace, ChildOptions(reap_seconds=1e-9), SupplyOptions(False, 1, 1.0))
    assert "did not end" in await children.fault_of("cuda:0", 0.01)
    workspace.close()


async def test_a_worker_that_inherits_orphans_waits_for_them(child: ChildProcess) -> None:
    # As the first process of a container does.
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        await child.begin(start(child, "odd.spawn_and_sleep"), [].append)
        async with asyncio.timeout(PATIENCE_SECONDS):
            program = await started_program(child)
            await child.reap()
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not Path(f"/proc/{program}").exists()


async def test_what_a_dead_child_started_ends_too(child: ChildProcess) -> None:
    await child.begin(start(child, "odd.spawn_and_sleep"), [].append)
    async with asyncio.timeout(PATIENCE_SECONDS):
        program = await started_program(child)
        os.kill(child.pid, signal.SIGKILL)
        await gone(program)


async def test_a_spare_child_ends_when_it_is_not_needed(child: ChildProcess) -> None:
    assert child.alive


async def test_a_second_job_in_the_same_process_finds_nothing_of_the_first(child: ChildProcess) -> None:
    first = await run(child, start(child, "odd.litter"))
    second = await run(child, start(child, "odd.litter"))
    assert isinstance(first.end, Succeeded)
    assert isinstance(second.end, Succeeded)
    assert first.end.fit_for_another
    assert second.end.document["told"]["process"] == first.end.document["told"]["process"]
    assert second.end.document["told"]["found"] == []
    assert first.lines == second.lines == ["without an end"]


async def test_two_jobs_in_one_process_give_the_numbers_of_two_processes(child: ChildProcess) -> None:
    params = {"steps": 12}
    await run(child, start(child, "toy.line", params=params, seed=6))
    again = await run(child, start(child, "toy.line", params=params))
    assert isinstance(again.end, Succeeded)
    assert again.end.document["slope"] == pytest.approx(2.0, abs=0.2)
    alone = await run_alone(child, "toy.line", params)
    assert alone.end == again.end


async def run_alone(other: ChildProcess, pipeline: str, params: dict[str, Any]) -> Told:
    workspace = Workspace(other.folder.parent.parent)
    child = ChildProcess.spawn(workspace, ChildOptions())
    try:
        return await run(child, start(child, pipeline, params=params))
    finally:
        await child.close()
        workspace.close()


async def test_the_processor_limit_is_of_one_job(child: ChildProcess) -> None:
    for _ in range(3):
        told = await run(
            child, start(child, "odd.burn", params={"amount": 500}, limits=Limits(cpu_seconds=1))
        )
        assert isinstance(told.end, Succeeded)


@pytest.mark.parametrize("pipeline", ["odd.leave_a_program", "odd.leave_a_thread"])
async def test_a_process_that_is_not_alone_any_more_takes_no_other_job(
    child: ChildProcess, pipeline: str
) -> None:
    told = await run(child, start(child, pipeline))
    assert isinstance(told.end, Succeeded)
    assert not told.end.fit_for_another


async def started_program(child: ChildProcess) -> int:
    while (message := await child.receive()) is not None:
        if isinstance(message, Logged) and message.line.startswith("program "):
            return int(message.line.removeprefix("program "))
    raise AssertionError("it started none")


async def gone(pid: int) -> None:
    """Waits for the end of a process that is nobody's child here."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


WORKER = """
import asyncio, sys
from pathlib import Path
from services.trainer.worker.child_process import ChildOptions, ChildProcess
from services.trainer.worker.messages import Logged, Start
from services.trainer.worker.workspace import Workspace

async def main():
    child = ChildProcess.spawn(Workspace(Path(sys.argv[1])), ChildOptions())
    await child.begin(Start.model_validate_json(sys.argv[2]), [].append)
    while (message := await child.receive()) is not None:
        if isinstance(message, Logged):
            print(child.pid, message.line.removeprefix("program "), flush=True)

asyncio.run(main())
"""


async def test_child_and_grandchild_die_with_their_worker(tmp_path: Path) -> None:
    what = Start(
        job="projects/default/jobs/7",
        folder=str(tmp_path),
        pipeline="odd.spawn_and_sleep",
        params={},
        seed=5,
        device="cpu",
        dataset_versions={},
        dataset_files={},
        progress_seconds=0.1,
    ).model_dump_json()
    environment = os.environ | {"GUIDEHALL_SCIENCE_MODULES": MODULES, "PYTHONPATH": str(Path.cwd())}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(tmp_path), what, env=environment, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert worker.stdout is not None
        child, program = map(int, (await worker.stdout.readline()).split())
        worker.kill()
        await worker.wait()
        await gone(child)
        await gone(program)


async def test_nonsense_from_the_worker_ends_a_child(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.trainer.worker.child",
            str(theirs.fileno()),
            str(os.getpid()),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ours.sendall(b"\xff\xff\xff\xff")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.wait() != 0
