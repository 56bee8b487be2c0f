"""Finished runs of users go into their history, once each, whoever looks first."""

from __future__ import annotations

import logging
import uuid

import grpc

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.results.v1 import history_pb2
from guidehall.core.errors import AppError, InvalidArgument, NotFound, from_rpc_error
from guidehall.core.names import USER
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy.finished import finished, model_version
from services.gateway.legacy.runs import KEPT_LABEL, Memory, is_run, owned, request_of, set_labels
from services.gateway.messages import to_struct

logger = logging.getLogger(__name__)

_ONE_FOR_EACH_JOB = uuid.UUID("0d8f0a5e-1f0f-4b0f-9a39-27a3cbb5a5d5")
_PARAMS = ("layers", "generator", "training", "gpu")
_AT_A_TIME = 50


async def keep(store: Memory, backends: Backends, job: jobs_pb2.Job) -> bool:
    """Adds a run to its owner's history, if it has an owner, is finished, and was not added before.

    What was only predicted for a measured curve is none. Where a run cannot be added that is logged: nobody's
    history, and no other run, may depend on it. Returns whether something was added.

    Raises:
        AioRpcError: a service is away; later it may be there.
    """
    if job.name in store.not_kept:
        return False
    try:
        return await _keep(store, backends, job)
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        logger.warning("%s is not added to a history: %s", job.name, from_rpc_error(error).message)
    except (AppError, KeyError, TypeError, ValueError):
        # Its documents are not as this version knows them.
        logger.warning("%s is not added to a history", job.name, exc_info=True)
        store.not_kept.add(job.name)
    return False


async def _keep(store: Memory, backends: Backends, job: jobs_pb2.Job) -> bool:
    request = request_of(job)
    if not job.owner or not job.result or job.labels.get(KEPT_LABEL):
        return False
    if request.get("dataSource") == "real" and request.get("mode") == "infer":
        return False
    result = await finished(store, backends, job)
    entry = history_pb2.HistoryEntry(
        display_name=job.display_name,
        params=to_struct({name: request[name] for name in _PARAMS if name in request}, "params"),
        result=to_struct(result, "result"),
        job=job.name,
        model_version=await model_version(store, backends, job),
    )
    creation = history_pb2.CreateHistoryEntryRequest(
        parent=USER.format(user=job.owner),
        entry=entry,
        request_id=str(uuid.uuid5(_ONE_FOR_EACH_JOB, job.name)),
    )
    with as_platform():
        try:
            await backends.history.CreateHistoryEntry(creation, timeout=backends.timeouts.call)
        except grpc.aio.AioRpcError as error:
            if not is_repeat(from_rpc_error(error)):
                raise
        await set_labels(backends, job, {**job.labels, KEPT_LABEL: "1"})
    return True


def is_repeat(refusal: AppError) -> bool:
    """Whether an entry is refused because it was made before: with another name then, or deleted by now."""
    if isinstance(refusal, InvalidArgument):
        return [violation.field for violation in refusal.violations] == ["request_id"]
    return isinstance(refusal, NotFound)


async def keep_finished(store: Memory, backends: Backends, user: str) -> None:
    """Adds the newest runs of a user that have finished since somebody looked."""
    terms = f'{owned(user)} AND state = SUCCEEDED AND labels.{KEPT_LABEL} != "1"'
    request = jobs_pb2.ListJobsRequest(page_size=_AT_A_TIME, filter=terms)
    with as_platform():
        found = await backends.jobs.ListJobs(request, timeout=backends.timeouts.call)
    # The oldest first, so that the history has them in the order in which they were made.
    for job in filter(is_run, reversed(found.jobs)):
        await keep(store, backends, job)
