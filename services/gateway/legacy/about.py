"""What the old web app asks first: health, limits, defaults, the state of a user's files."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.core.auth import current_principal
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy import roles
from services.gateway.legacy.common import OldRouter, in_production, is_guest
from services.gateway.legacy.limits import allowed
from services.gateway.legacy.pools import is_offered
from services.gateway.legacy.roles import Files
from services.gateway.legacy.runs import Memory, memory
from services.gateway.legacy.shape import PREFIX

# Open to everybody: nobody is known there.
open_router = APIRouter(prefix=PREFIX, include_in_schema=False)
router = OldRouter()

# What the old app trained.
_PIPELINE = "reflectometry.pyreflect_cnn"
_DEFAULTS: dict[str, Any] = {
    "layers": [
        {"name": name, "sld": sld, "isld": 0.0, "thickness": thickness, "roughness": roughness}
        for name, sld, thickness, roughness in (
            ("substrate", 2.07, 0.0, 1.8),
            ("siox", 3.47, 12.0, 2.0),
            ("polymer_1", 3.8, 50.0, 10.0),
            ("polymer_2", 2.5, 150.0, 30.0),
            ("air", 0.0, 0.0, 0.0),
        )
    ],
    "generator": {"numCurves": 1000, "numFilmLayers": 5, "layerBound": None},
    "training": {
        "batchSize": 32,
        "epochs": 10,
        "layers": 12,
        "dropout": 0.0,
        "latentDim": 16,
        "aeEpochs": 50,
        "mlpEpochs": 50,
    },
}


@open_router.get("/health")
async def health(request: Request, backends: BackendsDep) -> JSONResponse:
    """The gateway answers."""
    available = await _is_available(memory(request), backends)
    return JSONResponse({"status": "healthy", "pyreflect_available": available})


@router.get("/limits")
async def limits(request: Request) -> JSONResponse:
    """How much the caller may ask for."""
    caller = current_principal()
    if not is_guest(caller):
        memory(request).named = caller.subject
    found = allowed(request.app.state.settings, caller)
    answer = {
        "production": in_production(request),
        "limits": found.limits.model_dump(),
        "access_granted": found.granted,
        "limit_source": found.source,
    }
    return JSONResponse(answer)


@router.get("/defaults")
async def defaults() -> JSONResponse:
    """A request to begin with."""
    return JSONResponse(_DEFAULTS)


@router.get("/status")
async def status(request: Request, backends: BackendsDep) -> JSONResponse:
    """What can be run, and which files the caller has for it. A guest has none.

    The page never says here who it is. Outside production, where whoever calls may name anybody, it is shown
    the files of the user who was named last: it offers runs on them only then.
    """
    caller, store = current_principal(), memory(request)
    subject = None if is_guest(caller) else caller.subject
    if subject is None and not in_production(request):
        subject = store.named
    available = await _is_available(store, backends)
    if subject is None:
        files, there = Files(), set[str]()
    else:
        with as_platform():
            files = await roles.read(backends, subject)
            there = await _existing(backends, files)
    answer = {
        "pyreflect_available": available,
        "has_settings": bool(files.paths or files.other),
        "data_files": files.listed("data", (".npy", ".pth", ".pt")),
        "curve_files": files.listed("data/curves", (".npy",)),
        "expt_files": files.listed("data/curves/expt", (".npy",)),
        "model_files": files.listed("data/models", (".pth", ".pt")),
        "settings_paths": files.tree(lambda role: files.paths.get(role.name)),
        "settings_status": files.tree(lambda role: role.name in there),
    }
    return JSONResponse(answer)


async def _is_available(store: Memory, backends: Backends) -> bool:
    """Whether somebody is there who trains the network of pyreflect."""
    try:
        return await is_offered(store, backends, _PIPELINE)
    except grpc.aio.AioRpcError:
        return False


async def _existing(backends: Backends, files: Files) -> set[str]:
    """Roles whose files can be read."""

    async def exists(version: str) -> bool:
        request = datasets_pb2.GetDatasetVersionRequest(name=version)
        try:
            await backends.datasets.GetDatasetVersion(request, timeout=backends.timeouts.call)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    versions = files.versions()
    found = await asyncio.gather(*map(exists, versions.values()))
    return {role for role, there in zip(versions, found, strict=True) if there}
