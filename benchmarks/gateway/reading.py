"""Requests for jobs in a second, beside a gateway that does nothing, and the memory of a large upload."""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.gateway.load import requests_per_second
from benchmarks.jobs import platform
from benchmarks.jobs.processes import memory_bytes
from benchmarks.rows import Row, at_least, at_most

CONNECTIONS = 16
_JOBS = 50
_UPLOAD_BYTES = 500 * 1024 * 1024
_PIECE = bytes(1024 * 1024)
_TRAINING = {"generator": {"numCurves": 20}, "training": {"epochs": 1, "batchSize": 8}, "layers": []}
_LOOK_SECONDS = 0.02
_MEBIBYTE = 1024 * 1024


def run(quick: bool) -> list[Row]:
    """Reads what a watching page reads, in turn with the peer; uploads a large file."""
    rounds, seconds = (2, 1.0) if quick else (7, 3.0)
    with (
        tempfile.TemporaryDirectory(prefix="guidehall-bench-") as folder,
        platform.running(Path(folder) / "data") as ours,
        _peer() as peer,
    ):
        job = [ours.submit("") for _ in range(_JOBS)][-1].name.rpartition("/")[2]
        url = str(ours.endpoints["gateway"])
        old = _trained(ours)
        asked = {
            "peer": peer,
            "finished job": f"{url}/api/v1/jobs/{job}",
            "finished job, old path": f"{url}/api/jobs/{old}",
            "queue, old path": f"{url}/api/queue",
            "list of jobs": f"{url}/api/v1/jobs?page_size=20",
        }
        rates: dict[str, list[float]] = {name: [] for name in asked}
        for number in range(rounds + 1):
            for name, what in asked.items():
                rate = asyncio.run(requests_per_second(what, CONNECTIONS, seconds))
                if number > 0:
                    rates[name].append(rate)
        grown = _upload(url, {name: ours.processes[name] for name in ("gateway", "storage")})
    middle = {name: statistics.median(values) for name, values in rates.items()}
    rows = [Row("a FastAPI app with one empty hop over gRPC", middle.pop("peer"), "requests/s")]
    for name, rate in middle.items():
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(rates[name], rates["peer"], strict=True)
        )
        note = f"{rate:.4g} requests/s, {CONNECTIONS} connections, one process of each"
        rows.append(at_least(f"{name}, ours / the empty app", ratio, "times", 0.6, note))
    size = f"{_UPLOAD_BYTES // _MEBIBYTE} MiB uploaded"
    for name, bytes_ in grown.items():
        rows.append(at_most(f"memory that an upload adds to {name}", bytes_ / _MEBIBYTE, "MiB", 64, size))
    return rows


def _trained(ours: platform.Platform) -> str:
    """A training that the old web app submitted; it has ended and its result can be read."""
    address = urlsplit(str(ours.endpoints["gateway"]))
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    job = str(_sent(connection, "/api/jobs/submit", _TRAINING)["job_id"])
    ours.drained()
    return job


def _sent(connection: http.client.HTTPConnection, path: str, body: object) -> Any:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    told = answer.read()
    if answer.status not in (200, 201):
        raise RuntimeError(f"{path} was answered {answer.status}: {told[:300]!r}")
    return json.loads(told)


@contextmanager
def _peer() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gateway.peer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.stdin.close()


def _upload(url: str, pids: dict[str, int]) -> dict[str, int]:
    """Bytes of resident memory that each process has at most besides what it had before."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=300)
    dataset = _sent(connection, "/api/v1/datasets", {})["name"].rpartition("/")[2]
    before = {name: memory_bytes(pid) for name, pid in pids.items()}
    most = dict(before)
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            for name, pid in pids.items():
                most[name] = max(most[name], memory_bytes(pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        pieces = _UPLOAD_BYTES // len(_PIECE)
        connection.request(
            "POST",
            f"/api/v1/datasets/{dataset}/versions?filename=large.bin",
            iter([_PIECE] * pieces),
            {"Content-Type": "application/octet-stream", "Content-Length": str(_UPLOAD_BYTES)},
        )
        answer = connection.getresponse()
        told = answer.read()
    finally:
        done.set()
        looking.join()
    if answer.status != 201:
        raise RuntimeError(f"the upload was answered {answer.status}: {told[:300]!r}")
    return {name: most[name] - before[name] for name in pids}
