"""Where one has logged in: a file of mode 0600 with a profile for each server.

A profile is named by its gateway's address. It holds an API key, or the tokens of a session, which are
refreshed here when they are about to expire: under a lock, for a refresh token is good once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Refreshed so long before its end: a call may be under way.
_MARGIN_SECONDS = 60.0
_REFRESH_SECONDS = 20.0


@dataclass(frozen=True)
class Profile:
    """One server, and who one is there.

    Attributes:
        server: address of the gateway.
        subject: the user.
        endpoints: of the services; empty for the stack of this machine, which writes them down itself.
        api_key: in the place of a session.
        access_token: of a session.
        access_expire_time: its end, in seconds since 1970.
        refresh_token: of a session.
    """

    server: str
    subject: str
    endpoints: dict[str, str] = field(default_factory=dict)
    api_key: str = field(default="", repr=False)
    access_token: str = field(default="", repr=False)
    access_expire_time: float = 0.0
    refresh_token: str = field(default="", repr=False)


def path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file."""
    folder = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "guidehall" / "profiles.json"


def current() -> Profile | None:
    """The profile of the server where one logged in last; None without any."""
    document = _read()
    return _profile(document, str(document.get("current", "")))


def of_server(server: str) -> Profile | None:
    """The profile of a server, by its gateway's address."""
    return _profile(_read(), server)


def of_endpoints(endpoints: Mapping[str, str]) -> Profile | None:
    """The profile of the server with these services."""
    document = _read()
    profiles = (_profile(document, server) for server in document.get("servers", {}))
    return next((item for item in profiles if item is not None and item.endpoints == endpoints), None)


def keep(profile: Profile) -> None:
    """Writes a profile down, which then is the current one."""
    with _locked():
        document = _read()
        _put(document, profile)
        document["current"] = profile.server
        _write(document)


def forget(server: str) -> None:
    """Removes a profile."""
    with _locked():
        document = _read()
        document.get("servers", {}).pop(server, None)
        if document.get("current") == server:
            document["current"] = ""
        _write(document)


def credential(server: str) -> str:
    """What a call to a server of a profile carries: the key, or the access token, refreshed if need be.

    Raises:
        Unauthenticated: the session has ended, or one has logged out.
        AppError: it could not be refreshed.
    """
    from guidehall.core.errors import Unauthenticated

    profile = of_server(server)
    if profile is not None and not _is_due(profile):
        return profile.api_key or profile.access_token
    with _locked():
        # Another command may have refreshed it meanwhile.
        document = _read()
        profile = _profile(document, server)
        if profile is None:
            raise Unauthenticated(f"log in first: guidehall login --server {server}", reason="NO_SESSION")
        if _is_due(profile):
            profile = _refreshed(profile)
            _put(document, profile)
            _write(document)
    return profile.api_key or profile.access_token


def with_tokens(profile: Profile, tokens: Mapping[str, Any]) -> Profile:
    """The profile with what the gateway answered to a log-in or a refresh."""
    return replace(
        profile,
        access_token=str(tokens["access_token"]),
        access_expire_time=_seconds(str(tokens["access_expire_time"])),
        # Empty where another program was quicker, which then has the next one.
        refresh_token=str(tokens.get("refresh_token") or profile.refresh_token),
    )


def _refreshed(profile: Profile) -> Profile:
    from guidehall.cli._gateway import Gateway
    from guidehall.core.errors import Unauthenticated

    gateway = Gateway(profile.server, _REFRESH_SECONDS)
    try:
        return with_tokens(profile, gateway.post("/auth/refresh", {"refresh_token": profile.refresh_token}))
    except Unauthenticated as error:
        raise Unauthenticated(
            f"the session at {profile.server} has ended; log in again: "
            f"guidehall login --server {profile.server}",
            reason=error.reason,
        ) from None


def _is_due(profile: Profile) -> bool:
    return not profile.api_key and time.time() > profile.access_expire_time - _MARGIN_SECONDS


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _profile(document: Mapping[str, Any], server: str) -> Profile | None:
    stored = document.get("servers", {}).get(server)
    if not isinstance(stored, dict):
        return None
    known = {name: stored[name] for name in Profile.__dataclass_fields__ if name in stored}
    try:
        return Profile(**{**known, "server": server})
    except TypeError:
        return None


def _put(document: dict[str, Any], profile: Profile) -> None:
    document.setdefault("servers", {})[profile.server] = asdict(profile)


def _read() -> dict[str, Any]:
    try:
        document = json.loads(path().read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write(document: Mapping[str, Any]) -> None:
    import tempfile

    target = path()
    # Files of tempfile are closed to everybody else from the start.
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keeps other commands from changing the file meanwhile, where the system has such locks."""
    folder = path().parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder / ".profiles.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
