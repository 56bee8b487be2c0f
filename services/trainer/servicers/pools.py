"""PoolsService."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core import names, pages
from guidehall.core.access import sees_everything
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument, NotFound
from services.trainer import cursors, worker_messages
from services.trainer.credentials import Credentials
from services.trainer.launcher import Launches
from services.trainer.settings import POOL_NAME, TrainerSettings
from services.trainer.workers import Pool, Workers

FULL_NAME = workers_pb2.DESCRIPTOR.services_by_name["PoolsService"].full_name


class PoolsServicer(workers_pb2_grpc.PoolsServiceServicer):
    """The queue and its workers as operators see them."""

    def __init__(
        self, workers: Workers, credentials: Credentials, launches: Launches, settings: TrainerSettings
    ) -> None:
        self._workers = workers
        self._credentials = credentials
        self._launches = launches
        self._settings = settings

    async def ListPools(  # noqa: N802
        self, request: workers_pb2.ListPoolsRequest, _context: Any
    ) -> workers_pb2.ListPoolsResponse:
        size = pages.page_size(request.page_size)
        cursor = cursors.texts(request.page_token, 1)
        found = await self._workers.pools(self._settings.named_pools, cursor[0] if cursor else "", size + 1)
        token = pages.next_token([found[size - 1].name]) if len(found) > size else ""
        return workers_pb2.ListPoolsResponse(pools=await self._told(found[:size]), next_page_token=token)

    async def GetPool(self, request: workers_pb2.GetPoolRequest, _context: Any) -> workers_pb2.Pool:  # noqa: N802
        name = names.POOL.parse(request.name)["pool"]
        known = await self._workers.pools(self._settings.named_pools, "", 1, name=name)
        if not known:
            raise NotFound.named(request.name)
        return (await self._told(known))[0]

    async def _told(self, pools: Sequence[Pool]) -> list[workers_pb2.Pool]:
        launches = await self._launches.of_pools([pool.name for pool in pools])
        if not sees_everything(current_principal()):
            # It may name files and hosts, which are the operators' affair.
            launches = {
                name: replace(last, error="it failed; operators see why") if last.error else last
                for name, last in launches.items()
            }
        return [
            worker_messages.pool(
                pool,
                self._settings.device_class(pool.name),
                self._settings.default_timeout_seconds(pool.name),
                worker_messages.launcher(self._settings.pool(pool.name).launcher, launches[pool.name], pool),
            )
            for pool in pools
        ]

    async def ListWorkers(  # noqa: N802
        self, request: workers_pb2.ListWorkersRequest, _context: Any
    ) -> workers_pb2.ListWorkersResponse:
        size = pages.page_size(request.page_size)
        pool, token = request.pool, request.page_token
        if pool and not re.fullmatch(POOL_NAME, pool):
            raise InvalidArgument.field("pool", pool, f"a name like {POOL_NAME}, or empty")
        found = await self._workers.page(pool, _after(token, pool), size + 1)
        last = found[size - 1] if len(found) > size else None
        next_token = pages.next_token([last.pool, last.id], pool) if last else ""
        return workers_pb2.ListWorkersResponse(
            workers=[worker_messages.worker(item) for item in found[:size]], next_page_token=next_token
        )

    async def DrainWorker(  # noqa: N802
        self, request: workers_pb2.DrainWorkerRequest, _context: Any
    ) -> workers_pb2.Worker:
        worker = await self._workers.drain(current_principal(), request.name, request.release_job)
        return worker_messages.worker(worker)

    async def ReinstateWorker(  # noqa: N802
        self, request: workers_pb2.ReinstateWorkerRequest, _context: Any
    ) -> workers_pb2.Worker:
        return worker_messages.worker(await self._workers.reinstate(current_principal(), request.name))

    async def CreateWorkerCredential(  # noqa: N802
        self, request: workers_pb2.CreateWorkerCredentialRequest, _context: Any
    ) -> workers_pb2.CreateWorkerCredentialResponse:
        credential, token = await self._credentials.create(
            current_principal(), _pool(request.parent), request.ttl_seconds, request.note
        )
        return workers_pb2.CreateWorkerCredentialResponse(
            credential=worker_messages.credential(credential), token=token
        )

    async def ListWorkerCredentials(  # noqa: N802
        self, request: workers_pb2.ListWorkerCredentialsRequest, _context: Any
    ) -> workers_pb2.ListWorkerCredentialsResponse:
        size = pages.page_size(request.page_size)
        pool = _pool(request.parent) if request.parent else ""
        found = await self._credentials.page(pool, _after(request.page_token, pool), size + 1)
        last = found[size - 1] if len(found) > size else None
        return workers_pb2.ListWorkerCredentialsResponse(
            credentials=[worker_messages.credential(item) for item in found[:size]],
            next_page_token=pages.next_token([last.pool, last.id], pool) if last else "",
        )

    async def RevokeWorkerCredential(  # noqa: N802
        self, request: workers_pb2.RevokeWorkerCredentialRequest, _context: Any
    ) -> workers_pb2.WorkerCredential:
        return worker_messages.credential(await self._credentials.revoke(current_principal(), request.name))


def _after(token: str, pool: str) -> tuple[str, str] | None:
    """The (pool, id) after which a list goes on; None for its first page."""
    cursor = cursors.texts(token, 2, pool)
    return (cursor[0], cursors.uuid_in(cursor[1], token)) if cursor else None


def _pool(parent: str) -> str:
    """The pool in a request's `parent`."""
    pool = names.POOL.parse(parent, "parent")["pool"]
    if not re.fullmatch(POOL_NAME, pool):
        raise InvalidArgument.field("parent", parent, f"pools/NAME, the name like {POOL_NAME}")
    return pool
