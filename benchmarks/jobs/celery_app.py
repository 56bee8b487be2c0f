"""What Celery's workers import: its application, with Redis as broker and for results."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.jobs.peers import CELERY_URL
from benchmarks.jobs.started import started as noop_started

_URL = os.environ[CELERY_URL]
app = Celery(
    "benchmarks",
    broker=f"redis+socket://{_URL}?virtual_host=1",
    backend=f"redis+socket://{_URL}?virtual_host=1",
)
started = app.task(noop_started, name="started")
