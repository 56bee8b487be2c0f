"""RQ and Celery with a Redis of their own, as queues of no-op jobs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.jobs.queues import WORKERS, Queue
from benchmarks.jobs.started import started

_POLL_SECONDS = 0.002
_READY_SECONDS = 30.0
# Read by celery_app, which Celery's own workers import.
CELERY_URL = "GUIDEHALL_BENCH_CELERY_URL"


def missing() -> str:
    """What has to be installed before peers can be measured; empty for nothing."""
    wanted = [] if shutil.which("redis-server") else ["redis-server (apt-get install redis-server)"]
    wanted += [
        f"{name} (pip install --constraint constraints.txt '.[bench]')"
        for name in ("rq", "celery")
        if not _there(name)
    ]
    return ", ".join(wanted)


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


class Rq:
    """RQ. Its default worker forks for every job; `SimpleWorker` runs jobs in itself."""

    def __init__(self, url: str, redis_pid: int, worker_class: str, programs: ExitStack) -> None:
        import redis
        import rq

        self._queue = rq.Queue(worker_class, connection=redis.Redis.from_url(url))
        command = ("rq", "worker", "-q", "-u", url, "-w", f"rq.{worker_class}", worker_class)
        self.workers: Sequence[int] = [
            programs.enter_context(_program(*command, folder=Path.cwd())) for _ in range(WORKERS)
        ]
        self.processes: Mapping[str, int] = {"redis": redis_pid} | {
            f"worker-{number}": pid for number, pid in enumerate(self.workers, 1)
        }
        _until(lambda: len(rq.Worker.all(queue=self._queue)) == WORKERS)

    def submit(self, address: str) -> Any:
        """See `Queue`, like the following."""
        return self._queue.enqueue(started, address)

    def wait(self, job: Any) -> None:
        _until(lambda: job.get_status().value == "finished")

    def drained(self) -> None:
        queue = self._queue
        _until(lambda: not queue.count and not queue.started_job_registry.get_job_count(cleanup=False))


class Celery:
    """Celery with its default pool of forked processes, one for each of the others' workers."""

    def __init__(self, url: str, redis_pid: int, folder: Path, programs: ExitStack) -> None:
        os.environ[CELERY_URL] = url
        from benchmarks.jobs import celery_app

        self._task = celery_app.started
        self._app = celery_app.app
        self._submitted: list[Any] = []
        command = ("celery", "-A", "benchmarks.jobs.celery_app", "worker", "-c", str(WORKERS), "-l", "ERROR")
        pid = programs.enter_context(_program(*command, folder=Path.cwd(), log=folder / "celery.log"))
        self.workers: Sequence[int] = [pid]
        self.processes: Mapping[str, int] = {"redis": redis_pid, "worker": pid}
        _until(lambda: bool(self._app.control.ping(timeout=0.5)))

    def submit(self, address: str) -> Any:
        """See `Queue`, like the following."""
        self._submitted.append(self._task.delay(address))
        return self._submitted[-1]

    def wait(self, job: Any) -> None:
        job.get()

    def drained(self) -> None:
        for result in self._submitted:
            result.get()
        self._submitted.clear()


def running(
    folder: Path, rq_workers: Mapping[str, str], celery: str, programs: ExitStack
) -> dict[str, Queue]:
    """The peers by name, with a Redis; `rq_workers` names RQ's kinds of workers. All end with `programs`."""
    address, pid = programs.enter_context(redis_server(folder))
    queues: dict[str, Queue] = {
        name: Rq(f"unix://{address}", pid, kind, programs) for name, kind in rq_workers.items()
    }
    queues[celery] = Celery(address, pid, folder, programs)
    return queues


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, int]]:
    """A server that keeps everything in memory; its address, without a scheme, and its process id."""
    address = folder / "redis.sock"
    arguments = ("--port", "0", "--unixsocket", str(address), "--save", "", "--appendonly", "no")
    with _program("redis-server", *arguments, folder=folder, log=folder / "redis.log") as pid:
        _until(address.exists)
        yield str(address), pid


@contextmanager
def _program(name: str, *arguments: str, folder: Path, log: Path | None = None) -> Iterator[int]:
    """A program of this environment or of the system while the block runs; its process id."""
    ours = Path(sys.executable).with_name(name)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "GUIDEHALL_SCIENCE_MODULES": ""}
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        process = subprocess.Popen(
            [str(ours) if ours.exists() else name, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until(condition: Any) -> None:
    give_up = time.monotonic() + _READY_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("a peer does not become ready")
        time.sleep(_POLL_SECONDS)
