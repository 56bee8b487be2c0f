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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guidehall.core.errors import FailedPrecondition

# Refreshed so long before its end: a call may be under way.
_MARGIN_SECONDS = 60.0
_REFRESH_SECONDS = 20.0
_KINDS: dict[str, type | tuple[type, ...]] = {
    "subject": str,
    "endpoints": dict,
    "api_key": str,
    "access_token": str,
    "access_expire_time": (int, float),
    "refresh_token": str,
}


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
    """The profile of the server where one logged in last; None without any.

    Raises:
        FailedPrecondition: the file cannot be read, here as everywhere else.
    """
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
    if stored is None:
        return None
    # Of a newer release there may be more.
    known = {name: stored[name] for name in Profile.__dataclass_fields__ if name in stored}
    return Profile(**{**known, "server": server})


def _put(document: dict[str, Any], profile: Profile) -> None:
    document.setdefault("servers", {})[profile.server] = asdict(profile)


def _read() -> dict[str, Any]:
    """What the file says; empty without one. A damaged one is nobody's to overwrite: it may hold sessions."""
    try:
        document = json.loads(path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _damaged(error.strerror or "it cannot be read") from error
    except UnicodeDecodeError as error:
        raise _damaged("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise _damaged(f"not JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    if (problem := _problem(document)) is not None:
        raise _damaged(problem)
    return document  # type: ignore[no-any-return]


def _problem(document: Any) -> str | None:
    """What is wrong with the file's document; no value of it is told, for some are secrets."""
    if not isinstance(document, dict):
        return "not a JSON object"
    if not isinstance(document.get("current", ""), str):
        return "current is no text"
    servers = document.get("servers", {})
    if not isinstance(servers, dict):
        return "servers is no object"
    for server, stored in servers.items():
        where = f"servers.{server[:200]!r}"
        if not isinstance(stored, dict):
            return f"{where} is no object"
        for name, kind in _KINDS.items():
            if name in stored and not isinstance(stored[name], kind):
                return f"{where}.{name} is of the wrong type"
        if "subject" not in stored:
            return f"{where}.subject is missing"
        if not all(isinstance(address, str) for address in stored.get("endpoints", {}).values()):
            return f"{where}.endpoints has something that is no address"
    return None


def _damaged(problem: str) -> FailedPrecondition:
    from guidehall.core.errors import FailedPrecondition

    return FailedPrecondition(
        f"{path()}: {problem}; mend the file, or remove it and log in again", reason="PROFILES_DAMAGED"
    )


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
