"""Uploaded networks become models of the platform: by a job, for only workers have torch."""

from __future__ import annotations

import hashlib
import uuid

import grpc

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.names import DEFAULT_PROJECT, MODEL_VERSION
from services.gateway.backends import Backends
from services.gateway.legacy import roles
from services.gateway.legacy.received import COMPLETE_LABEL
from services.gateway.legacy.roles import MODEL_ROLE, STATISTICS_ROLE, Files
from services.gateway.messages import to_struct

PIPELINE = "reflectometry.import_model"


async def submit_import(
    backends: Backends, model: str, weights: str, statistics: str, display_name: str
) -> jobs_pb2.Job:
    """Submits the job that publishes a network as version 1 of a new model. May be repeated.

    Args:
        backends: has the trainer.
        model: id of the model.
        weights, statistics: dataset versions.
        display_name: of the job.
    """
    request = jobs_pb2.SubmitJobRequest(
        pipeline=PIPELINE,
        params=to_struct({"model_name": model, "kind": "cnn"}, "params"),
        inputs={"weights": weights, "statistics": statistics},
        display_name=display_name[:80],
        request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"guidehall:import:{model}:{weights}:{statistics}")),
    )
    return await backends.jobs.SubmitJob(request, timeout=backends.timeouts.call)


async def import_uploaded(backends: Backends, user: str, files: Files) -> None:
    """Has the network that a user's runs are to read with become a model, once there are statistics for it.

    Where the trainer is away nothing happens: a later upload tries again.
    """
    versions = files.versions()
    if MODEL_ROLE in files.models or MODEL_ROLE not in versions or STATISTICS_ROLE not in versions:
        return
    weights, statistics = versions[MODEL_ROLE], versions[STATISTICS_ROLE]
    if not await are_complete(backends, statistics):
        return
    model = f"upload-{hashlib.sha256(f'{weights} {statistics}'.encode()).hexdigest()[:24]}"
    try:
        await submit_import(backends, model, weights, statistics, f"import {files.paths[MODEL_ROLE]}")
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return
        raise

    def note(now: Files) -> None:
        if now.versions().get(MODEL_ROLE) == weights and now.versions().get(STATISTICS_ROLE) == statistics:
            now.models[MODEL_ROLE] = MODEL_VERSION.format(project=DEFAULT_PROJECT, model=model, version=1)

    await roles.change(backends, user, note)


async def are_complete(backends: Backends, statistics: str) -> bool:
    """Whether a dataset version with statistics says all that a network needs."""
    request = datasets_pb2.GetDatasetVersionRequest(name=statistics)
    found = await backends.datasets.GetDatasetVersion(request, timeout=backends.timeouts.call)
    return found.labels[COMPLETE_LABEL] == "true" if COMPLETE_LABEL in found.labels else False
