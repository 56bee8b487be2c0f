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
    files = _ServerFiles(tls)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration(),
        files.changed,  # type: ignore[arg-type]  # the stubs forget that None is an answer
        require_client_authentication=tls.client_ca_file is not None,
    )


def server_context(tls: TlsSettings) -> ssl.SSLContext:
    """The same for servers that are not gRPC.

    Raises:
        SettingsError: as above.
    """
    files = _ServerFiles(tls)
    current = context = files.context()

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal current
        if files.changed() is not None:
            current = files.context()
        connection.context = current

    context.sni_callback = renew
    return context


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
    """The same for connections that are not gRPC; None when nothing is set.

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


def fault(error: BaseException | None, group: str) -> str | None:
    """What a connection that did not come about says of its certificates, and which setting that is.

    Args:
        error: why it did not; what it comes from counts too.
        group: of the connection's settings, such as "postgres".

    Returns:
        None when the error is about something else.
    """
    while error is not None and not isinstance(error, ssl.SSLError):
        # urllib3 makes errors out of others without raising them from those.
        held = next((part for part in error.args if isinstance(part, BaseException)), None)
        error = error.__cause__ or error.__context__ or held
    if error is None:
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{group}.tls.ca_file does not vouch for the server: {error.verify_message}"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "certificate" in reason or "unknown ca" in reason:
        return f"{group}.tls.cert_file is not what the server asks for: {reason}"
    return f"{group}.tls: no encrypted connection comes about: {reason}"


class _ServerFiles:
    """Looks for changed files no more often than it is told to; gRPC asks at every handshake."""

    def __init__(self, tls: TlsSettings) -> None:
        if tls.cert_file is None or tls.key_file is None:
            raise SettingsError("tls: a server needs cert_file and key_file")
        self._cert, self._key, self._client_ca = tls.cert_file, tls.key_file, tls.client_ca_file
        self._reload_seconds = tls.reload_seconds
        self._looked_at = time.monotonic()
        self._stamps = self._look()

    def context(self) -> ssl.SSLContext:
        """What the files hold now.

        Raises:
            SettingsError: they cannot be read, or certificate and key do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            files = ", ".join(str(file) for file in (self._cert, self._key, self._client_ca) if file)
            raise SettingsError(f"tls: {files} cannot be used: {error.strerror or error}") from None
        return context

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        # Half-written or mismatched files would break every handshake until the next look.
        self.context()
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
