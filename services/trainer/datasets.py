"""Datasets that jobs read: storage has them, a job pins a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.core import names
from guidehall.core.access import may_read
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, NotFound, from_rpc_error

MOST_INPUTS = 32


@dataclass(frozen=True)
class _Dataset:
    project: str
    owner: str
    readers: tuple[str, ...]


class Datasets:
    """Asks storage, as this service; whose dataset a caller may use is decided here, by the common rule."""

    def __init__(self, channel: grpc.aio.Channel, call_seconds: float) -> None:
        self._stub = datasets_pb2_grpc.DatasetsServiceStub(channel)
        self._call_seconds = call_seconds

    async def pin(
        self, principal: Principal, inputs: Mapping[str, str], pinned: dict[str, str]
    ) -> dict[str, str]:
        """The same inputs with "latest" made a number.

        Args:
            principal: who wants to read them.
            inputs: names of versions by role.
            pinned: what names mean that the caller was told before; what is found out is added.

        Raises:
            InvalidArgument: too many, or a version that is not there or that the caller may not read.
            Unavailable: storage cannot be asked.
        """
        if len(inputs) > MOST_INPUTS:
            raise InvalidArgument.field("inputs", f"{len(inputs)} inputs", f"at most {MOST_INPUTS}")
        for role, name in inputs.items():
            if name not in pinned:
                pinned[name] = await self._pin(principal, f"inputs.{role}", name)
        return {role: pinned[name] for role, name in inputs.items()}

    async def _pin(self, principal: Principal, field: str, name: str) -> str:
        names.version_of(names.DATASET_VERSION.parse(name, field), field)
        request = datasets_pb2.GetDatasetVersionRequest(name=name)
        try:
            version = await self._stub.GetDatasetVersion(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            refused = from_rpc_error(error)
            if isinstance(refused, NotFound):
                raise _unknown(field, name) from None
            raise refused from None
        ids = names.DATASET_VERSION.parse(version.name)
        if not may_read(principal, _Dataset(ids["project"], version.owner, tuple(version.readers))):
            raise _unknown(field, name)
        return str(version.name)


def _unknown(field: str, name: str) -> InvalidArgument:
    return InvalidArgument.field(field, name, "a dataset version that you can read")
