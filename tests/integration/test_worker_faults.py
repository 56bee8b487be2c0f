"""What real workers need goes away while they work: servers, streams, room on the disk, the network."""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nats
import pytest
from google.protobuf import json_format

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.local.backing import BackingServers
from tests.fixtures.trainer import Cast, Owner
from tests.fixtures.worker import Sites, WorkerMaker, running_workers
from tests.missing import missing

pytestmark = pytest.mark.slow

_CLONE_NEWNET = 0x40000000
LINE = {"steps": 60, "step_seconds": 0.05, "checkpoint_every": 10}


@pytest.fixture
async def owner(sites: Sites) -> AsyncIterator[Owner]:
    """Somebody with a pool of his own, without workers at first."""
    cast = Cast(sites.trainer)
    yield cast.owner()
    await cast.close()


@pytest.fixture
def workers(sites: Sites, owner: Owner, make_workers: Callable[..., WorkerMaker]) -> WorkerMaker:
    """Makes workers for the owner's pool."""
    return make_workers(sites.trainer, owner.pool, sites.storage.target)


async def until(owner: Owner, name: str, kind: str) -> None:
    """Returns when the job has had an event of a kind."""
    call = owner.watch(name)
    async for event in call:
        if event.WhichOneof("payload") == kind:
            call.cancel()
            return
    raise AssertionError(f"it ended before it had a {kind}")


async def ended(owner: Owner, name: str) -> jobs_pb2.Job:
    """The job, once it has ended and its result, if any, can be read; watched again when a stream breaks."""
    async with asyncio.timeout(90):
        while True:
            try:
                async for _ in owner.watch(name):
                    pass
                return await owner.get(name)
            except Exception:
                await asyncio.sleep(0.2)


async def told_by(sites: Sites, job: jobs_pb2.Job) -> dict[str, Any]:
    """The document of the job's result."""
    async with sites.storage.user("ada") as stubs:
        result = await stubs.results.GetResult(results_pb2.GetResultRequest(name=job.result), timeout=10)
    return json_format.MessageToDict(result.document)


@pytest.mark.parametrize("part", ["postgres", "nats", "s3"])
async def test_a_server_that_dies_while_a_job_runs_costs_it_nothing(
    sites: Sites,
    owner: Owner,
    workers: WorkerMaker,
    backing: BackingServers,
    part: Literal["postgres", "nats", "s3"],
) -> None:
    worker = workers(CALLS__LONGEST_RETRY_SECONDS=0.5)
    alone = await owner.submit(params=LINE | {"step_seconds": 0.0}, seed=7)
    reference = await told_by(sites, await ended(owner, alone.name))
    job = await owner.submit(params=LINE, seed=7)
    await until(owner, job.name, "checkpoint")
    backing.kill(part)
    await asyncio.sleep(1.0)
    backing.restart(part)
    job = await ended(owner, job.name)
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert await told_by(sites, job) == reference
    assert worker.stop() == 0
    await sites.storage.without_leaks()


async def test_a_worker_hears_of_work_after_the_streams_were_wiped(
    sites: Sites, owner: Owner, workers: WorkerMaker, backing: BackingServers
) -> None:
    worker = workers(
        NATS__URL=backing.nats.url, NATS__USER="worker", NATS__PASSWORD=backing.nats.password("worker")
    )
    worker.wait_for("registered")
    first = await owner.submit(params={"steps": 5})
    assert (await ended(owner, first.name)).state == jobs_pb2.JOB_STATE_SUCCEEDED
    admin = await nats.connect(
        backing.nats.url, user=backing.nats.user, password=backing.nats.password(backing.nats.user)
    )
    streams = admin.jetstream()
    for stream in await streams.streams_info():
        await streams.delete_stream(stream.config.name)
    for _ in range(2):
        job = await owner.submit(params={"steps": 5})
        assert (await ended(owner, job.name)).state == jobs_pb2.JOB_STATE_SUCCEEDED
    # The first of what is told makes them again.
    async with asyncio.timeout(30):
        while not await streams.streams_info():  # noqa: ASYNC110 (the broker's, which wakes nobody)
            await asyncio.sleep(0.1)
    await admin.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"may not mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_fails_what_needs_more_and_nothing_else(
    sites: Sites, owner: Owner, tmp_path: Path, small_disk: Path
) -> None:
    with running_workers(sites.trainer, owner.pool, tmp_path, sites.storage.target) as workers:
        worker = workers(TEMP_DIR=small_disk, LOG__FORMAT="json")
        large = await owner.submit(pipeline="odd.fill_a_file", params={"amount": 8 << 20}, max_attempts=1)
        failed = await ended(owner, large.name)
        assert (failed.state, failed.error.reason) == (jobs_pb2.JOB_STATE_FAILED, "TRANSIENT_ERROR")
        assert "No space left" in worker.wait_for(failed.error.error_id) + "".join(worker.log)
        # A log that does not fit costs the log alone.
        talking = await owner.submit(pipeline="odd.print_much", params={"amount": 300_000}, max_attempts=1)
        assert (await ended(owner, talking.name)).state == jobs_pb2.JOB_STATE_SUCCEEDED
        worker.wait_for("the log of a job cannot be written")
        small = await owner.submit(params={"steps": 5})
        assert (await ended(owner, small.name)).state == jobs_pb2.JOB_STATE_SUCCEEDED
        assert worker.stop() == 0
        assert list(small_disk.iterdir()) == []


@dataclass(frozen=True)
class Island:
    """A network of its own, in which nothing can be reached but what the test opens."""

    name: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Starts a command in it."""
        return "ip", "netns", "exec", self.name

    def listen(self, port: int) -> socket.socket:
        """A socket that listens at this port of its loopback, for use out here."""

        def inside() -> socket.socket:
            # Of this thread alone; a socket stays in the network in which it was made.
            with Path(f"/run/netns/{self.name}").open() as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            return socket.create_server(("127.0.0.1", port))

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside).result()

    def reaches(self, port: int) -> bool:
        """Whether a program in it can connect to this port."""
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        done = subprocess.run([*self.prefix, sys.executable, "-c", code], capture_output=True, check=False)
        return done.returncode == 0


@pytest.fixture
def island() -> Iterator[Island]:
    """An island; skips where none may be made."""
    name = f"guidehall-{uuid.uuid4().hex[:8]}"
    if shutil.which("ip") is None:
        missing("there is no program ip, which makes networks")
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"may not make a network: {done.stderr.strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield Island(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@asynccontextmanager
async def bridge(island: Island, target: str) -> AsyncIterator[None]:
    """Lets the island reach this address, and no other."""
    host, _, port = target.rpartition(":")
    running: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(copy(reader, back), copy(there, writer))
        finally:
            back.close()
            writer.close()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
            target.write_eof()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(relay(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accept, sock=island.listen(int(port)))
    try:
        yield
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_remote_worker_needs_the_trainer_and_storage_and_nothing_else(
    sites: Sites, owner: Owner, workers: WorkerMaker, backing: BackingServers, island: Island
) -> None:
    targets = sites.trainer.target, sites.storage.target
    async with AsyncExitStack() as stack:
        for target in targets:
            await stack.enter_async_context(bridge(island, target))
        worker = workers(prefix=island.prefix)
        await asyncio.to_thread(worker.wait_for, "registered")
        job = await owner.submit(params=LINE | {"step_seconds": 0.02}, seed=8)
        job = await ended(owner, job.name)
        assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED
        assert (await told_by(sites, job))["steps"] == LINE["steps"]
        cancelled = await owner.submit(params=LINE | {"steps": 10_000})
        await until(owner, cancelled.name, "checkpoint")
        await owner.cancel(cancelled.name)
        assert (await ended(owner, cancelled.name)).state == jobs_pb2.JOB_STATE_CANCELLED
        closed = [
            backing.postgres.port,
            *(int(url.rpartition(":")[2]) for url in (backing.nats.url, backing.s3.endpoint)),
        ]
        reached = [await asyncio.to_thread(island.reaches, port) for port in closed]
        opened = [
            await asyncio.to_thread(island.reaches, int(target.rpartition(":")[2])) for target in targets
        ]
        assert (reached, opened) == ([False] * 3, [True] * 2)
        assert await asyncio.to_thread(worker.stop) == 0
