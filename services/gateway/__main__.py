"""`python -m services.gateway serve|config|openapi`"""

from __future__ import annotations

import json
import sys

import uvicorn

from guidehall.core.auth import Authenticator, KeyPair, TokenIssuer
from guidehall.core.channels import ServiceTokens, credentials_interceptors
from guidehall.core.settings import SettingsError, config_command, log_settings
from guidehall.core.telemetry import OpsServer, configure_logging, configure_tracing
from guidehall.core.tls import server_context
from services.gateway.app import create_app
from services.gateway.backends import Backends
from services.gateway.connections import ImpatientProtocol, allow_open_files
from services.gateway.identity import HttpIdentity
from services.gateway.settings import GatewaySettings

NAME = "gateway"


def serve() -> None:
    """Serves until it is told to end; running requests get the drain time."""
    settings = GatewaySettings.load()
    allow_open_files()
    configure_logging(settings.log, NAME)
    log_settings(settings)
    configure_tracing(settings.telemetry, NAME)
    if settings.auth.service_key_file is None:
        raise SettingsError(
            "GUIDEHALL_GATEWAY__AUTH__SERVICE_KEY_FILE: the gateway needs its key to call other services"
        )
    key = KeyPair.load(settings.auth.service_key_file)
    tokens = ServiceTokens(TokenIssuer(NAME, key))
    identity = HttpIdentity(settings.auth, Authenticator(settings.auth, NAME))
    app = create_app(
        settings,
        identity,
        lambda: Backends(settings, credentials_interceptors(tokens, delegate=True)),
        key.derive("browsers"),
    )
    http = settings.http
    context = server_context(http.tls) if http.tls.enabled else None
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=http.host,
            port=http.port,
            loop="uvloop",
            http=ImpatientProtocol.within(http.head_seconds, http.idle_seconds),
            limit_concurrency=http.max_connections,
            log_config=None,
            access_log=False,
            server_header=False,
            # In single mode the address that calls is its standing: no header may name another.
            proxy_headers=settings.auth.mode != "single",
            timeout_graceful_shutdown=round(http.drain_seconds),
            ssl_context_factory=None if context is None else lambda *_: context,
        )
    )
    ops = OpsServer(settings.ops, lambda: server.started)
    ops.start()
    try:
        server.run()
    finally:
        ops.stop()


def main() -> None:
    """Runs the command that the arguments name."""
    command, *rest = sys.argv[1:] or ["serve"]
    try:
        if command == "serve" and not rest:
            serve()
        elif command == "config":
            config_command(GatewaySettings, rest)
        elif command == "openapi" and not rest:
            settings = GatewaySettings()
            app = create_app(
                settings, HttpIdentity(settings.auth, Authenticator(settings.auth, NAME)), _no_backends
            )
            print(json.dumps(app.openapi(), indent=1, sort_keys=True))
        else:
            raise SystemExit("usage: python -m services.gateway serve | config [show] | openapi")
    except SettingsError as error:
        raise SystemExit(str(error)) from None


def _no_backends() -> Backends:
    raise RuntimeError("describing the interface opens no connection")


if __name__ == "__main__":
    main()
