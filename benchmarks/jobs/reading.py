"""What reading costs: a job, lists of many, and many who watch one."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc

from benchmarks.jobs import platform
from benchmarks.rows import Row, at_most
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.local.files import Secrets, read_json
from guidehall.local.services import DATABASES

JOBS, WATCHERS = 10_000, 1000
_PAGE, _DEEP_PAGE = 50, 200
_EVENTS, _STEP_SECONDS = 20, 0.2
# Connections that a watcher's channel shares; one gRPC connection is one thread of work for its server.
_CHANNELS = 10


def run(quick: bool, *, jobs: int = JOBS, calls: int | None = None, watchers: int | None = None) -> list[Row]:
    """Reads jobs one by one and in pages, and watches one from everywhere."""
    calls = calls or (20 if quick else 200)
    watchers = watchers or (WATCHERS // 10 if quick else WATCHERS)
    with tempfile.TemporaryDirectory(prefix="guidehall-bench-") as folder:
        data = Path(folder) / "data"
        with platform.running(data) as ours:
            watched = [
                asyncio.run(_watched(ours, "WatchJob", watchers, _watch_grpc)),
                asyncio.run(_watched(ours, "server-sent events", watchers, _watch_http)),
            ]
            job = ours.submit("")
            ours.wait(job)
            asyncio.run(_multiply(data, job.name.rpartition("/")[2], jobs))
            rows = _pages(ours, job.name, jobs, calls)
    return [*rows, *watched]


def _pages(ours: platform.Platform, name: str, jobs: int, calls: int) -> list[Row]:
    request = jobs_pb2.ListJobsRequest(page_size=_PAGE)
    deep = jobs_pb2.ListJobsRequest(page_size=_PAGE)
    # The last page there is where there are fewer.
    depth = min(_DEEP_PAGE, jobs // _PAGE)
    for _ in range(depth - 1):
        deep.page_token = ours.jobs.ListJobs(deep).next_page_token
    one = jobs_pb2.GetJobRequest(name=name)
    seconds: dict[str, list[float]] = {"one": [], "first": [], "deep": []}
    for _ in range(calls):
        for kind, call in (
            ("one", lambda: ours.jobs.GetJob(one)),
            ("first", lambda: ours.jobs.ListJobs(request)),
            ("deep", lambda: ours.jobs.ListJobs(deep)),
        ):
            begin = time.perf_counter()
            call()
            seconds[kind].append(time.perf_counter() - begin)
    p95 = {kind: 1000 * statistics.quantiles(values, n=20)[-1] for kind, values in seconds.items()}
    middle = {kind: 1000 * statistics.median(values) for kind, values in seconds.items()}
    note = f"{_PAGE} of {jobs} jobs; p50 {middle['first']:.3g} ms"
    return [
        Row("GetJob over gRPC (p95)", p95["one"], "ms", note=f"p50 {middle['one']:.3g} ms"),
        at_most("ListJobs over gRPC, first page (p95)", p95["first"], "ms", 20, note),
        Row(
            f"ListJobs over gRPC, page {depth} (p95)", p95["deep"], "ms", note=f"p50 {middle['deep']:.3g} ms"
        ),
        at_most(f"ListJobs, page {depth} to the first (p50)", middle["deep"] / middle["first"], "times", 1.1),
    ]


async def _multiply(data: Path, job: str, count: int) -> None:
    """Makes so many jobs of one that has ended, as they would be stored: submitted in the minutes before."""
    name = DATABASES["trainer"]
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=read_json(data / "ports.json")["postgres"],
        user=name,
        database=name,
        password=Secrets(data / "secrets").text(f"postgres-{name}"),
    )
    try:
        await connection.execute(
            """
            INSERT INTO trainer.jobs
            SELECT copy.* FROM trainer.jobs AS j, generate_series(1, $2::int) AS number,
                jsonb_populate_record(j, jsonb_build_object(
                    'id', gen_random_uuid(),
                    'create_time', j.create_time - number * interval '10 ms')) AS copy
            WHERE j.id = $1
            """,
            job,
            count,
        )
        await connection.execute("ANALYZE trainer.jobs")
    finally:
        await connection.close()


async def _watched(ours: platform.Platform, how: str, watchers: int, watch: Any) -> Row:
    """One job with `_EVENTS` steps that so many follow from its start to its end."""
    job = ours.submit("", progress=_EVENTS, step_seconds=_STEP_SECONDS)
    begin = time.monotonic()
    counts: list[int] = await watch(ours, job, watchers)
    seconds = time.monotonic() - begin
    # Read again from the first one, when nothing is left to come.
    there = sum(1 for _ in ours.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=job.name)))
    note = (
        f"{watchers} watchers of a job of {there} events, each heard of {min(counts)} to {max(counts)};"
        f" {seconds:.3g} s for a job of {_EVENTS * _STEP_SECONDS:.3g} s"
    )
    complete = all(count == there for count in counts)
    return Row(f"events delivered by {how}", sum(counts), "", f"= {there * watchers}", complete, note)


async def _watch_grpc(ours: platform.Platform, job: jobs_pb2.Job, watchers: int) -> list[int]:
    channels = [grpc.aio.insecure_channel(ours.endpoints["trainer"]) for _ in range(_CHANNELS)]
    stubs: list[Any] = [jobs_pb2_grpc.JobsServiceStub(channel) for channel in channels]

    async def watch(number: int) -> int:
        stream = stubs[number % len(stubs)].WatchJob(jobs_pb2.WatchJobRequest(name=job.name))
        return len([event async for event in stream])

    try:
        return await asyncio.gather(*map(watch, range(watchers)))
    finally:
        for channel in channels:
            await channel.close()


async def _watch_http(ours: platform.Platform, job: jobs_pb2.Job, watchers: int) -> list[int]:
    address = urlsplit(str(ours.endpoints["gateway"]))
    path = f"/api/v1/jobs/{job.name.rpartition('/')[2]}/events"

    async def watch(_: int) -> int:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
        count = 0
        async for line in reader:
            count += line.startswith(b"id:")
        writer.close()
        return count

    return await asyncio.gather(*map(watch, range(watchers)))
