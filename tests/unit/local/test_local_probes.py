from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guidehall.local.probes import is_ready, metric_label, unreached


@contextmanager
def _answering(answer: bytes) -> Iterator[int]:
    """A server that answers every connection with the same bytes; it answers nothing if there are none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1024)
                connection.sendall(answer)
                if not answer:
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "answer", "ready"),
    [
        ("http", b"HTTP/1.0 200 OK\r\n\r\n", True),
        ("http", b"HTTP/1.0 503 Starting\r\n\r\n", False),
        ("http", b"gibberish\r\n\r\n", False),
        ("s3", b"HTTP/1.0 403 Forbidden\r\n\r\n", True),
        ("s3", b"HTTP/1.0 503 Starting\r\n\r\n", False),
        ("postgres", b"R\0\0\0\x17", True),
        ("postgres", b"E\0\0\0\x17", False),
        ("postgres", b"", False),
        ("http", b"", False),
    ],
)
def test_a_server_is_ready_when_it_says_so(scheme: str, answer: bytes, ready: bool) -> None:
    with _answering(answer) as port:
        assert is_ready(f"{scheme}://127.0.0.1:{port}", timeout=0.2) is ready


@pytest.mark.parametrize("scheme", ["http", "s3", "postgres", "grpc"])
def test_nothing_is_ready_where_nobody_listens(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert not is_ready(f"{scheme}://127.0.0.1:{port}")


METRICS = b"""HTTP/1.0 200 OK\r\n\r
# HELP engine_info What calculates
# TYPE engine_info gauge
engine_info{engine="c (avx2)",more="x"} 1.0
"""


@pytest.mark.parametrize(
    ("answer", "metric", "label", "value"),
    [
        (METRICS, "engine_info", "engine", "c (avx2)"),
        (METRICS, "engine_info", "more", "x"),
        (METRICS, "engine_info", "nothing", ""),
        (METRICS, "engine", "engine", ""),
        (b"gibberish\r\n\r\n", "engine_info", "engine", ""),
        (b"", "engine_info", "engine", ""),
    ],
)
def test_a_label_of_a_metric_is_read(answer: bytes, metric: str, label: str, value: str) -> None:
    with _answering(answer) as port:
        assert metric_label(f"http://127.0.0.1:{port}", metric, label, timeout=0.2) == value


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (b'{"status": "degraded", "services": {"trainer": false, "storage": true}}', ("trainer",)),
        (b'{"status": "ready", "services": {"trainer": true}}', ()),
        (b'{"status": "ready"}', ()),
        (b"[]", ()),
        (b"gibberish", ()),
    ],
)
def test_the_gateway_says_which_services_it_does_not_reach(answer: bytes, missing: tuple[str, ...]) -> None:
    with _answering(b"HTTP/1.0 200 OK\r\n\r\n" + answer) as port:
        assert unreached(f"http://127.0.0.1:{port}", timeout=0.2) == missing
