"""Connections to other services: one channel per target and process, and what every call carries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from guidehall.core.auth import (
    DELEGABLE,
    ON_BEHALF_OF,
    PLATFORM,
    Principal,
    TokenIssuer,
    current_principal,
    encode_delegation,
)
from guidehall.core.deadlines import time_remaining
from guidehall.core.errors import PermissionDenied, Unauthenticated
from guidehall.core.settings import ChannelSettings
from guidehall.core.telemetry import inject
from guidehall.core.tls import channel_credentials

# Left for the way back, so that an answer still fits into the caller's own deadline.
DEADLINE_MARGIN_SECONDS = 0.05
TOKEN_TTL_SECONDS = 600.0


def open_channel(
    settings: ChannelSettings,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    idempotent: Sequence[str] = (),
) -> grpc.aio.Channel:
    """A channel that re-resolves, balances, keeps itself alive, and takes messages up to an explicit size.

    Args:
        settings: where to, and how.
        interceptors: such as `credentials_interceptors`.
        idempotent: what may be asked again when the server was away, as "package.Service" or
            "package.Service/Method". Streams are repeated only until their first answer.

    Raises:
        SettingsError: the certificates cannot be read.
    """
    target = settings.target if "://" in settings.target else f"dns:///{settings.target}"
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.max_send_message_length", settings.max_send_bytes),
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", round(settings.max_reconnect_backoff_seconds * 1000)),
        ("grpc.service_config", _service_config(idempotent)),
        # A proxy in the environment is not meant for our own services.
        ("grpc.enable_http_proxy", 0),
    ]
    if settings.tls.enabled:
        credentials = channel_credentials(settings.tls)
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=list(interceptors))
    return grpc.aio.insecure_channel(target, options=options, interceptors=list(interceptors))


def _service_config(idempotent: Sequence[str]) -> str:
    """Retries are gRPC's own, and throttled, so that an outage is not made worse."""
    names = []
    for name in idempotent:
        service, _, method = name.partition("/")
        names.append({"service": service, "method": method} if method else {"service": service})
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
            "methodConfig": [{"name": names, "retryPolicy": retry}] if names else [],
        }
    )


class ServiceTokens:
    """A service's own token, made anew before it runs out."""

    def __init__(self, issuer: TokenIssuer, audience: str | Sequence[str] = PLATFORM) -> None:
        self._issuer = issuer
        self._audience = audience
        self._token = ""
        self._renew_at = 0.0

    def __call__(self) -> str:
        if time.monotonic() >= self._renew_at:
            self._token = self._issuer.mint(
                self._issuer.issuer, "service", ttl_seconds=TOKEN_TTL_SECONDS, audience=self._audience
            )
            self._renew_at = time.monotonic() + TOKEN_TTL_SECONDS / 2
        return self._token


def credentials_interceptors(
    token: Callable[[], str], *, delegate: bool = False
) -> list[grpc.aio.ClientInterceptor]:
    """What every call to another service carries: who asks, for whom, its trace, the time that is left.

    Args:
        token: gives the bearer token, such as a `ServiceTokens`.
        delegate: act for the caller of the request at hand where there is one. A call for anybody but a user
            or a guest raises PermissionDenied.
    """
    attach = _Attach(token, delegate)
    kinds: tuple[Any, ...] = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
    return [kind(attach) for kind in kinds]


class _Attach:
    def __init__(self, token: Callable[[], str], delegate: bool) -> None:
        self._token = token
        self._delegate = delegate

    def __call__(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        headers: dict[str, str] = {}
        inject(headers)
        carried = {name for name, _ in details.metadata or ()}
        if "authorization" not in carried:
            headers["authorization"] = f"Bearer {self._token()}"
            principal = _caller() if self._delegate else None
            if principal is not None:
                # Without the header the call would be the service's own, with all that a service may do.
                if principal.kind not in DELEGABLE:
                    message = f"no service acts for a {principal.kind}"
                    raise PermissionDenied(message, reason="WRONG_KIND")
                headers[ON_BEHALF_OF] = encode_delegation(principal)
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *headers.items())
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=_timeout(details.timeout),
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


def _timeout(wanted: float | None) -> float | None:
    """What a call may take: no more than is left of the request that it is made for."""
    remaining = time_remaining()
    if remaining is None:
        return wanted
    remaining -= DEADLINE_MARGIN_SECONDS
    if remaining <= 0:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            nothing,
            nothing,
            "no time is left to call another service",
            None,
        )
    return remaining if wanted is None else min(wanted, remaining)


def _caller() -> Principal | None:
    try:
        return current_principal()
    except Unauthenticated:
        return None


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, attach: _Attach) -> None:
        self._attach = attach

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._attach(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, attach: _Attach) -> None:
        self._attach = attach

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._attach(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, attach: _Attach) -> None:
        self._attach = attach

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._attach(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, attach: _Attach) -> None:
        self._attach = attach

    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._attach(client_call_details), request_iterator)
