"""What every command that asks a service starts with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guidehall.cli import _profiles

if TYPE_CHECKING:
    from guidehall.cli._profiles import Profile
    from guidehall.client import Client

# While somebody waits for a word to be completed.
_COMPLETION_SECONDS = 2.0

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document instead of text; JSON lines for streams."
)


@dataclass(frozen=True)
class Stack:
    """What the stack of this machine has written down; empty without one."""

    gateway: str = ""
    token_file: str = ""


def stack() -> Stack:
    """The stack of this machine."""
    from guidehall.client._endpoints import data_folder

    try:
        known = json.loads((data_folder() / "endpoints.json").read_text(encoding="utf-8"))
        token_file = (known.get("credentials") or {}).get("token_file", "")
        return Stack(str(known.get("gateway", "")), str(token_file))
    except (OSError, ValueError, AttributeError, TypeError):
        return Stack()


def connect(ctx: click.Context | None = None) -> Client:
    """A client as the options in front of the command want it; use it in a `with`.

    Services that are named are those; else those of the server where one has logged in; else the stack of
    this machine. A credential goes only to the server that it is for.
    """
    from guidehall.client import Client

    ctx = ctx or click.get_current_context()
    options = ctx.find_root().params
    timeout = _COMPLETION_SECONDS if ctx.resilient_parsing else options["timeout"]
    endpoints: str | dict[str, str] | None = options["endpoints"]
    profile = profile_in_use(options["endpoints"])
    token: str | Callable[[], str] | None
    if profile is None:
        token = None if endpoints else own_token()
    else:
        endpoints = endpoints or profile.endpoints or None
        token = None if _is_token_given() else partial(_profiles.credential, profile.server)
    return Client(endpoints, token, timeout=timeout, project=options["project"])


def profile_in_use(given: str | None) -> Profile | None:
    """The profile of the server that commands are for; None where there is none.

    Args:
        given: the option --endpoints.
    """
    from guidehall.client._endpoints import Endpoints

    named = given or os.environ.get("GUIDEHALL_ENDPOINTS")
    if named:
        return _profiles.of_endpoints(Endpoints.find(named).addresses())
    profile = _profiles.current()
    if profile is not None and not profile.endpoints and profile.server != stack().gateway:
        # Of a stack that was here once.
        return None
    return profile


def own_token() -> str | None:
    """The administrator's token of the stack of this machine, for who started it, unless another is named."""
    if _is_token_given() or os.environ.get("GUIDEHALL_ENDPOINTS"):
        return None
    try:
        path = Path(stack().token_file)
        return path.read_text(encoding="ascii") if path.stat().st_uid == os.geteuid() else None
    except (OSError, ValueError):
        # None runs here, or it needs no token.
        return None


def _is_token_given() -> bool:
    return any(os.environ.get(f"GUIDEHALL_{name}") for name in ("TOKEN", "TOKEN_FILE"))
