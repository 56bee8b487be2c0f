"""What every command that asks a service starts with."""

from __future__ import annotations

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
    return Client(options["endpoints"], timeout=timeout, project=options["project"])
