"""Finished results as the old web app has them, remembered, for they are asked for again and again."""

from __future__ import annotations

import asyncio

import grpc

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.core.errors import NotFound, from_rpc_error
from guidehall.core.threads import by_size
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy import results
from services.gateway.legacy.runs import Finished, Memory
from services.gateway.legacy.translation import BOTH, CHI
from services.gateway.messages import Json, struct_json

# About 80 kB each.
_MOST = 100


async def finished(store: Memory, backends: Backends, job: jobs_pb2.Job) -> Json:
    """The result of a job that succeeded; `name` is the present one."""
    document, _ = await _remembered(store, backends, job)
    return document | {"name": job.display_name or None}


async def model_version(store: Memory, backends: Backends, job: jobs_pb2.Job) -> str:
    """Name of the version of the model that such a job made; empty where it made none or it was deleted."""
    _, version = await _remembered(store, backends, job)
    return version


async def _remembered(store: Memory, backends: Backends, job: jobs_pb2.Job) -> Finished:
    task = store.finished.get(job.name)
    if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
        with as_platform():
            task = asyncio.create_task(_read(backends, job))
        store.finished[job.name] = task
        while len(store.finished) > _MOST:
            store.finished.popitem(last=False)
    else:
        store.finished.move_to_end(job.name)
    # Others wait for the same one.
    return await asyncio.shield(task)


async def _read(backends: Backends, job: jobs_pb2.Job) -> Finished:
    request = results_pb2.GetResultRequest(name=job.result)
    result = await backends.results.GetResult(request, timeout=backends.timeouts.call)

    def make() -> Json:
        document = struct_json(result.document)
        made = results.response(job.pipeline, document)
        return made | {"timing": results.timing(job.pipeline, document)}

    made = await by_size(result.ByteSize(), make) | {"model_id": None, "model_size_mb": None}
    # Of two networks the one from reflectivity to profiles is offered.
    name = _model_name(job)
    version = next((item for item in result.model_versions if f"/models/{name}/" in item), "")
    size_bytes = await _weights_bytes(backends, version) if version else None
    if size_bytes is None:
        return made, ""
    if job.pipeline != CHI:
        made |= {"model_id": name, "model_size_mb": results.megabytes(size_bytes)}
    return made, version


async def _weights_bytes(backends: Backends, version: str) -> int | None:
    """Size of a model's weights; None where it was deleted."""
    wanted = models_pb2.GetModelVersionRequest(name=version)
    try:
        found = await backends.models.GetModelVersion(wanted, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        if isinstance(from_rpc_error(error), NotFound):
            return None
        raise
    size_bytes: int = found.weights.size_bytes
    return size_bytes


def _model_name(job: jobs_pb2.Job) -> str:
    params = struct_json(job.params)
    network = params.get("cnn") if job.pipeline == BOTH else params
    return str(network["model_name"]) if network and "model_name" in network else ""
