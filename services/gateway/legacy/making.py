"""Jobs made of what the old web app asks for."""

from __future__ import annotations

import uuid
from typing import Literal

import grpc
from starlette.exceptions import HTTPException

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import Principal, current_principal
from guidehall.core.errors import from_rpc_error
from guidehall.core.names import LONGEST_DISPLAY_NAME, UPLOAD_ROLES
from services.gateway.backends import Backends
from services.gateway.legacy.common import is_guest
from services.gateway.legacy.limits import allowed
from services.gateway.legacy.requests import GenerateRequest, kept
from services.gateway.legacy.runs import CALL_LABEL, GPU_LABEL, LABEL, LABEL_VALUE, REQUEST
from services.gateway.legacy.translation import Run, check, run_of
from services.gateway.messages import to_struct
from services.gateway.settings import GatewaySettings

Call = Literal["submit", "generate", "stream"]

# Of pools that are not told apart by their device.
_NO_CLASS = frozenset({"", "cpu"})


async def submit(
    settings: GatewaySettings, backends: Backends, body: GenerateRequest, call: Call
) -> jobs_pb2.Job:
    """Submits the job that a request asks for, the caller's own.

    Raises:
        InvalidArgument: beyond a limit, impossible, or files are missing.
        HTTPException: 401, a guest's run on measured data: files belong to users.
    """
    caller = current_principal()
    check(body, allowed(settings, caller).limits)
    files = await _files(backends, caller) if body.is_real else {}
    run = run_of(body, str(uuid.uuid4()), settings.legacy.architecture, files)
    request = _submission(run, body, call)
    if await _has_classes(backends):
        request.device_class = body.gpu
    job: jobs_pb2.Job
    try:
        job = await backends.jobs.SubmitJob(request, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        if from_rpc_error(error).reason != "NO_POOL":
            raise
        # A wish: with only better devices than the one asked for, one of those.
        request.device_class = ""
        job = await backends.jobs.SubmitJob(request, timeout=backends.timeouts.call)
    return job


def _submission(run: Run, body: GenerateRequest, call: Call) -> jobs_pb2.SubmitJobRequest:
    return jobs_pb2.SubmitJobRequest(
        pipeline=run.pipeline,
        params=to_struct(run.params, "params"),
        inputs=run.inputs,
        display_name=display_name(body.name),
        labels={LABEL: LABEL_VALUE, CALL_LABEL: call, GPU_LABEL: body.gpu},
        annotations=to_struct({REQUEST: kept(body)}, "annotations"),
    )


def display_name(text: str | None) -> str:
    """A name as jobs may have it: what is not printable is left out, what is too long cut off."""
    plain = "".join(sign for sign in (text or "") if sign.isprintable()).strip()
    return plain if len(plain) <= LONGEST_DISPLAY_NAME else plain[: LONGEST_DISPLAY_NAME - 1] + "…"


async def _files(backends: Backends, caller: Principal) -> dict[str, str]:
    if is_guest(caller):
        raise HTTPException(
            401, "X-User-ID: missing; files of measured data belong to users who are logged in"
        )
    name = UPLOAD_ROLES.format(user=caller.subject)
    request = datasets_pb2.GetUploadRolesRequest(name=name)
    roles = await backends.upload_roles.GetUploadRoles(request, timeout=backends.timeouts.call)
    return dict(roles.dataset_versions)


async def _has_classes(backends: Backends) -> bool:
    """Whether pools here are told apart by the GPUs they have; else the tier has no effect."""
    request = workers_pb2.ListPoolsRequest(page_size=1000)
    answer = await backends.pools.ListPools(request, timeout=backends.timeouts.call)
    return any(pool.device_class not in _NO_CLASS for pool in answer.pools)
