"""The pools behind the old app's one queue: who works there, and who would be started."""

from __future__ import annotations

from typing import Any

from guidehall.contracts.workers.v1 import workers_pb2
from services.gateway.backends import Backends
from services.gateway.legacy.runs import Memory
from services.gateway.messages import Json

_SECONDS = 1.0
# Those that take jobs, as the old app calls what they do.
_LIVE = {workers_pb2.WORKER_STATE_IDLE: "idle", workers_pb2.WORKER_STATE_BUSY: "busy"}
# Those that are there.
_PRESENT = {*_LIVE, workers_pb2.WORKER_STATE_DRAINING}


async def all_pools(store: Memory, backends: Backends) -> dict[str, workers_pb2.Pool]:
    """Every pool by its name, as of at most a second ago."""

    async def ask() -> dict[str, workers_pb2.Pool]:
        request = workers_pb2.ListPoolsRequest(page_size=1000)
        answer = await backends.pools.ListPools(request, timeout=backends.timeouts.call)
        return {pool.name.rpartition("/")[2]: pool for pool in answer.pools}

    return await store.as_of_late("pools", _SECONDS, ask)


async def waiting(store: Memory, backends: Backends, pool: str) -> int:
    """How many jobs wait in a pool."""
    found = (await all_pools(store, backends)).get(pool)
    return 0 if found is None else found.queued_jobs


async def remote_worker(store: Memory, backends: Backends, pool: str) -> Json:
    """Whether a worker is started for a pool that has none: the platform does that by itself where it can."""
    found = (await all_pools(store, backends)).get(pool)
    if found is None or found.live_workers:
        return {"triggered": False}
    if found.launcher.kind in ("", "none"):
        return {"triggered": False, "reason": "no worker is there; the job waits until one comes"}
    answer: Json = {"triggered": True, "via": found.launcher.kind, "target": pool}
    if found.launcher.last_error:
        answer["error"] = "the last start of a worker failed"
    return answer


async def live_workers(store: Memory, backends: Backends) -> list[workers_pb2.Worker]:
    """All workers that take jobs, as of at most a second ago."""
    return [worker for worker in await _workers(store, backends) if worker.state in _LIVE]


async def is_offered(store: Memory, backends: Backends, pipeline: str) -> bool:
    """Whether a worker that is there, be it draining, offers a pipeline, as of at most a second ago."""
    present = (worker for worker in await _workers(store, backends) if worker.state in _PRESENT)
    return any(offered.name == pipeline for worker in present for offered in worker.pipelines)


async def _workers(store: Memory, backends: Backends) -> list[workers_pb2.Worker]:
    async def ask() -> list[workers_pb2.Worker]:
        request = workers_pb2.ListWorkersRequest(page_size=1000)
        answer: Any = await backends.pools.ListWorkers(request, timeout=backends.timeouts.call)
        return list(answer.workers)

    return await store.as_of_late("workers", _SECONDS, ask)


def worker_view(worker: workers_pb2.Worker, shown: frozenset[str]) -> Json:
    """A worker as the page's header reads it: its name says whether it has a GPU.

    Args:
        shown: names of the jobs that the caller sees; an id is all that protects another's.
    """
    kind = "cpu" if worker.capabilities.device_class in ("", "cpu") else "gpu"
    job = worker.job.rpartition("/")[2] if worker.job in shown else None
    number = worker.name.rpartition("/")[2][:8]
    return {"name": f"{kind}-worker-{number}", "state": _LIVE[worker.state], "current_job": job}
