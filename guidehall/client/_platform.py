"""The platform itself: its queues, its workers, and who it takes the caller for."""

from __future__ import annotations

from guidehall.client import _decode, _lists, types
from guidehall.client._config import Config
from guidehall.client._steps import Call, Operation, Rpc, collect
from guidehall.contracts.identity.v1 import identity_pb2, identity_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc

_POOLS = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "ListPools")
_WORKERS = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "ListWorkers")
_WHO_AM_I = Rpc("storage", identity_pb2_grpc.IdentityServiceStub, "WhoAmI")


def pools(config: Config) -> Operation[list[types.Pool]]:
    """Every pool."""
    return collect(_lists.items(config, _POOLS, workers_pb2.ListPoolsRequest(), "pools", _decode.pool))


def workers(config: Config, pool: str) -> Operation[list[types.Worker]]:
    """The workers of one pool, or of all."""
    # By its id on the wire; people may also give the name that `pools` answers with.
    request = workers_pb2.ListWorkersRequest(pool=pool.removeprefix("pools/"))
    return collect(_lists.items(config, _WORKERS, request, "workers", _decode.worker))


def whoami(config: Config) -> Operation[types.Identity]:
    """The caller, as the server sees it."""
    message = yield Call(_WHO_AM_I, identity_pb2.WhoAmIRequest(), config.timeouts.call_seconds)
    return _decode.identity(message)
