"""What every command that asks a service starts with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from guidehall.client import Client

# While somebody waits for a word to be completed.
_COMPLETION_SECONDS = 2.0

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document instead of text; JSON lines for streams."
)


def connect(ctx: click.Context | None = None) -> Client:
    """A client as the options in front of the command want it; use it in a `with`."""
    from guidehall.client import Client

    ctx = ctx or click.get_current_context()
    options = ctx.find_root().params
    timeout = _COMPLETION_SECONDS if ctx.resilient_parsing else options["timeout"]
    token = None if options["endpoints"] else own_token()
    return Client(options["endpoints"], token, timeout=timeout, project=options["project"])


def own_token() -> str | None:
    """The administrator's token of the stack of this machine, for who started it, unless another is named."""
    from guidehall.client._endpoints import data_folder

    if any(os.environ.get(f"GUIDEHALL_{name}") for name in ("ENDPOINTS", "TOKEN", "TOKEN_FILE")):
        return None
    try:
        known = json.loads((data_folder() / "endpoints.json").read_text(encoding="utf-8"))
        path = Path(known["credentials"]["token_file"])
        return path.read_text(encoding="ascii") if path.stat().st_uid == os.geteuid() else None
    except (OSError, ValueError, KeyError, TypeError):
        # None runs here, or it needs no token.
        return None
