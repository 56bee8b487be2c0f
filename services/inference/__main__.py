"""The inference service: `python -m services.inference serve|config`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence

import grpc
import uvloop
from prometheus_client import Info

from guidehall.contracts.inference.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from guidehall.contracts.prediction.v1.prediction_pb2_grpc import add_PredictionServiceServicer_to_server
from guidehall.contracts.reflectometry.v1.reflectometry_pb2_grpc import (
    add_ReflectometryServiceServicer_to_server,
)
from guidehall.core import directory
from guidehall.core.audit import Counts, sender
from guidehall.core.auth import Authenticator, KeyPair, Policy, Role, TokenIssuer
from guidehall.core.bus import EventBus
from guidehall.core.channels import ServiceTokens, credentials_interceptors, open_channel
from guidehall.core.grpc_server import GrpcServer, Service, until_signalled
from guidehall.core.settings import SettingsError, config_command, log_settings
from guidehall.core.telemetry import OpsServer, configure_logging, configure_tracing
from guidehall.science.reflectometry import engine as reflectometry_engine
from services.inference import audit, events, source
from services.inference.analysis import ReflectometryAnalysis
from services.inference.cache import DiskCache
from services.inference.dataplane import DataPlane
from services.inference.execution import Engine
from services.inference.refinement import RefinementPool
from services.inference.repository import Repository
from services.inference.servicers import open_inference, prediction, reflectometry
from services.inference.settings import InferenceSettings
from services.inference.source import StorageSource

SERVICE_NAME = "inference"
_USAGE = "usage: python -m services.inference serve|config"

_log = logging.getLogger(__name__)

_IDEMPOTENT = (*source.IDEMPOTENT, *audit.IDEMPOTENT, *directory.IDEMPOTENT)

# Everybody with a role may ask; what they see is decided model by model.
_ASK = Policy(kinds=frozenset({"user", "guest", "service"}))
_MANAGE = Policy(kinds=frozenset({"user", "service"}), min_role=Role.SCIENTIST)
POLICIES = {
    f"/{open_inference.FULL_NAME}/*": _ASK,
    f"/{open_inference.FULL_NAME}/RepositoryModelLoad": _MANAGE,
    f"/{open_inference.FULL_NAME}/RepositoryModelUnload": _MANAGE,
    f"/{prediction.FULL_NAME}/*": _ASK,
    f"/{reflectometry.FULL_NAME}/*": _ASK,
}


async def serve(settings: InferenceSettings) -> None:
    """Serves until the process is asked to end."""
    async with contextlib.AsyncExitStack() as stack:
        engine = Engine(settings.execution)
        stack.callback(engine.close)
        refinement = RefinementPool(settings.refinement)
        stack.callback(refinement.close)
        channel = await stack.enter_async_context(
            open_channel(settings.storage, _credentials(settings), _IDEMPOTENT)
        )
        cache = DiskCache(settings.cache_dir.expanduser(), settings.repository.cache_bytes)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        repository = Repository(
            StorageSource(channel, settings.repository), cache, engine, settings.repository, tasks
        )
        stack.callback(repository.close)
        plane = DataPlane(repository, settings.execution.max_batch_rows)
        analysis = ReflectometryAnalysis(plane, engine, refinement, settings.analysis.max_candidates)
        ops = OpsServer(settings.ops, repository.ready.is_set, lambda: repository.missing)
        ops.start()
        stack.callback(ops.stop)
        log = audit.AuditLog(channel, SERVICE_NAME, settings.repository.list_timeout_seconds)
        services = _services(plane, analysis, log, settings)
        known = directory.RemoteDirectory(channel, settings.auth.lookups.call_seconds)
        authenticator = Authenticator(settings.auth, SERVICE_NAME, known)
        counts = Counts(SERVICE_NAME, sender(channel, settings.repository.list_timeout_seconds))
        server = GrpcServer(settings.grpc, services, authenticator, POLICIES, counts)
        port = await server.start()
        stack.push_async_callback(counts.close)
        stack.push_async_callback(server.stop)
        await server.set_serving(open_inference.FULL_NAME, False)
        calculates = reflectometry_engine.name()
        Info("guidehall_reflectometry_engine", "What calculates reflectivities here").info(
            {"engine": calculates}
        )
        _log.info(
            "listening",
            extra={
                "port": port,
                "ops_port": ops.port,
                "device": engine.device,
                "reflectometry_engine": calculates,
            },
        )
        background = [tasks.create_task(repository.run()), tasks.create_task(_announce(repository, server))]
        background.append(tasks.create_task(counts.run()))
        if settings.nats.url is not None:
            bus = await EventBus.connect(settings.nats, SERVICE_NAME)
            stack.push_async_callback(bus.close)
            background.append(tasks.create_task(events.follow(bus, repository)))
        await until_signalled()
        for task in background:
            task.cancel()


def _services(
    plane: DataPlane, analysis: ReflectometryAnalysis, log: audit.AuditLog, settings: InferenceSettings
) -> list[Service]:
    return [
        Service(
            open_inference.FULL_NAME,
            add_GRPCInferenceServiceServicer_to_server,
            open_inference.OpenInferenceServicer(plane, log),
        ),
        Service(
            prediction.FULL_NAME,
            add_PredictionServiceServicer_to_server,
            prediction.PredictionServicer(plane),
        ),
        Service(
            reflectometry.FULL_NAME,
            add_ReflectometryServiceServicer_to_server,
            reflectometry.ReflectometryServicer(analysis, settings.analysis.max_points),
        ),
    ]


async def _announce(repository: Repository, server: GrpcServer) -> None:
    await repository.ready.wait()
    await server.set_serving(open_inference.FULL_NAME, True)


def _credentials(settings: InferenceSettings) -> list[grpc.aio.ClientInterceptor]:
    """This service's own identity. Without a key it comes as any local caller does."""
    path = settings.auth.service_key_file
    if path is None:
        return []
    return credentials_interceptors(ServiceTokens(TokenIssuer(SERVICE_NAME, KeyPair.load(path))))


def main(arguments: Sequence[str]) -> int:
    """Runs the program.

    Returns:
        Exit status.
    """
    if arguments[:1] == ["config"]:
        config_command(InferenceSettings, list(arguments[1:]))
        return 0
    if list(arguments) != ["serve"]:
        print(_USAGE, file=sys.stderr)
        return 2
    status = 0
    try:
        settings = InferenceSettings.load()
        configure_logging(settings.log, SERVICE_NAME)
        configure_tracing(settings.telemetry, SERVICE_NAME)
        log_settings(settings)
        uvloop.run(serve(settings))
    except* (SettingsError, OSError) as group:
        print(f"inference: {group.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
