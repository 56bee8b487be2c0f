"""PoolsService."""

from __future__ import annotations

from typing import Any

from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core import pages
from services.trainer import worker_messages
from services.trainer.workers import Workers

FULL_NAME = workers_pb2.DESCRIPTOR.services_by_name["PoolsService"].full_name


class PoolsServicer(workers_pb2_grpc.PoolsServiceServicer):
    """The queue and its workers as operators see them."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def ListPools(  # noqa: N802
        self, request: workers_pb2.ListPoolsRequest, _context: Any
    ) -> workers_pb2.ListPoolsResponse:
        size = pages.page_size(request.page_size)
        cursor = pages.cursor_of(request.page_token)
        found = await self._workers.pools(str(cursor[0]) if cursor else "", size + 1)
        token = pages.next_token([found[size - 1].name]) if len(found) > size else ""
        return workers_pb2.ListPoolsResponse(
            pools=[worker_messages.pool(item) for item in found[:size]], next_page_token=token
        )

    async def ListWorkers(  # noqa: N802
        self, request: workers_pb2.ListWorkersRequest, _context: Any
    ) -> workers_pb2.ListWorkersResponse:
        size = pages.page_size(request.page_size)
        cursor = pages.cursor_of(request.page_token, request.pool)
        found = await self._workers.page(request.pool, cursor, size + 1)
        last = found[size - 1] if len(found) > size else None
        token = pages.next_token([last.pool, last.id], request.pool) if last else ""
        return workers_pb2.ListWorkersResponse(
            workers=[worker_messages.worker(item) for item in found[:size]], next_page_token=token
        )
