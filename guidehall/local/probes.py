"""Is a server ready? One question for each kind of server, asked by URL."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

Address = tuple[str, int]

_LARGEST_METRICS = 4 << 20
_LARGEST_HEALTH = 64 << 10


def is_ready(url: str, timeout: float = 1.0) -> bool:
    """Whether the server at `url` answers that it is ready within `timeout` seconds.

    `http://host:port/path` is ready when it answers 2xx, `s3://host:port` when it answers as an HTTP server
    at all, `postgres://host:port` when it asks for a password, `grpc://host:port/service` when its health
    service says SERVING.
    """
    parts = urlsplit(url)
    try:
        return _PROBES[parts.scheme](parts, timeout)
    except (OSError, http.client.HTTPException):
        return False


def metric_label(url: str, metric: str, label: str, timeout: float = 1.0) -> str:
    """The value of `label` in the first line of `metric` that the server of metrics at `url` shows.

    Empty where there is no such server, no such metric or no such label.
    """
    try:
        _, body = _get(urlsplit(url), "/metrics", timeout, _LARGEST_METRICS)
    except (OSError, http.client.HTTPException):
        return ""
    text = body.decode(errors="replace")
    found = re.search(rf'^{re.escape(metric)}\{{[^}}]*\b{re.escape(label)}="([^"]*)"', text, re.MULTILINE)
    return found[1] if found else ""


def unreached(url: str, timeout: float = 3.0) -> tuple[str, ...]:
    """The services that the gateway at `url` says it does not reach; none where it says nothing."""
    try:
        _, body = _get(urlsplit(url), "/api/v1/health", timeout, _LARGEST_HEALTH)
        return tuple(name for name, serves in json.loads(body)["services"].items() if not serves)
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, AttributeError):
        return ()


def _get(parts: SplitResult, path: str, timeout: float, largest: int = 0) -> tuple[int, bytes]:
    """Status, and the body's first `largest` bytes."""
    connection = http.client.HTTPConnection(*_address(parts), timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(largest)
    finally:
        connection.close()


def _http(parts: SplitResult, timeout: float) -> bool:
    status, _ = _get(parts, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), timeout)
    return 200 <= status < 300


def _s3(parts: SplitResult, timeout: float) -> bool:
    status, _ = _get(parts, parts.path or "/", timeout)
    return status < 500


def _postgres(parts: SplitResult, timeout: float) -> bool:
    # A start-up message (protocol 3.0) and no more: a server that is up asks for a password ("R"), one that
    # is starting or stopping answers with an error ("E").
    parameters = b"user\0guidehall\0database\0guidehall\0\0"
    message = struct.pack("!ii", 8 + len(parameters), 3 << 16) + parameters
    with socket.create_connection(_address(parts), timeout=timeout) as connection:
        connection.sendall(message)
        # Read whole, or closing the connection would reset it and the server would log that.
        return connection.recv(1024).startswith(b"R")


def _grpc(parts: SplitResult, timeout: float) -> bool:
    # Connecting first keeps gRPC's own slow retries out of the way while nothing listens yet.
    socket.create_connection(_address(parts), timeout=timeout).close()
    import grpc

    service = parts.path.strip("/").encode()
    request = b"\x0a" + bytes([len(service)]) + service if service else b""
    with grpc.insecure_channel(parts.netloc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        try:
            # HealthCheckResponse{status: SERVING}
            return bool(check(request, timeout=timeout) == b"\x08\x01")
        except grpc.RpcError:
            return False


def _address(parts: SplitResult) -> Address:
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"no host and port in {parts.geturl()}")
    return parts.hostname, parts.port


_PROBES: dict[str, Callable[[SplitResult, float], bool]] = {
    "http": _http,
    "s3": _s3,
    "postgres": _postgres,
    "grpc": _grpc,
}
