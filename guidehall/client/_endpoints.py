"""Finds the services: given, in GUIDEHALL_ENDPOINTS, or where `guidehall up` wrote them down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidehall.client._refusal import refusal
from guidehall.core.errors import InvalidArgument, Unavailable

SERVICES = ("trainer", "storage", "inference")
_FORM = "trainer=HOST:PORT,storage=HOST:PORT,inference=HOST:PORT"
_TARGET = re.compile(
    r"(?:(?P<scheme>grpc|grpcs)://)?(?P<address>(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5})/?"
)
_OWN_HOST = re.compile(r"(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::\d+)?", re.IGNORECASE)
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Endpoint:
    """Address of one service."""

    address: str
    secure: bool

    @property
    def is_on_this_machine(self) -> bool:
        """Whether calls to it never leave this machine."""
        return is_on_this_machine(self.address)


@dataclass(frozen=True)
class Endpoints:
    """Addresses of the services; one that is missing is an error only when it is called."""

    services: Mapping[str, Endpoint]

    def __getitem__(self, service: str) -> Endpoint:
        if service not in self.services:
            known = ", ".join(sorted(self.services)) or "none"
            raise refusal("endpoints", f"there is no address for {service}, only for: {known}")
        return self.services[service]

    def addresses(self) -> dict[str, str]:
        """As text, by service, in the form that `find` takes."""
        return {
            service: f"grpcs://{endpoint.address}" if endpoint.secure else endpoint.address
            for service, endpoint in self.services.items()
        }

    @classmethod
    def find(
        cls, given: Mapping[str, str] | str | Path | None, environ: Mapping[str, str] = os.environ
    ) -> Endpoints:
        """From `given`, else from the environment, else from the stack on this machine.

        Args:
            given: addresses by service, the same as text (`trainer=host:port,…`), or the path of an
                endpoints.json.

        Raises:
            InvalidArgument: something that is no address.
            Unavailable: nothing was given and no stack has been started here.
        """
        if isinstance(given, Mapping):
            return cls._of(given, "endpoints")
        if given:
            return cls._from_text(str(given), "endpoints")
        if environ.get("GUIDEHALL_ENDPOINTS"):
            return cls._from_text(environ["GUIDEHALL_ENDPOINTS"], "GUIDEHALL_ENDPOINTS")
        path = data_folder(environ) / "endpoints.json"
        if not path.is_file():
            raise Unavailable(
                "no running stack found: start one with `guidehall up`, or name a running one in "
                f"GUIDEHALL_ENDPOINTS ({_FORM}, or the path of an endpoints.json)",
                reason="NO_STACK_FOUND",
                metadata={"looked_at": str(path)},
            )
        return cls._from_file(path)

    @classmethod
    def _from_text(cls, text: str, field: str) -> Endpoints:
        if "=" not in text:
            path = Path(text).expanduser()
            if not path.is_file():
                raise InvalidArgument.field(field, text, f"{_FORM}, or the path of an endpoints.json")
            return cls._from_file(path)
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return cls._of({key.strip(): value.strip() for key, _, value in pairs}, field)

    @classmethod
    def _from_file(cls, path: Path) -> Endpoints:
        try:
            with path.open(encoding="utf-8") as file:
                document = json.loads(file.read(_LARGEST_FILE))
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path}: cannot be read as an endpoints file") from error
        if not isinstance(document, dict):
            raise InvalidArgument(f"{path}: cannot be read as an endpoints file")
        # The file says more than this, such as the gateway's address.
        return cls._of({key: value for key, value in document.items() if key in SERVICES}, str(path))

    @classmethod
    def _of(cls, targets: Mapping[str, Any], field: str) -> Endpoints:
        services = {}
        for service, target in targets.items():
            if service not in SERVICES:
                raise InvalidArgument.field(field, service, f"services are {', '.join(SERVICES)}")
            match = _TARGET.fullmatch(target) if isinstance(target, str) else None
            if match is None:
                raise InvalidArgument.field(
                    f"{field}.{service}", target, "host:port, or grpcs://host:port with TLS"
                )
            services[service] = Endpoint(match["address"], match["scheme"] == "grpcs")
        return cls(services)


def is_on_this_machine(address: str) -> bool:
    """Whether a host, with a port or without one, is this machine's own."""
    return _OWN_HOST.fullmatch(address) is not None


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the stack of this machine keeps everything."""
    return Path(environ.get("GUIDEHALL_DATA") or "~/.local/share/guidehall").expanduser()
