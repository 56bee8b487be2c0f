"""HistoryService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

import asyncio
from typing import Any

from guidehall.contracts.results.v1 import history_pb2, history_pb2_grpc
from guidehall.core.auth import current_principal
from services.storage.history import Entry, History, NewEntry
from services.storage.servicers import common

HISTORY = "guidehall.results.v1.HistoryService"


class HistoryServicer(history_pb2_grpc.HistoryServiceServicer):
    """Decode, call, encode."""

    def __init__(self, history: History, max_document_bytes: int) -> None:
        self._history = history
        self._max_document_bytes = max_document_bytes

    async def CreateHistoryEntry(
        self, request: history_pb2.CreateHistoryEntryRequest, context: Any
    ) -> history_pb2.HistoryEntry:
        given = request.entry
        new = NewEntry(
            user=common.user_of(request.parent),
            display_name=given.display_name,
            params=await common.document("entry.params", given.params, self._max_document_bytes),
            result=await common.document("entry.result", given.result, self._max_document_bytes),
            job=given.job,
            model_version=given.model_version,
        )
        caller = common.caller(HISTORY, "CreateHistoryEntry")
        return await asyncio.to_thread(_entry, await self._history.create(caller, new, request.request_id))

    async def GetHistoryEntry(
        self, request: history_pb2.GetHistoryEntryRequest, context: Any
    ) -> history_pb2.HistoryEntry:
        return await asyncio.to_thread(_entry, await self._history.get(current_principal(), request.name))

    async def ListHistoryEntries(
        self, request: history_pb2.ListHistoryEntriesRequest, context: Any
    ) -> history_pb2.ListHistoryEntriesResponse:
        found, token = await self._history.page(
            current_principal(), request.parent, request.filter, common.paging(request)
        )
        return await asyncio.to_thread(
            lambda: history_pb2.ListHistoryEntriesResponse(entries=map(_entry, found), next_page_token=token)
        )

    async def UpdateHistoryEntry(
        self, request: history_pb2.UpdateHistoryEntryRequest, context: Any
    ) -> history_pb2.HistoryEntry:
        caller = common.caller(HISTORY, "UpdateHistoryEntry")
        return await asyncio.to_thread(
            _entry, await self._history.rename(caller, request.name, request.display_name)
        )

    async def DeleteHistoryEntry(
        self, request: history_pb2.DeleteHistoryEntryRequest, context: Any
    ) -> history_pb2.DeleteHistoryEntryResponse:
        await self._history.delete(common.caller(HISTORY, "DeleteHistoryEntry"), request.name)
        return history_pb2.DeleteHistoryEntryResponse()


def _entry(entry: Entry) -> history_pb2.HistoryEntry:
    return history_pb2.HistoryEntry(
        name=entry.name,
        display_name=entry.display_name,
        params=common.struct(entry.params),
        result=common.struct(entry.result),
        job=entry.job,
        model_version=entry.model_version,
        create_time=common.timestamp(entry.create_time),
        update_time=common.timestamp(entry.update_time),
    )
