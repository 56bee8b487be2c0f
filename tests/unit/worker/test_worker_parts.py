from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from guidehall.core.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from guidehall.science.pipeline import Desired
from services.trainer.worker.child_process import ChildOptions, environment
from services.trainer.worker.machine import find_machine, gpu_tier, gpus_in, reflectometry_engine
from services.trainer.worker.main import tell_engine
from services.trainer.worker.messages import Progressed
from services.trainer.worker.retry import Pauses, calling, passes, until_answered
from services.trainer.worker.step_times import StepTimes
from services.trainer.worker.trainer_client import may_pass
from services.trainer.worker.wishes import Interrupted, Wishes
from services.trainer.worker.workspace import Workspace


def test_the_time_of_a_step_is_the_mean_between_two_reports_of_a_phase() -> None:
    def told(name: str) -> float:
        labels = {"pipeline": "toy.timed"}
        return REGISTRY.get_sample_value(f"guidehall_worker_step_seconds_{name}", labels) or 0.0

    times = StepTimes("toy.timed")
    for phase, step, now in (("train", 1, 10.0), ("train", 5, 12.0), ("train", 5, 13.0), ("test", 9, 20.0)):
        times.stepped(Progressed(phase=phase, step=step, total=9, metrics={}), now)
    assert (told("count"), told("sum")) == (1, 0.5)


def test_a_child_sees_what_is_on_the_list_and_nothing_else(tmp_path: Path) -> None:
    inherited = {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "1",
        "GUIDEHALL_SCIENCE_MODULES": "tests.toy_science",
        "GUIDEHALL_WORKER__CREDENTIAL_FILE": "/secret",
        "GUIDEHALL_STORAGE__S3__SECRET_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HTTPS_PROXY": "http://user:secret@proxy",
        "OMP_NUM_THREADS": "7",
        "PYTHONPATH": "/further",
        "HOME": "/home/me",
    }
    seen = environment(inherited, tmp_path, tmp_path / "cache", ChildOptions(threads=2))
    assert "secret" not in str(seen)
    assert seen["PATH"] == "/bin"
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert seen["GUIDEHALL_SCIENCE_MODULES"] == "tests.toy_science"
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "2"
    assert seen["HOME"] == seen["TMPDIR"] == str(tmp_path)
    assert seen["PYTHONPATH"].endswith(":/further")
    more = environment(inherited, tmp_path, tmp_path, ChildOptions(pass_environment=("HTTPS_PROXY",)))
    assert more["HTTPS_PROXY"] == inherited["HTTPS_PROXY"]
    assert more["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in more


def test_gpus_are_read_from_the_driver() -> None:
    assert gpus_in("NVIDIA H200, 143771\nTesla T4, 15360\n\n[N/A]\n") == [
        ("NVIDIA H200", 143771 << 20),
        ("Tesla T4", 15360 << 20),
    ]
    tiers = {"NVIDIA H200 NVL": "H200", "Tesla T4": "T4", "NVIDIA A100-SXM4-80GB": "A100", "Odd": "gpu"}
    assert {name: gpu_tier(name) for name in tiers} == tiers


async def test_a_machine_is_described_without_a_gpu() -> None:
    machine = await find_machine("cpu")
    assert (machine.device, machine.device_class) == ("cpu", "cpu")
    assert machine.cpu_cores >= 1
    assert machine.memory_bytes > 1 << 20


async def test_the_engine_of_a_machine_is_the_one_that_the_science_uses() -> None:
    from guidehall.science.reflectometry import engine

    machine = await find_machine("cpu")
    assert machine.software["reflectometry_engine"] == engine.name()


def test_a_worker_without_the_compiled_engine_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tell_engine(reflectometry_engine())
    said = len(caplog.messages)
    monkeypatch.setattr("services.trainer.worker.machine._COMPILED_ENGINE", tmp_path / "engine.so")
    tell_engine(reflectometry_engine())
    assert len(caplog.messages) == said + 1
    assert "torch calculates" in caplog.messages[-1]


async def test_calls_are_repeated_while_failures_pass() -> None:
    failures = iter([Unavailable("away"), DeadlineExceeded("slow"), None])

    async def call() -> str:
        failure = next(failures)
        if failure is not None:
            raise failure
        return "answer"

    assert await until_answered(call, Pauses(0.001, 0.002), "calling") == "answer"

    async def wrong() -> None:
        raise InvalidArgument("no")

    with pytest.raises(InvalidArgument):
        await until_answered(wrong, Pauses(0.001, 0.002), "calling")


async def test_a_full_limit_is_tried_again_only_if_it_says_when() -> None:
    assert not passes(ResourceExhausted("full for good"))
    assert passes(ResourceExhausted("busy", retry_after_seconds=0.01))
    assert may_pass(Aborted("changing hands"))
    assert not may_pass(Aborted("another attempt holds it", reason="STALE_EPOCH"))
    assert not may_pass(NotFound("gone"))
    assert may_pass(Unauthenticated("expired"))


async def test_a_call_without_an_answer_ends() -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        async with calling(0.01):
            await asyncio.Event().wait()


def test_pauses_grow_to_a_bound() -> None:
    pauses = list(itertools.islice(Pauses(0.1, 1.0), 20))
    assert all(0.05 <= pause <= 1.0 for pause in pauses)
    assert pauses[0] <= 0.1
    assert min(pauses[4:]) >= 0.5


async def test_wishes_interrupt_what_is_not_wanted_any_more() -> None:
    wishes = Wishes(Desired.RUN)

    async def answer() -> int:
        return 3

    assert await wishes.unless(lambda: wishes.cancelled, answer()) == 3
    stopped = asyncio.Event()

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    waiting = asyncio.ensure_future(wishes.unless(lambda: wishes.cancelled, for_ever()))
    await asyncio.sleep(0)
    wishes.want(Desired.STOP)
    wishes.drain()
    await asyncio.sleep(0)
    assert not waiting.done()
    wishes.want(Desired.CANCEL)
    with pytest.raises(Interrupted):
        await waiting
    assert stopped.is_set()


def test_a_cancel_is_for_good_and_a_drain_asks_for_a_checkpoint() -> None:
    wishes = Wishes(Desired.RUN)
    wishes.drain()
    assert wishes.of_child is Desired.PAUSE
    wishes.want(Desired.STOP)
    assert wishes.of_child is Desired.STOP
    wishes.want(Desired.CANCEL)
    wishes.want(Desired.RUN)
    assert wishes.of_child is Desired.CANCEL


def test_a_pause_is_remembered_when_it_is_taken_back() -> None:
    wishes = Wishes(Desired.RUN)
    assert not wishes.was_to_pause
    wishes.want(Desired.PAUSE)
    wishes.want(Desired.RUN)
    assert wishes.was_to_pause
    assert Wishes(Desired.PAUSE).was_to_pause


def test_workers_that_start_at_once_sweep_nothing_of_each_other(tmp_path: Path) -> None:
    def make(_: int) -> bool:
        workspace = Workspace(tmp_path)
        whole = workspace.cache.exists()
        workspace.close()
        return whole

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(make, range(400)))


def test_folders_of_dead_workers_are_swept_and_those_of_others_kept(tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib; from services.trainer.worker.workspace import Workspace;"
        "w = Workspace(pathlib.Path(sys.argv[1])); w.new_folder();"
        "print(w.folder, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        foreign = tmp_path / "guidehall-worker-foreign"
        foreign.mkdir()
        mine = Workspace(tmp_path)
        assert theirs.exists()
        assert mine.new_folder().stat().st_mode & 0o777 == 0o700
        other.send_signal(signal.SIGKILL)
    mine.close()
    assert not mine.folder.exists()
    Workspace(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["guidehall-worker-foreign"]
