"""/api/history: runs as users keep them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import history_pb2
from guidehall.core.auth import current_principal
from guidehall.core.names import (
    DEFAULT_PROJECT,
    HISTORY_ENTRY,
    LONGEST_DISPLAY_NAME,
    MODEL,
    MODEL_VERSION,
    USER,
)
from guidehall.core.threads import by_size
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.legacy.common import OldRouter, is_guest, user
from services.gateway.legacy.keeping import keep_finished
from services.gateway.legacy.runs import memory
from services.gateway.messages import struct_json, to_struct

router = OldRouter()

_LISTED = 50
_ID = re.compile(r"[0-9a-f]{24}")
_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# What the page draws: lists do without.
_CURVES = ("nr", "sld", "training", "chi")
# Pictures that only the page makes and only its files have.
_CLIENT_ONLY = "export_pngs"
_MODELS_PAGE = 1000


class NewEntry(BaseModel):
    """A run to keep, such as one from a file."""

    layers: list[Any]
    generator: dict[str, Any]
    training: dict[str, Any]
    result: dict[str, Any]
    name: str | None = None


class Name(BaseModel):
    """A run's name; none where it is empty."""

    name: str | None = None


@router.get("/history")
async def list_history(request: Request, backends: BackendsDep) -> JSONResponse:
    """The newest runs of the caller, without their curves."""
    owner = await _owner(backends)
    try:
        await keep_finished(memory(request), backends, owner)
    except grpc.aio.AioRpcError as error:
        # Without the trainer there is still the history so far.
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
    wanted = history_pb2.ListHistoryEntriesRequest(parent=USER.format(user=owner), page_size=_LISTED)
    page, models = await asyncio.gather(
        backends.history.ListHistoryEntries(wanted, timeout=backends.timeouts.call), _models(backends)
    )
    return await by_size(
        page.ByteSize(), lambda: JSONResponse([_listed(entry, models) for entry in page.entries])
    )


@router.post("/history")
async def create_history(body: NewEntry, backends: BackendsDep) -> JSONResponse:
    """Keeps a run that was imported. The model that it names stays whosever it is."""
    owner = await _owner(backends)
    name = _name(body.name)
    result = {key: value for key, value in body.result.items() if key != _CLIENT_ONLY}
    params = {"layers": body.layers, "generator": body.generator, "training": body.training}
    entry = history_pb2.HistoryEntry(
        display_name=name or "",
        params=await asyncio.to_thread(to_struct, params, "params"),
        result=await asyncio.to_thread(to_struct, result, "result"),
        model_version=await _model_version(backends, result.get("model_id")),
    )
    request = history_pb2.CreateHistoryEntryRequest(parent=USER.format(user=owner), entry=entry)
    made = await backends.history.CreateHistoryEntry(request, timeout=backends.timeouts.call)
    return JSONResponse({"success": True, "id": _id_of(made)})


@router.get("/history/{id}")
async def get_history(id: str, backends: BackendsDep) -> JSONResponse:
    """One run, whole."""
    request = history_pb2.GetHistoryEntryRequest(name=await _entry_name(backends, id))
    entry = await backends.history.GetHistoryEntry(request, timeout=backends.timeouts.call)
    return await by_size(entry.ByteSize(), lambda: JSONResponse(_document(entry)))


@router.patch("/history/{id}")
async def rename_history(id: str, body: Name, backends: BackendsDep) -> JSONResponse:
    """Names a run."""
    full_name, name = await _entry_name(backends, id), _name(body.name)
    request = history_pb2.UpdateHistoryEntryRequest(name=full_name, display_name=name or "")
    await backends.history.UpdateHistoryEntry(request, timeout=backends.timeouts.call)
    return JSONResponse({"success": True, "id": id, "name": name})


@router.delete("/history/{id}")
async def delete_history(id: str, backends: BackendsDep) -> JSONResponse:
    """Forgets a run, and deletes its model where no other run of the caller's has it.

    Only the run that made a model takes it along, not a copy that came from a file.
    """
    name = await _entry_name(backends, id)
    request = history_pb2.GetHistoryEntryRequest(name=name)
    entry = await backends.history.GetHistoryEntry(request, timeout=backends.timeouts.call)
    forget = history_pb2.DeleteHistoryEntryRequest(name=name)
    await backends.history.DeleteHistoryEntry(forget, timeout=backends.timeouts.call)
    if entry.job and entry.model_version and not await _is_shared(backends, entry):
        await _delete_model(backends, entry.model_version)
    return JSONResponse({"success": True})


async def _owner(backends: Backends) -> str:
    """The caller's name.

    Raises:
        HTTPException: 503, storage is away; 401, nobody is logged in.
    """
    # A guest asks storage for nothing that would tell.
    if is_guest(current_principal()) and not (await backends.health())["storage"]:
        raise HTTPException(503, "the history cannot be reached")
    return user().subject


async def _entry_name(backends: Backends, id: str) -> str:
    owner = await _owner(backends)
    if not _ID.fullmatch(id):
        raise HTTPException(400, f"id: got {id[:80]!r}; allowed: 24 hexadecimal digits")
    return HISTORY_ENTRY.format(user=owner, entry=id)


def _name(given: str | None) -> str | None:
    name = (given or "").strip() or None
    if name is not None and len(name) > LONGEST_DISPLAY_NAME:
        raise HTTPException(400, f"name: got {len(name)} characters; allowed: at most {LONGEST_DISPLAY_NAME}")
    return name


def _id_of(entry: history_pb2.HistoryEntry) -> str:
    return entry.name.rpartition("/")[2]


def _document(entry: history_pb2.HistoryEntry) -> dict[str, Any]:
    document: dict[str, Any] = {
        "_id": _id_of(entry),
        "user_id": HISTORY_ENTRY.parse(entry.name)["user"],
        "name": entry.display_name or None,
        # With a zone, so that no browser takes it for its own.
        "created_at": entry.create_time.ToJsonString(),
        "params": struct_json(entry.params),
        "result": struct_json(entry.result),
    }
    if entry.update_time != entry.create_time:
        document["updated_at"] = entry.update_time.ToJsonString()
    return document


def _listed(entry: history_pb2.HistoryEntry, models: set[str]) -> dict[str, Any]:
    document = _document(entry)
    result = {key: value for key, value in document["result"].items() if key not in _CURVES}
    return document | {"result": result, "is_local": result.get("model_id") in models, "hf_url": None}


async def _models(backends: Backends) -> set[str]:
    """Ids of the models that the caller has."""
    request = models_pb2.ListModelsRequest(page_size=_MODELS_PAGE)
    page = await backends.models.ListModels(request, timeout=backends.timeouts.call)
    return {model.name.rpartition("/")[2] for model in page.models}


async def _model_version(backends: Backends, id: object) -> str:
    """The version that a model's id means; empty where the caller has none such."""
    if not isinstance(id, str) or not _MODEL_ID.fullmatch(id):
        return ""
    name = MODEL_VERSION.format(project=DEFAULT_PROJECT, model=id, version="latest")
    request = models_pb2.GetModelVersionRequest(name=name)
    try:
        found = await backends.models.GetModelVersion(request, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ""
        raise
    return found.name


async def _is_shared(backends: Backends, entry: history_pb2.HistoryEntry) -> bool:
    """Whether another run of the same user shows the model of one that is gone."""
    parent = USER.format(user=HISTORY_ENTRY.parse(entry.name)["user"])
    request = history_pb2.ListHistoryEntriesRequest(
        parent=parent, page_size=1, filter=f'model_version = "{entry.model_version}"'
    )
    return bool((await backends.history.ListHistoryEntries(request, timeout=backends.timeouts.call)).entries)


async def _delete_model(backends: Backends, version: str) -> None:
    ids = MODEL_VERSION.parse(version)
    request = models_pb2.DeleteModelRequest(name=MODEL.format(project=ids["project"], model=ids["model"]))
    try:
        await backends.models.DeleteModel(request, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        # Gone already, or somebody else's.
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
