"""The services behind the gateway: one channel each, for as long as the process lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guidehall.contracts.datasets.v1 import datasets_pb2_grpc
from guidehall.contracts.identity.v1 import identity_pb2_grpc
from guidehall.contracts.jobs.v1 import jobs_pb2_grpc
from guidehall.contracts.models.v1 import models_pb2_grpc
from guidehall.contracts.prediction.v1 import prediction_pb2_grpc
from guidehall.contracts.reflectometry.v1 import reflectometry_pb2_grpc
from guidehall.contracts.results.v1 import results_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2_grpc
from guidehall.core.channels import open_channel
from services.gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Timeouts:
    """Deadlines in seconds, by what is asked."""

    call: float
    analysis: float
    transfer: float


class Backends:
    """Stubs of every service the gateway speaks to."""

    def __init__(self, settings: GatewaySettings, interceptors: Sequence[grpc.aio.ClientInterceptor]) -> None:
        self._channels = {
            "trainer": open_channel(settings.trainer, interceptors),
            "storage": open_channel(settings.storage, interceptors),
            "inference": open_channel(settings.inference, interceptors),
        }
        trainer, storage, inference = self._channels.values()
        self.jobs = jobs_pb2_grpc.JobsServiceStub(trainer)
        self.pools = workers_pb2_grpc.PoolsServiceStub(trainer)
        self.datasets = datasets_pb2_grpc.DatasetsServiceStub(storage)
        self.models = models_pb2_grpc.ModelsServiceStub(storage)
        self.results = results_pb2_grpc.ResultsServiceStub(storage)
        self.identity = identity_pb2_grpc.IdentityServiceStub(storage)
        self.prediction = prediction_pb2_grpc.PredictionServiceStub(inference)
        self.reflectometry = reflectometry_pb2_grpc.ReflectometryServiceStub(inference)
        self.timeouts = Timeouts(settings.call_seconds, settings.analysis_seconds, settings.transfer_seconds)

    async def health(self, timeout_seconds: float = 2.0) -> dict[str, bool]:
        """Which services answer and say that they serve."""
        result = {}
        for name, channel in self._channels.items():
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=timeout_seconds
                )
            except grpc.aio.AioRpcError:
                result[name] = False
            else:
                result[name] = answer.status == health_pb2.HealthCheckResponse.SERVING
        return result

    async def close(self) -> None:
        """Ends every channel."""
        for channel in self._channels.values():
            await channel.close(None)
