"""Encrypted connections: gRPC with certificates that change while it runs, and the event bus."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guidehall.core.auth import Authenticator
from guidehall.core.bus import EventBus
from guidehall.core.channels import open_channel
from guidehall.core.grpc_server import GrpcServer
from guidehall.core.settings import (
    AuthSettings,
    ChannelSettings,
    GrpcSettings,
    NatsSettings,
    SettingsError,
    TlsSettings,
)
from guidehall.core.tls import client_context
from guidehall.local.binaries import find_program

pytestmark = pytest.mark.timeout(60)


class Authority:
    """A certificate authority of a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key files for this machine's address; both replaced when they are there."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            self._builder(subject, key)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        contents = (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        for file, content in zip(files, contents, strict=True):
            fresh = file.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.replace(file)
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "strangers")


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


async def test_the_event_bus_is_encrypted_with_a_certificate_on_both_sides(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue("broker")
    own, own_key = authority.issue("client")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    broker = await asyncio.create_subprocess_exec(
        str(find_program("nats-server")), "--addr", "127.0.0.1", "--port", str(port), "--tlsverify",
        "--tlscert", str(cert), "--tlskey", str(key), "--tlscacert", str(authority.file),
        "--jetstream", "--store_dir", str(tmp_path / "store"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        settings = NatsSettings(url=f"tls://127.0.0.1:{port}", connect_seconds=5.0)
        tls = TlsSettings(ca_file=authority.file, cert_file=own, key_file=own_key)
        bus = await EventBus.connect(settings.model_copy(update={"tls": tls}), "test", owns_streams=True)
        assert bus.connected
        await bus.provision()
        await bus.publish("jobs.cpu", b"x", "a")
        await bus.close()

        quick = {"connect_seconds": 0.5, "tls": TlsSettings(ca_file=stranger.file)}
        suspicious = await EventBus.connect(settings.model_copy(update=quick), "test")
        assert not suspicious.connected
        await suspicious.close()
    finally:
        broker.terminate()
        await broker.wait()
