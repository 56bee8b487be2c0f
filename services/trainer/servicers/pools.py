"""PoolsService."""

from __future__ import annotations

import re
from typing import Any

from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core import pages
from guidehall.core.errors import InvalidArgument
from services.trainer import cursors, worker_messages
from services.trainer.settings import POOL_NAME
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
        cursor = cursors.texts(request.page_token, 1)
        found = await self._workers.pools(cursor[0] if cursor else "", size + 1)
        token = pages.next_token([found[size - 1].name]) if len(found) > size else ""
        return workers_pb2.ListPoolsResponse(
            pools=[worker_messages.pool(item) for item in found[:size]], next_page_token=token
        )

    async def ListWorkers(  # noqa: N802
        self, request: workers_pb2.ListWorkersRequest, _context: Any
    ) -> workers_pb2.ListWorkersResponse:
        size = pages.page_size(request.page_size)
        pool, token = request.pool, request.page_token
        if pool and not re.fullmatch(POOL_NAME, pool):
            raise InvalidArgument.field("pool", pool, f"a name like {POOL_NAME}, or empty")
        cursor = cursors.texts(token, 2, pool)
        after = (cursor[0], cursors.uuid_in(cursor[1], token)) if cursor else None
        found = await self._workers.page(pool, after, size + 1)
        last = found[size - 1] if len(found) > size else None
        next_token = pages.next_token([last.pool, last.id], pool) if last else ""
        return workers_pb2.ListWorkersResponse(
            workers=[worker_messages.worker(item) for item in found[:size]], next_page_token=next_token
        )
