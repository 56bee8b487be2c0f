"""The gRPC server that every service starts: one way through trace, authentication, deadline, validation, metrics and
errors for every call, health and reflection, and an end that lets running calls finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client import Counter, Gauge, Histogram

from guidehall.core.auth import Authenticator, Policy, set_principal
from guidehall.core.deadlines import set_deadline
from guidehall.core.errors import (
    AppError,
    Code,
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    to_status,
)
from guidehall.core.settings import GrpcSettings
from guidehall.core.telemetry import begin_request
from guidehall.core.tls import server_credentials
from guidehall.core.validation import validate

logger = logging.getLogger(__name__)

# What anybody may ask, without a credential.
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_CALLS = Counter("guidehall_rpc", "Finished calls", ["method", "code"])
_SECONDS = Histogram("guidehall_rpc_seconds", "How long calls took", ["method"])
_RUNNING = Gauge("guidehall_rpc_running", "Calls being answered", ["method"])


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
        policies: who may call what, by full method name or by "/package.Service/*". A method that neither names is
            refused.
    """

    def __init__(
        self,
        settings: GrpcSettings,
        services: Sequence[Service],
        authenticator: Authenticator,
        policies: Mapping[str, Policy],
    ) -> None:
        self._settings = settings
        keepalive_ms = round(settings.keepalive_seconds * 1000)
        age_ms = round(settings.max_connection_age_seconds * 1000)
        self._server = grpc.aio.server(
            interceptors=[_Chain(authenticator, policies, settings.default_deadline_seconds)],
            options=[
                # Without this a second server binds the same port silently and they share the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", settings.max_receive_bytes),
                ("grpc.max_send_message_length", settings.max_send_bytes),
                ("grpc.keepalive_time_ms", keepalive_ms),
                ("grpc.keepalive_permit_without_calls", 1),
                # Clients ping no more often than every 20 s (ChannelSettings); a server that forbids it hangs up.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.max_connection_age_ms", age_ms),
                ("grpc.max_connection_age_grace_ms", 3_600_000),
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = [service.full_name for service in services]
        for service in services:
            service.add_to_server(service.servicer, self._server)
        if settings.reflection:
            names = [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Binds and serves; every service starts as SERVING.

        Returns:
            The port.

        Raises:
            OSError: the address is taken or not ours.
        """
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            if self._settings.tls.enabled:
                port = self._server.add_secure_port(address, server_credentials(self._settings.tls))
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise OSError(f"cannot listen on {address}: the address is in use or not this machine's")
        await self._server.start()
        for name in ("", *self._names):
            await self.set_serving(name, True)
        return port

    async def set_serving(self, name: str, serving: bool) -> None:
        """What health says of a service; "" is the process."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    async def stop(self) -> None:
        """Says that it no longer serves, takes no new call, and lets running ones finish within the drain time."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)


async def until_signalled() -> None:
    """Returns when the process is asked to end (SIGTERM or SIGINT)."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


class _Chain(grpc.aio.ServerInterceptor):
    """The one way every call takes. gRPC handles each call in a task of its own, so context set here ends with it."""

    def __init__(
        self, authenticator: Authenticator, policies: Mapping[str, Policy], default_deadline_seconds: float
    ) -> None:
        self._authenticator = authenticator
        self._policies = policies
        self._default_deadline_seconds = default_deadline_seconds

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN):
            return handler
        return self._wrap(handler, method)

    def _wrap(self, handler: Any, method: str) -> Any:
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                with _Measured(method) as measured:
                    try:
                        self._begin(method, context, None)
                        _validate(request)
                        async for message in behaviour(request, context):
                            yield message
                    except Exception as error:
                        await measured.fail(context, error)

            wrap = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return wrap(stream, **codec)

        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        default = None if handler.request_streaming else self._default_deadline_seconds

        async def unary(request: Any, context: Any) -> Any:
            with _Measured(method) as measured:
                try:
                    seconds = self._begin(method, context, default)
                    _validate(request)
                    async with asyncio.timeout(seconds):
                        return await behaviour(request, context)
                except TimeoutError:
                    await measured.fail(context, DeadlineExceeded(f"{method} took longer than its deadline"))
                except Exception as error:
                    await measured.fail(context, error)

        wrap = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        return wrap(unary, **codec)

    def _begin(self, method: str, context: Any, default_deadline_seconds: float | None) -> float | None:
        """Trace, authentication, authorisation, deadline.

        Returns:
            Seconds the call may take; None for no bound.
        """
        metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        begin_request(metadata)
        principal = self._authenticator.authenticate(metadata, context.peer())
        self._policy(method).check(principal, method)
        set_principal(principal)
        remaining = context.time_remaining()
        seconds = default_deadline_seconds if remaining is None else remaining
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded("the deadline had passed on arrival")
        set_deadline(seconds)
        return seconds

    def _policy(self, method: str) -> Policy:
        policy = self._policies.get(method) or self._policies.get(method.rsplit("/", 1)[0] + "/*")
        if policy is None:
            raise PermissionDenied(f"{method} is not open to anybody", metadata={"method": method})
        return policy


def _validate(request: Any) -> None:
    if isinstance(request, Message):
        validate(request)


class _Measured:
    """Counts and times one call, and turns what goes wrong into its status."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._code = "OK"

    def __enter__(self) -> _Measured:
        self._start = time.perf_counter()
        _RUNNING.labels(self._method).inc()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._code = Code.CANCELLED.name
        _RUNNING.labels(self._method).dec()
        _CALLS.labels(self._method, self._code).inc()
        _SECONDS.labels(self._method).observe(time.perf_counter() - self._start)

    async def fail(self, context: Any, error: Exception) -> None:
        """Ends the call with the error's status; always raises."""
        if isinstance(error, grpc.aio.AbortError):
            self._code = "ABORTED_BY_HANDLER"
            raise error
        if not isinstance(error, AppError):
            error_id = uuid.uuid4().hex
            logger.error("%s failed (error %s)", self._method, error_id, exc_info=error)
            error = Internal("internal error", metadata={"error_id": error_id})
        self._code = error.code.name
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
