"""Certificates: of gRPC servers, read again when their files change, of channels, of other connections."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

import grpc

from guidehall.core.settings import SettingsError, TlsSettings

logger = logging.getLogger(__name__)


def server_credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate counts without a restart.

    Raises:
        SettingsError: the files cannot be read, or certificate and key do not belong together.
    """
    if tls.cert_file is None or tls.key_file is None:
        raise SettingsError("tls: a server needs cert_file and key_file")
    files = _ServerFiles(tls.cert_file, tls.key_file, tls.client_ca_file, tls.reload_seconds)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration(),
        files.changed,  # type: ignore[arg-type]  # the stubs forget that None is an answer
        require_client_authentication=tls.client_ca_file is not None,
    )


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials:
    """A gRPC client's view: the authority it trusts and, for mTLS, its own certificate.

    Raises:
        SettingsError: the files cannot be read.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file) if tls.ca_file else None,
        private_key=_read(tls.key_file) if tls.key_file else None,
        certificate_chain=_read(tls.cert_file) if tls.cert_file else None,
    )


def client_context(tls: TlsSettings) -> ssl.SSLContext | None:
    """The same for connections that are not gRPC; None is plaintext.

    Raises:
        SettingsError: the files cannot be read, or certificate and key do not belong together.
    """
    if not tls.enabled:
        return None
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:
        raise SettingsError(f"tls: the certificate files cannot be used: {error.strerror or error}") from None
    return context


class _ServerFiles:
    """Looks for changed files no more often than it is told to; gRPC asks at every handshake."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None, reload_seconds: float) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._reload_seconds = reload_seconds
        self._looked_at = time.monotonic()
        self._stamps = self._look()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now.

        Raises:
            SettingsError: they cannot be read, or certificate and key do not belong together.
        """
        try:
            # Half-written or mismatched files would break every handshake until the next look.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
        except OSError as error:
            raise SettingsError(f"tls: {self._cert} and its key cannot be used: {error.strerror}") from None
        client_ca = None if self._client_ca is None else _read(self._client_ca)
        pair = (_read(self._key), _read(self._cert))
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=client_ca)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files' content when it changed and makes sense; None to go on with what there is."""
        if time.monotonic() - self._looked_at < self._reload_seconds:
            return None
        self._looked_at = time.monotonic()
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return None
            configuration = self.configuration()
        except SettingsError as error:
            logger.error("certificates not taken over: %s", error)
            return None
        self._stamps = stamps
        logger.info("certificates read again")
        return configuration

    def _look(self) -> list[tuple[int, int]]:
        files = [path for path in (self._cert, self._key, self._client_ca) if path is not None]
        try:
            return [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
        except OSError as error:
            raise SettingsError(f"tls: {error.filename} cannot be read: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"tls: {path} cannot be read: {error.strerror}") from None
