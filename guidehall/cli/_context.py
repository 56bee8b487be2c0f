"""What every command that asks a service starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from guidehall.client import Client

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document instead of text; JSON lines for streams."
)


@dataclass(frozen=True)
class Settings:
    """The options in front of the command."""

    endpoints: str | None
    project: str
    timeout: float


def connect() -> Client:
    """A client as the options in front of the command want it; use it in a `with`."""
    from guidehall.client import Client

    settings = click.get_current_context().find_object(Settings)
    if settings is None:
        raise RuntimeError("a command was started without its root")
    return Client(settings.endpoints, timeout=settings.timeout, project=settings.project)
