"""The gRPC server that every service starts: health, reflection, and an end that lets calls finish."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from guidehall.core.audit import Counts
from guidehall.core.auth import Authenticator, Policy
from guidehall.core.rpc_chain import Chain, Limits
from guidehall.core.settings import GrpcSettings
from guidehall.core.tls import server_credentials

# For calls that were cut off, to write down what they leave; what is set is the drain time before it.
_CLEARING_SECONDS = 5.0


@dataclass(frozen=True)
class Service:
    """One gRPC service to register."""

    full_name: str
    add_to_server: Callable[[Any, Any], None]
    servicer: object


class GrpcServer:
    """A server of some services.

    Args:
        settings: the listener; port 0 takes a free one.
        services: what it serves.
        authenticator: who calls.
        policies: who may call what, by full method name or by "/package.Service/*". What neither names is
            refused.
        counts: of calls for the audit log; none are kept without.

    Raises:
        ValueError: a policy names a method that is not served.
    """

    def __init__(
        self,
        settings: GrpcSettings,
        services: Sequence[Service],
        authenticator: Authenticator,
        policies: Mapping[str, Policy],
        counts: Counts | None = None,
    ) -> None:
        _check_methods(services, policies)
        self._settings = settings
        # Set when the server is to end: a method that would go on for ever ends then.
        self.draining = asyncio.Event()
        limits = Limits(
            settings.default_deadline_seconds, settings.max_deadline_seconds, settings.max_struct_bytes
        )
        self._chain = Chain(authenticator, policies, limits, counts)
        self._server = grpc.aio.server(interceptors=[self._chain], options=_options(settings))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._serving = {"": True} | {service.full_name: True for service in services}
        for service in services:
            service.add_to_server(service.servicer, self._server)
        if settings.reflection:
            names = [
                *(service.full_name for service in services),
                health.SERVICE_NAME,
                reflection.SERVICE_NAME,
            ]
            reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Binds and serves; every service is SERVING unless `set_serving` said otherwise before.

        Returns:
            The port.

        Raises:
            OSError: the address is taken or not ours.
            SettingsError: the certificates cannot be used.
        """
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.port}"
        try:
            if settings.tls.enabled:
                port = self._server.add_secure_port(address, server_credentials(settings.tls))
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise OSError(
                errno.EADDRINUSE, f"cannot listen on {address}: in use, or no address of this machine"
            )
        for name, serving in self._serving.items():
            await self._health.set(name, _status(serving))
        await self._server.start()
        return port

    async def set_serving(self, name: str, serving: bool) -> None:
        """What health says of a service; "" is the process."""
        self._serving[name] = serving
        await self._health.set(name, _status(serving))

    async def stop(self) -> None:
        """Takes no new call, says so in its health, and lets running calls finish within the drain time."""
        self.draining.set()
        await self._health.enter_graceful_shutdown()
        self._chain.end_watchers()
        await self._server.stop(self._settings.drain_seconds)
        # It has cancelled what was left, but does not wait for what these calls have to clear away.
        await self._chain.ended(_CLEARING_SECONDS)


async def until_signalled() -> None:
    """Returns when the process is asked to end (SIGTERM or SIGINT)."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


def _options(settings: GrpcSettings) -> list[tuple[str, int]]:
    return [
        # Without this a second server binds the same port silently and they share the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.max_send_message_length", settings.max_send_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients ping no more often than every 20 s (ChannelSettings); a server that forbids it hangs up.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_seconds * 1000)),
    ]


def _status(serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING


def _check_methods(services: Sequence[Service], policies: Mapping[str, Policy]) -> None:
    """A policy for a method that is not served is a slip that leaves another one closed."""
    served = set()
    for service in services:
        descriptor = descriptor_pool.Default().FindServiceByName(service.full_name)
        served |= {f"/{service.full_name}/{name}" for name in ("*", *descriptor.methods_by_name)}
    unknown = sorted(set(policies) - served)
    if unknown:
        raise ValueError(f"policies for methods that are not served: {', '.join(unknown)}")
