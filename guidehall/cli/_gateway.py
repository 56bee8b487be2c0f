"""A platform's gateway over HTTP: what logging in needs, which gRPC does not offer to strangers."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

if TYPE_CHECKING:
    from guidehall.core.errors import AppError

_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_LARGEST_ANSWER = 1 << 20


class _NoRedirects(HTTPRedirectHandler):
    """A credential goes to the server that was named, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Gateway:
    """One gateway.

    Args:
        url: such as "https://guidehall.example"; a path and a slash at its end are no part of it.
        timeout_seconds: of one request.

    Raises:
        InvalidArgument: it is no such address.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        from guidehall.core.errors import InvalidArgument

        self.url = url.strip().rstrip("/")
        if not _URL.fullmatch(self.url):
            raise InvalidArgument.field("server", url, "http:// or https://, a host, and a port if need be")
        self._timeout_seconds = timeout_seconds

    @property
    def is_readable_on_the_way(self) -> bool:
        """Whether others on the network can read what is sent."""
        return self.url.startswith("http://") and not self._is_on_this_machine

    @property
    def _is_on_this_machine(self) -> bool:
        from guidehall.client._endpoints import is_on_this_machine

        return is_on_this_machine(self.url.partition("://")[2])

    def get(self, path: str, credential: str = "") -> dict[str, Any]:
        """The JSON object at `path`.

        Raises:
            AppError: what the gateway answered, or Unavailable.
        """
        return self._ask("GET", path, None, credential)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that is answered to `body`; empty where nothing is.

        Raises:
            AppError: what the gateway answered, or Unavailable.
        """
        return self._ask("POST", path, body, "")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, credential: str) -> dict[str, Any]:
        from guidehall.core.errors import Unavailable

        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if credential:
            headers["Authorization"] = f"Bearer {credential}"
        request = Request(self.url + path, data, headers, method=method)  # noqa: S310 (checked above)
        handlers: list[Any] = [_NoRedirects, HTTPSHandler(context=_tls())]
        if self._is_on_this_machine:
            # A proxy for the outside world would not lead back to this machine.
            handlers.append(ProxyHandler({}))
        try:
            with build_opener(*handlers).open(request, timeout=self._timeout_seconds) as answer:
                return _object(answer.read(_LARGEST_ANSWER))
        except HTTPError as error:
            with error:
                raise _refusal(error.code, _object(error.read(_LARGEST_ANSWER))) from None
        except (URLError, HTTPException, TimeoutError, OSError) as error:
            why = getattr(error, "reason", None) or error
            raise Unavailable(
                f"the gateway at {self.url} cannot be reached: {why}", reason="CANNOT_REACH"
            ) from error


def _tls() -> ssl.SSLContext:
    """As for gRPC: GUIDEHALL_CA_FILE, else the roots of the system; a certificate of one's own if need be."""
    context = ssl.create_default_context(cafile=os.environ.get("GUIDEHALL_CA_FILE") or None)
    cert, key = os.environ.get("GUIDEHALL_CERT_FILE"), os.environ.get("GUIDEHALL_KEY_FILE")
    if cert:
        context.load_cert_chain(cert, key or None)
    return context


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data) if data else {}
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}


def _refusal(status: int, body: Mapping[str, Any]) -> AppError:
    """The problem details of an answer as the error that a service would raise."""
    from guidehall.core import errors

    usual = (kind for kind in errors.AppError.__subclasses__() if errors.HTTP_STATUS[kind.code] == status)
    other = errors.InvalidArgument if 400 <= status < 500 else errors.Internal
    # Several codes have one status; the first is the most general, but of 500.
    kind = other if status == errors.HTTP_STATUS[errors.Code.INTERNAL] else next(usual, other)
    return kind(
        str(body.get("detail") or f"the gateway answered with status {status}"),
        reason=str(body.get("reason") or f"HTTP_{status}"),
    )
