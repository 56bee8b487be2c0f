"""The operators' port of a process."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from guidehall.core.settings import OpsSettings
from guidehall.core.telemetry.logs import LEVELS

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 200


class OpsServer:
    """GET /metrics, GET /health, GET and PUT /log-level, in threads of their own.

    Args:
        settings: the address; port 0 takes a free one.
        ready: whether the process can do its work now; asked from other threads, so free of asyncio.
        missing: what it waits for, for people; asked likewise when it is not ready.

    Raises:
        OSError: the address is taken or not this machine's.
    """

    def __init__(
        self, settings: OpsSettings, ready: Callable[[], bool], missing: Callable[[], Sequence[str]] = tuple
    ) -> None:
        handler = _handler(ready, missing, settings.request_seconds)
        try:
            self._server = _Server((settings.host, settings.port), handler)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The base class would ask the name service who we are, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])


def _handler(
    ready: Callable[[], bool], missing: Callable[[], Sequence[str]], request_seconds: float
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = request_seconds

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(HTTPStatus.OK, generate_latest(), CONTENT_TYPE_LATEST)
            elif path == "/health":
                good = _ask(ready)
                body: dict[str, object] = {"ready": good}
                if not good and (lacking := list(missing())):
                    body["missing"] = lacking
                self._answer_json(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, body)
            elif path == "/log-level":
                self._answer_json(HTTPStatus.OK, {"level": _level()})
            else:
                self._answer_json(
                    HTTPStatus.NOT_FOUND, {"error": "there are /metrics, /health and /log-level"}
                )

        def do_PUT(self) -> None:
            level = _wanted_level(self._body())
            if self.path != "/log-level" or level is None:
                error = "PUT /log-level takes one of " + ", ".join(LEVELS)
                self._answer_json(HTTPStatus.BAD_REQUEST, {"error": error})
                return
            logging.getLogger().setLevel(level)
            logger.warning("log level is now %s", level)
            self._answer_json(HTTPStatus.OK, {"level": level})

        def _body(self) -> bytes:
            length = self.headers.get("content-length", "")
            return self.rfile.read(min(int(length), _MAX_BODY_BYTES)) if length.isdecimal() else b""

        def _answer_json(self, status: HTTPStatus, body: dict[str, object]) -> None:
            self._answer(status, json.dumps(body).encode(), "application/json")

        def _answer(self, status: HTTPStatus, body: bytes, media_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds: not logged."""

    return Handler


def _ask(ready: Callable[[], bool]) -> bool:
    try:
        return bool(ready())
    except Exception:
        logger.exception("the readiness check failed")
        return False


def _wanted_level(body: bytes) -> str | None:
    """The level that a body asks for, as plain text or as the JSON that GET answers; None if it is none."""
    text = body.decode("utf-8", "replace").strip()
    try:
        document = json.loads(text)
    except ValueError:
        document = text
    level = document.get("level") if isinstance(document, dict) else document
    return level.upper() if isinstance(level, str) and level.upper() in LEVELS else None


def _level() -> str:
    return logging.getLevelName(logging.getLogger().level)
