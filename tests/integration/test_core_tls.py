"""Encrypted gRPC, with certificates that change while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guidehall.core.auth import Authenticator
from guidehall.core.channels import open_channel
from guidehall.core.grpc_server import GrpcServer
from guidehall.core.settings import (
    AuthSettings,
    ChannelSettings,
    GrpcSettings,
    SettingsError,
    TlsSettings,
)
from guidehall.core.tls import client_context
from tests.fixtures.certificates import Authority

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def serving(tls: TlsSettings) -> AsyncIterator[int]:
    server = GrpcServer(GrpcSettings(tls=tls), [], Authenticator(AuthSettings(), "toy"), {})
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop()


async def answers(port: int, tls: TlsSettings) -> bool:
    """Whether a new connection to the server comes about."""
    async with open_channel(ChannelSettings(target=f"127.0.0.1:{port}", tls=tls)) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        code = await check.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


async def test_only_the_right_authority_is_trusted(authority: Authority, stranger: Authority) -> None:
    cert, key = authority.issue("server")
    async with serving(TlsSettings(cert_file=cert, key_file=key)) as port:
        assert await answers(port, TlsSettings(ca_file=authority.file))
        assert not await answers(port, TlsSettings(ca_file=stranger.file))
        assert not await answers(port, TlsSettings())


async def test_with_a_client_authority_only_its_clients_are_served(
    authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("server")
    own, own_key = authority.issue("client")
    foreign, foreign_key = stranger.issue("foreigner")
    async with serving(TlsSettings(cert_file=cert, key_file=key, client_ca_file=authority.file)) as port:
        assert await answers(port, TlsSettings(ca_file=authority.file, cert_file=own, key_file=own_key))
        assert not await answers(port, TlsSettings(ca_file=authority.file))
        assert not await answers(
            port, TlsSettings(ca_file=authority.file, cert_file=foreign, key_file=foreign_key)
        )


async def test_a_renewed_certificate_counts_without_a_restart(
    authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("server")
    async with serving(TlsSettings(cert_file=cert, key_file=key, reload_seconds=0.001)) as port:
        assert await answers(port, TlsSettings(ca_file=authority.file))

        stranger.issue("server")

        assert await answers(port, TlsSettings(ca_file=stranger.file))


async def test_a_certificate_without_its_key_changes_nothing(
    authority: Authority, stranger: Authority
) -> None:
    cert, key = authority.issue("server")
    async with serving(TlsSettings(cert_file=cert, key_file=key, reload_seconds=0.001)) as port:
        good = key.read_bytes()
        stranger.issue("server")
        key.write_bytes(good)
        assert await answers(port, TlsSettings(ca_file=authority.file))
        cert.unlink()
        assert await answers(port, TlsSettings(ca_file=authority.file))

        stranger.issue("server")

        assert await answers(port, TlsSettings(ca_file=stranger.file))


@pytest.mark.parametrize("broken", ["missing", "mismatched", "client side only"])
async def test_a_server_does_not_start_with_bad_certificates(
    authority: Authority, tmp_path: Path, broken: str
) -> None:
    cert, key = authority.issue("server")
    _, other = authority.issue("other")
    tls = {
        "missing": TlsSettings(cert_file=tmp_path / "none", key_file=key),
        "mismatched": TlsSettings(cert_file=cert, key_file=other),
        "client side only": TlsSettings(ca_file=authority.file),
    }[broken]

    with pytest.raises(SettingsError, match="tls"):
        async with serving(tls):
            pass


def test_a_client_says_which_file_it_cannot_read(authority: Authority, tmp_path: Path) -> None:
    tls = TlsSettings(ca_file=tmp_path / "none")

    for use in (client_context, lambda tls: open_channel(ChannelSettings(target="127.0.0.1:1", tls=tls))):
        with pytest.raises(SettingsError, match="tls"):
            use(tls)
