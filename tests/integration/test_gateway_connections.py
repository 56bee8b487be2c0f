"""The gateway as a process: what it does about clients that leave it waiting."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from guidehall.local.identity import Identity
from tests.fixtures.certificates import Authority
from tests.fixtures.gateway import WAIT_SECONDS, Gateway, environment
from tests.fixtures.storage import StorageSite
from tests.processes import Program

HEAD = b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
# The connection may be gone before it has told why.
_REFUSED = (ssl.SSLError, ConnectionError)


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    identity = Identity(tmp_path / "identity")
    identity.ensure()
    return identity


@pytest.fixture
def start(identity: Identity) -> Iterator[Callable[..., Gateway]]:
    with ExitStack() as stack:

        def run(**settings: object) -> Gateway:
            gateway = Gateway(identity, **settings)
            stack.callback(gateway.stop)
            return gateway

        yield run


def _status(gateway: Gateway, trusted: Path, *shown: Path) -> int:
    """What a request over TLS is answered by."""
    context = ssl.create_default_context(cafile=trusted)
    if shown:
        context.load_cert_chain(*shown)
    connection = HTTPSConnection("127.0.0.1", gateway.port, timeout=WAIT_SECONDS, context=context)
    try:
        connection.request("GET", "/api/v1/health")
        return connection.getresponse().status
    finally:
        connection.close()


def test_with_a_client_authority_only_its_clients_are_served_over_https(
    start: Callable[..., Gateway], authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("gateway")
    own = {"HTTP__TLS__CERT_FILE": cert, "HTTP__TLS__KEY_FILE": key}
    assert _status(start(**own), authority.file) == HTTPStatus.OK

    mutual = start(**own, HTTP__TLS__CLIENT_CA_FILE=authority.file)
    assert _status(mutual, authority.file, *authority.issue("client")) == HTTPStatus.OK
    with pytest.raises(_REFUSED):
        _status(mutual, authority.file)
    with pytest.raises(_REFUSED):
        _status(mutual, authority.file, *stranger.issue("foreigner"))


def test_a_renewed_certificate_counts_without_a_restart_over_https(
    start: Callable[..., Gateway], authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("gateway")
    settings = {"CERT_FILE": cert, "KEY_FILE": key, "CLIENT_CA_FILE": authority.file, "RELOAD_SECONDS": 0.001}
    gateway = start(**{f"HTTP__TLS__{name}": value for name, value in settings.items()})
    client = authority.issue("client")
    assert _status(gateway, authority.file, *client) == HTTPStatus.OK

    stranger.issue("gateway")

    assert _status(gateway, stranger.file, *client) == HTTPStatus.OK
    with pytest.raises(_REFUSED):
        _status(gateway, stranger.file)


@pytest.mark.parametrize("broken", ["missing", "mismatched"])
def test_certificates_that_cannot_be_used_stop_the_start(
    authority: Authority, identity: Identity, tmp_path: Path, broken: str
) -> None:
    cert, key = authority.issue("gateway")
    cert = {"missing": tmp_path / "none", "mismatched": authority.issue("other")[0]}[broken]

    gateway = Program(
        "services.gateway",
        "serve",
        environ=environment(identity, HTTP__TLS__CERT_FILE=cert, HTTP__TLS__KEY_FILE=key),
    )

    assert gateway.wait() == 1
    assert "tls: " in gateway.log[-1]


def _to_the_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes; a test that waits too long fails."""
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_in_single_mode_no_header_names_another_caller(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    head = HEAD.replace(b"health", b"jobs") + b"X-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n"
    # This machine's user, whose job service is away.
    assert _to_the_end(start().connect(head)).startswith(b"HTTP/1.1 503")


def test_a_head_that_does_not_come_whole_in_time_ends_its_connection(start: Callable[..., Gateway]) -> None:
    gateway = start(HTTP__HEAD_SECONDS=1)
    silent, begun = gateway.connect(), gateway.connect(HEAD, b"X-A: ")
    # It has had one answer, and is now as slow with the next request.
    second = gateway.connect(HEAD, b"\r\n")
    with second.makefile("rb") as answer:
        assert answer.readline().startswith(b"HTTP/1.1 200")
    second.sendall(b"GET /")
    for connection in (silent, begun):
        assert _to_the_end(connection) == b""
    assert b"HTTP/1.1" not in _to_the_end(second)


def test_more_bytes_do_not_prolong_the_time_for_a_head(start: Callable[..., Gateway]) -> None:
    gateway = start(HTTP__HEAD_SECONDS=1)
    with gateway.connect(HEAD) as connection:
        connection.settimeout(0.1)
        for _ in range(WAIT_SECONDS * 10):
            try:
                connection.sendall(b"X: y\r\n")
                assert connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
    raise AssertionError("it still listens")


def test_a_body_that_does_not_come_whole_in_time_is_a_408(start: Callable[..., Gateway]) -> None:
    gateway = start(HTTP__BODY_SECONDS=0.5)
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    answer = _to_the_end(gateway.connect(head, b"Content-Length: 100\r\n\r\n{"))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer


def _to_storage(start: Callable[..., Gateway], storage: StorageSite, **settings: object) -> Gateway:
    """A gateway of the platform that `storage` belongs to, with little patience."""
    keys = {
        "AUTH__SERVICE_KEY_FILE": storage.identity.key_file("gateway"),
        "AUTH__TRUST_FILE": storage.identity.trust_file,
    }
    return start(STORAGE__TARGET=storage.target, HTTP__IDLE_SECONDS=0.5, **keys, **settings)


def _versions(dataset: str) -> str:
    return f"/api/v1/datasets/{dataset}/versions"


@pytest.mark.slow
def test_an_upload_that_falls_silent_is_a_408(start: Callable[..., Gateway], storage: StorageSite) -> None:
    gateway = _to_storage(start, storage)
    head = f"POST {_versions('silent')}?filename=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    for begun in (b"", b"12"):
        answer = _to_the_end(gateway.connect(head.encode(), begun))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in answer


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_cut_off(start: Callable[..., Gateway], storage: StorageSite) -> None:
    gateway = _to_storage(start, storage, HTTP__MAX_CONNECTIONS=2)
    # More than the kernel holds for a reader.
    content = bytes(40 << 20)
    uploading = HTTPConnection("127.0.0.1", gateway.port, timeout=WAIT_SECONDS)
    uploading.request("POST", _versions("unread") + "?filename=a", content)
    assert uploading.getresponse().status == HTTPStatus.CREATED
    uploading.close()
    head = f"GET {_versions('unread')}/1/content HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with gateway.connect(head.encode()) as unread:
        answers = [_to_the_end(gateway.connect(HEAD, b"Connection: close\r\n\r\n"))]
        give_up = time.monotonic() + WAIT_SECONDS
        while not answers[-1].startswith(b"HTTP/1.1 200") and time.monotonic() < give_up:
            answers.append(_to_the_end(gateway.connect(HEAD, b"Connection: close\r\n\r\n")))
        assert answers[-1].startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionError):
            assert len(_to_the_end(unread)) < len(content)


def test_connections_over_the_limit_are_told_503(start: Callable[..., Gateway]) -> None:
    gateway = start(HTTP__MAX_CONNECTIONS=3)
    with gateway.connect(), gateway.connect():
        over = gateway.connect(HEAD, b"Connection: close\r\n\r\n")
        assert _to_the_end(over).startswith(b"HTTP/1.1 503")


def test_it_takes_all_the_open_files_that_it_may_have(start: Callable[..., Gateway]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    try:
        gateway = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE) == (hard, hard)
