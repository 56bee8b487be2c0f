"""Certificates for gRPC servers and channels, read again when their files change."""

from __future__ import annotations

import time
from pathlib import Path

import grpc

from guidehall.core.settings import TlsSettings


def server_credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate counts without a restart.

    Raises:
        ValueError: a certificate without its key, or the other way round.
    """
    if tls.cert_file is None or tls.key_file is None:
        raise ValueError("tls needs both cert_file and key_file")
    looked_at = 0.0
    stamps: tuple[int, ...] = ()
    files = [path for path in (tls.cert_file, tls.key_file, tls.client_ca_file) if path is not None]

    def configuration() -> grpc.ServerCertificateConfiguration:
        assert tls.cert_file is not None
        assert tls.key_file is not None
        return grpc.ssl_server_certificate_configuration(
            [(tls.key_file.read_bytes(), tls.cert_file.read_bytes())], root_certificates=_read(tls.client_ca_file)
        )

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal looked_at, stamps
        if time.monotonic() - looked_at < tls.reload_seconds:
            return None
        looked_at = time.monotonic()
        now = tuple(path.stat().st_mtime_ns for path in files)
        if now == stamps:
            return None
        stamps = now
        return configuration()

    stamps = tuple(path.stat().st_mtime_ns for path in files)
    return grpc.dynamic_ssl_server_credentials(
        configuration(), changed, require_client_authentication=tls.client_ca_file is not None
    )


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials:
    """A client's view: the authority it trusts and, for mTLS, its own certificate."""
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file), private_key=_read(tls.key_file), certificate_chain=_read(tls.cert_file)
    )


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
