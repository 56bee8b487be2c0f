"""The platform on one machine: how soon it is ready, and what a job costs besides its own work."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row
from guidehall.client import Client
from guidehall.local.stack import ENDPOINTS, Options, Stack

PARAMS = {"stack": {"fronting": {"sld": 0}, "layers": [], "backing": {"sld": 2.07}}}


def run(quick: bool) -> list[Row]:
    """Start-up cold and warm, and a small simulation as a job, submitted to published."""
    with tempfile.TemporaryDirectory(prefix="guidehall-bench-") as folder:
        options = Options(data=Path(folder))
        cold = _start_seconds(options)
        warm = statistics.median(_start_seconds(options) for _ in range(1 if quick else 3))
        with Stack(options), Client(Path(folder).resolve() / ENDPOINTS) as client:
            _job_seconds(client)
            seconds = [_job_seconds(client) for _ in range(3 if quick else 10)]
            calls = [_call_seconds(client) for _ in range(20 if quick else 200)]
    return [
        Row("first start to ready (initdb included)", cold, "s"),
        Row("warm start to ready", warm, "s", "aim 5 besides importing torch"),
        Row("reflectometry.simulate as a job, submit to published (p50)", statistics.median(seconds), "s"),
        Row("GetJob from the Python client (p50)", 1000 * statistics.median(calls), "ms"),
    ]


def _start_seconds(options: Options) -> float:
    start = time.monotonic()
    with Stack(options):
        return time.monotonic() - start


def _job_seconds(client: Client) -> float:
    start = time.monotonic()
    job = client.submit("reflectometry.simulate", PARAMS)
    client.wait(job.id)
    return time.monotonic() - start


def _call_seconds(client: Client) -> float:
    job = next(client.jobs(limit=1))
    start = time.monotonic()
    client.job(job.name)
    return time.monotonic() - start
