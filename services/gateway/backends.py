"""The services behind the gateway: one channel each, for as long as the process lives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guidehall.contracts.datasets.v1 import datasets_pb2_grpc
from guidehall.contracts.identity.v1 import (
    accounts_pb2_grpc,
    audit_pb2_grpc,
    groups_pb2_grpc,
    identity_pb2_grpc,
    log_ins_pb2_grpc,
    personal_data_pb2_grpc,
)
from guidehall.contracts.jobs.v1 import jobs_pb2_grpc
from guidehall.contracts.models.v1 import models_pb2_grpc
from guidehall.contracts.prediction.v1 import prediction_pb2_grpc
from guidehall.contracts.reflectometry.v1 import reflectometry_pb2_grpc
from guidehall.contracts.results.v1 import history_pb2_grpc, results_pb2_grpc
from guidehall.contracts.usage.v1 import usage_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2_grpc
from guidehall.core import directory
from guidehall.core.channels import open_channel
from services.gateway.settings import GatewaySettings

_HEALTH_SECONDS = 1.0
_HEALTH_TIMEOUT_SECONDS = 2.0


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
            "storage": open_channel(settings.storage, interceptors, directory.IDEMPOTENT),
            "inference": open_channel(settings.inference, interceptors),
        }
        trainer, storage, inference = self._channels.values()
        self.jobs = jobs_pb2_grpc.JobsServiceStub(trainer)
        self.pools = workers_pb2_grpc.PoolsServiceStub(trainer)
        self.datasets = datasets_pb2_grpc.DatasetsServiceStub(storage)
        self.upload_roles = datasets_pb2_grpc.UploadRolesServiceStub(storage)
        self.models = models_pb2_grpc.ModelsServiceStub(storage)
        self.results = results_pb2_grpc.ResultsServiceStub(storage)
        self.history = history_pb2_grpc.HistoryServiceStub(storage)
        self.identity = identity_pb2_grpc.IdentityServiceStub(storage)
        self.groups = groups_pb2_grpc.GroupsServiceStub(storage)
        self.accounts = accounts_pb2_grpc.AccountsServiceStub(storage)
        self.audit = audit_pb2_grpc.AuditServiceStub(storage)
        self.personal_data = personal_data_pb2_grpc.PersonalDataServiceStub(storage)
        self.usage = usage_pb2_grpc.UsageServiceStub(storage)
        self.log_ins = log_ins_pb2_grpc.LogInsServiceStub(storage)
        self.directory = directory.RemoteDirectory(storage, settings.auth.lookups.call_seconds)
        self.prediction = prediction_pb2_grpc.PredictionServiceStub(inference)
        self.reflectometry = reflectometry_pb2_grpc.ReflectometryServiceStub(inference)
        self._health: asyncio.Future[dict[str, bool]] | None = None
        self._health_until = 0.0
        self.timeouts = Timeouts(settings.call_seconds, settings.analysis_seconds, settings.transfer_seconds)

    async def health(self) -> dict[str, bool]:
        """Which services answer and say that they serve, as of at most a second ago: anybody may ask."""
        now = asyncio.get_running_loop().time()
        if self._health is None or now >= self._health_until:
            self._health = asyncio.ensure_future(self._ask_health())
            self._health_until = now + _HEALTH_SECONDS
        # Shielded: others wait for the same answer.
        return await asyncio.shield(self._health)

    async def _ask_health(self) -> dict[str, bool]:
        serving = await asyncio.gather(*map(_is_serving, self._channels.values()))
        return dict(zip(self._channels, serving, strict=True))

    async def close(self) -> None:
        """Ends every channel."""
        for channel in self._channels.values():
            await channel.close(None)


async def _is_serving(channel: grpc.aio.Channel) -> bool:
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_SECONDS
        )
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
