"""The platform as a queue of no-op jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.jobs import noop
from benchmarks.jobs.queues import WORKERS
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.local import record
from guidehall.local.services import WORKER_POOL
from guidehall.local.stack import Options, Stack

_POLL_SECONDS = 0.02
_LARGEST_PAGE = 200


class Platform:
    """A running stack; as a `Queue` it runs no-op jobs."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.folder = folder
        self.endpoints: Mapping[str, Any] = stack.endpoints
        self._channel = grpc.insecure_channel(self.endpoints["trainer"])
        self.jobs: Any = jobs_pb2_grpc.JobsServiceStub(self._channel)
        self._pools: Any = workers_pb2_grpc.PoolsServiceStub(self._channel)
        self.progress = 0
        self._newest: jobs_pb2.Job | None = None

    def submit(self, address: str, **params: float) -> jobs_pb2.Job:
        """See `Queue`, like the following."""
        request = jobs_pb2.SubmitJobRequest(pipeline=noop.PIPELINE)
        request.params.update({"address": address, "progress": self.progress, **params})
        self._newest = self.jobs.SubmitJob(request)
        return self._newest

    def wait(self, job: object) -> None:
        assert isinstance(job, jobs_pb2.Job)
        for _ in self.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=job.name)):
            pass

    def drained(self) -> None:
        """Results can be read, too. Waits for the newest job first: asking often would cost time."""
        if self._newest is not None:
            self.wait(self._newest)
        while self._unfinished():
            time.sleep(_POLL_SECONDS)
        newest = jobs_pb2.ListJobsRequest(page_size=_LARGEST_PAGE)
        while not all(job.result for job in self.jobs.ListJobs(newest).jobs):
            time.sleep(_POLL_SECONDS)

    def _unfinished(self) -> int:
        pools = self._pools.ListPools(workers_pb2.ListPoolsRequest()).pools
        return sum(pool.queued_jobs + pool.running_jobs for pool in pools)

    def until_idle(self) -> None:
        """Returns when every worker waits for work."""
        while True:
            pools = {pool.name: pool for pool in self._pools.ListPools(workers_pb2.ListPoolsRequest()).pools}
            pool = pools.get(f"pools/{WORKER_POOL}")
            if pool is not None and pool.idle_workers == WORKERS:
                return
            time.sleep(_POLL_SECONDS)

    @property
    def workers(self) -> Sequence[int]:
        return [pid for name, pid in self.processes.items() if name.startswith("worker")]

    @property
    def processes(self) -> Mapping[str, int]:
        services = record.read(self.folder).services
        return {service.name: service.pid for service in services if service.pid is not None}

    def close(self) -> None:
        self._channel.close()


@contextmanager
def running(folder: Path, *, reuse: bool = True) -> Iterator[Platform]:
    """The platform with workers whose children serve one job after another, or one each."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(noop.__file__).parents[2]),
        "GUIDEHALL_SCIENCE_MODULES": "benchmarks.jobs.noop",
        # Like the workers of other queues: what a job may import later is not imported before.
        "GUIDEHALL_WORKER__CHILD__PRELOAD": "[]",
        **({} if reuse else {"GUIDEHALL_WORKER__CHILD__JOBS": "1"}),
    }
    with Stack(Options(data=folder, workers=WORKERS, environment=environment)) as stack:
        platform = Platform(folder, stack)
        try:
            platform.until_idle()
            yield platform
        finally:
            platform.close()
