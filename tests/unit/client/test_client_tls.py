"""Encrypted connections: the server proves who it is, and where it asks, the client does."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from guidehall.client import Client, Tls
from guidehall.client.errors import Unavailable
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc


class _Jobs(jobs_pb2_grpc.JobsServiceServicer):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        self.tokens.append(dict(context.invocation_metadata())["authorization"])
        return jobs_pb2.Job(name=request.name)


@dataclass(frozen=True)
class _Authority:
    """Signs certificates into files of one folder."""

    folder: Path

    def certificate(self, name: str, issuer: str | None = None) -> tuple[Path, Path]:
        """Files of a new certificate and its key, signed by `issuer` or by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        signer = self._key(issuer) if issuer else key
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer or name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(minutes=10))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
            )
        )
        certificate = builder.sign(signer, hashes.SHA256())
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key((self.folder / f"{name}.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


@pytest.fixture
def authority(tmp_path: Path) -> _Authority:
    authority = _Authority(tmp_path)
    authority.certificate("ca")
    return authority


@pytest.fixture
def server(authority: _Authority) -> Iterator[tuple[_Jobs, str]]:
    """A server that has a certificate and asks its clients for theirs."""
    certificate, key = authority.certificate("server", "ca")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=(authority.folder / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    jobs = _Jobs()
    running = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    jobs_pb2_grpc.add_JobsServiceServicer_to_server(jobs, running)
    port = running.add_secure_port("127.0.0.1:0", credentials)
    running.start()
    yield jobs, f"grpcs://127.0.0.1:{port}"
    running.stop(None).wait()


def _ask(target: str, tls: Tls) -> str:
    with Client({"trainer": target}, token="secret", tls=tls, timeout=10) as client:
        return client.job("0a1b2c3d-0000-4000-8000-000000000000").id


def test_both_sides_prove_who_they_are(server: tuple[_Jobs, str], authority: _Authority) -> None:
    certificate, key = authority.certificate("client", "ca")
    jobs, target = server

    assert _ask(target, Tls(authority.folder / "ca.pem", certificate, key)).startswith("0a1b2c3d")

    assert jobs.tokens == ["Bearer secret"]


def test_token_is_not_sent_to_a_server_that_proves_nothing(
    server: tuple[_Jobs, str], authority: _Authority
) -> None:
    certificate, key = authority.certificate("client", "ca")
    other, _ = authority.certificate("other")
    jobs, target = server

    for tls in (Tls(other, certificate, key), Tls(None, certificate, key)):
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            _ask(target, tls)

    assert jobs.tokens == []


def test_client_without_certificate_is_not_let_in(server: tuple[_Jobs, str], authority: _Authority) -> None:
    jobs, target = server

    with pytest.raises(Unavailable):
        _ask(target, Tls(authority.folder / "ca.pem"))

    assert jobs.tokens == []
