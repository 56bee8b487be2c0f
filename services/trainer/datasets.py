"""Datasets that jobs read: storage has them, a job pins a version."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.core import names
from guidehall.core.errors import InvalidArgument, NotFound, from_rpc_error


class Datasets:
    """Asks storage on behalf of the caller of the request at hand."""

    def __init__(self, channel: grpc.aio.Channel, call_seconds: float) -> None:
        self._stub = datasets_pb2_grpc.DatasetsServiceStub(channel)
        self._call_seconds = call_seconds

    async def pin(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """The same inputs with "latest" made a number.

        Raises:
            InvalidArgument: a version that is not there, or that the caller may not read.
            Unavailable: storage cannot be asked.
        """
        return {role: await self._pin(f"inputs.{role}", name) for role, name in inputs.items()}

    async def _pin(self, field: str, name: str) -> str:
        names.version_of(names.DATASET_VERSION.parse(name, field), field)
        request = datasets_pb2.GetDatasetVersionRequest(name=name)
        try:
            version = await self._stub.GetDatasetVersion(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            refused = from_rpc_error(error)
            if isinstance(refused, NotFound):
                raise InvalidArgument.field(field, name, "a dataset version that you can read") from None
            raise refused from None
        return str(version.name)
