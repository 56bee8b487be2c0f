"""How the client's gRPC channels are set up, blocking or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from guidehall import __version__
from guidehall.client._config import Tls
from guidehall.client._endpoints import Endpoint
from guidehall.client._steps import Rpc
from guidehall.core.errors import AppError, DeadlineExceeded, InvalidArgument, Unavailable, from_rpc_error

_MEGABYTE = 1 << 20
_LARGEST_ANSWER_BYTES = 64 * _MEGABYTE
# Calls of the client may be repeated: submissions carry a request id, the others read or are idempotent by
# definition.
_RETRIED_SERVICES = (
    "guidehall.jobs.v1.JobsService",
    "guidehall.workers.v1.PoolsService",
    "guidehall.datasets.v1.DatasetsService",
    "guidehall.models.v1.ModelsService",
    "guidehall.results.v1.ResultsService",
    "guidehall.identity.v1.IdentityService",
    "guidehall.prediction.v1.PredictionService",
    "guidehall.reflectometry.v1.ReflectometryService",
)
# Streams go on from where they ended. A credential would be made twice, with nobody holding the first.
_NOT_RETRIED = (
    ("guidehall.workers.v1.PoolsService", "CreateWorkerCredential"),
    ("guidehall.identity.v1.IdentityService", "CreateApiKey"),
    ("guidehall.jobs.v1.JobsService", "WatchJob"),
    ("guidehall.datasets.v1.DatasetsService", "UploadDatasetVersion"),
    ("guidehall.datasets.v1.DatasetsService", "DownloadDatasetVersion"),
    ("guidehall.models.v1.ModelsService", "DownloadModelVersion"),
    ("guidehall.results.v1.ResultsService", "DownloadArtifact"),
    ("guidehall.results.v1.ResultsService", "DownloadJobLog"),
)
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
    "methodConfig": [
        {"name": [{"service": service, "method": method} for service, method in _NOT_RETRIED]},
        {
            "name": [{"service": service} for service in _RETRIED_SERVICES],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
    ],
}


def _options(endpoint: Endpoint) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", _LARGEST_ANSWER_BYTES),
        ("grpc.max_send_message_length", _LARGEST_ANSWER_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A server that restarts is found again within the time that streams are given to recover.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.primary_user_agent", f"guidehall/{__version__}"),
    ]
    if endpoint.is_on_this_machine:
        # A proxy for the outside world would not lead back to this machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def open_channel(
    endpoint: Endpoint, tls: Tls, insecure: Callable[..., Any], secure: Callable[..., Any]
) -> Any:
    """A channel to `endpoint`, made by `insecure` or `secure` of `grpc` or of `grpc.aio`.

    Raises:
        InvalidArgument: a certificate file cannot be read.
    """
    target = f"dns:///{endpoint.address}"
    if not endpoint.secure:
        return insecure(target, options=_options(endpoint))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file),
        private_key=_read(tls.key_file),
        certificate_chain=_read(tls.cert_file),
    )
    return secure(target, credentials, options=_options(endpoint))


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument.field("tls", str(path), "a readable PEM file") from error


def failure(rpc: Rpc, endpoint: Endpoint, error: Any) -> AppError:
    """The error that the service sent, or a plain sentence when nothing came from it.

    Args:
        error: a `grpc.RpcError`, whose stubs know nothing of what it carries.
    """
    decoded = from_rpc_error(error)
    if _from_service(error):
        return decoded
    service = f"the {rpc.service} service at {endpoint.address}"
    metadata = {"service": rpc.service, "address": endpoint.address}
    if isinstance(decoded, DeadlineExceeded):
        return DeadlineExceeded(f"{service} did not answer in time", reason="NO_ANSWER", metadata=metadata)
    if isinstance(decoded, Unavailable):
        # With certificates much can be wrong that looks the same from here: the transport knows better.
        why = f": {error.details()}" if endpoint.secure else ""
        return Unavailable(f"{service} cannot be reached{why}", reason="CANNOT_REACH", metadata=metadata)
    return decoded


def _from_service(error: Any) -> bool:
    """Whether one of our services said it, rather than the transport."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
