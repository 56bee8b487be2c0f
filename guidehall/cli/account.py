"""`guidehall login`, `logout`, `tokens`."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from guidehall.cli import _profiles
from guidehall.cli._context import connect, json_option, stack
from guidehall.cli._flags import DURATION
from guidehall.cli._output import age, clean, emit, short, table
from guidehall.cli._profiles import Profile

if TYPE_CHECKING:
    from guidehall.cli._gateway import Gateway

_ROLES = ("viewer", "scientist", "operator", "admin")


@click.command(
    epilog="""\b
Examples
  guidehall login --server https://guidehall.example            asks for a name, then as the server has it
  guidehall login --server https://guidehall.example --device   in a browser, here or elsewhere
  guidehall login --server https://guidehall.example --key < key.txt
"""
)
@click.option(
    "--server", metavar="URL", help="Its gateway. Else that of the platform of this machine is meant."
)
@click.option("--key", "by_key", is_flag=True, help="With an API key, which is asked for or read from input.")
@click.option("--user", metavar="NAME", help="With a local account; its password is asked for.")
@click.option(
    "--device", "by_device", is_flag=True, help="In a browser, on any machine: shows an address and a code."
)
@json_option
@click.pass_context
def login(
    ctx: click.Context, server: str | None, by_key: bool, user: str | None, by_device: bool, as_json: bool
) -> None:
    """Log in at a server: from then on every command is for it, and in your name."""
    from guidehall.cli._gateway import Gateway
    from guidehall.client._endpoints import Endpoints
    from guidehall.core.errors import InvalidArgument

    if by_key + bool(user) + by_device > 1:
        raise click.UsageError("--key, --user and --device exclude each other")
    # What is wrong with the file is said before a password is asked for.
    _profiles.current()
    options = ctx.find_root().params
    if server is None and not stack().gateway:
        raise InvalidArgument(
            "server: none runs on this machine; name one: guidehall login --server URL", reason="NO_SERVER"
        )
    gateway = Gateway(server or stack().gateway, options["timeout"])
    profile = Profile(gateway.url, "", endpoints=_endpoints(gateway, options["endpoints"]))
    if gateway.is_readable_on_the_way:
        click.echo(f"warning: what is sent to {gateway.url} is not encrypted", err=True)
    for service, endpoint in Endpoints.find(profile.endpoints).services.items():
        if not endpoint.secure and not endpoint.is_on_this_machine:
            click.echo(
                f"warning: what is sent to {service} at {endpoint.address} is not encrypted, the credential "
                f"included; with TLS it is grpcs://{endpoint.address}",
                err=True,
            )
    if by_key:
        profile = _by_key(gateway, profile)
    elif by_device:
        profile = _by_device(gateway, profile)
    elif user:
        profile = _by_password(gateway, profile, user)
    else:
        profile = _as_offered(gateway, profile)
    _profiles.keep(profile)
    if as_json:
        emit({"server": profile.server, "subject": profile.subject})
    else:
        click.echo(f"logged in at {profile.server} as {clean(profile.subject)}")


def _endpoints(gateway: Gateway, given: str | None) -> dict[str, str]:
    """Addresses of the services: as given, as the stack of this machine writes them down, or as the gateway
    tells."""
    from guidehall.client._endpoints import SERVICES, Endpoints
    from guidehall.core.errors import FailedPrecondition

    if given:
        return Endpoints.find(given).addresses()
    if gateway.url == stack().gateway:
        return {}
    told = gateway.get("/auth/methods").get("endpoints")
    if not isinstance(told, dict) or not told:
        raise FailedPrecondition(
            "the server does not tell the addresses of its services; name them in front of the command: "
            f"guidehall --endpoints {','.join(f'{service}=HOST:PORT' for service in SERVICES)} login …",
            reason="NO_ENDPOINTS",
        )
    return Endpoints.find(told).addresses()


def _by_key(gateway: Gateway, profile: Profile) -> Profile:
    key = _secret("API key")
    answer = gateway.get("/auth/session", key)
    return replace(profile, subject=str(answer["principal"]["subject"]), api_key=key)


def _as_offered(gateway: Gateway, profile: Profile) -> Profile:
    """With a local account, or in a browser, where the server knows somebody else who vouches for people."""
    from guidehall.core.errors import FailedPrecondition

    offered = gateway.get("/auth/methods")
    if not offered["methods"] and not offered["providers"]:
        raise FailedPrecondition(
            f"nobody logs in at {gateway.url}: it is in mode {clean(str(offered['mode']))}. "
            "An API key is good everywhere: --key",
            reason="NO_LOG_IN",
        )
    if not offered["providers"]:
        return _by_password(gateway, profile, click.prompt("Name", err=True))
    titles = " or ".join(clean(str(provider["title"])) for provider in offered["providers"])
    click.echo(f"with a local account, or, without a name, with {titles} in a browser", err=True)
    user = click.prompt("Name", default="", show_default=False, err=True)
    return _by_password(gateway, profile, user) if user else _by_device(gateway, profile)


def _by_password(gateway: Gateway, profile: Profile, user: str) -> Profile:
    tokens = gateway.post("/auth/login", {"user": user, "password": _secret("Password")})
    return _profiles.with_tokens(replace(profile, subject=user), tokens)


def _by_device(gateway: Gateway, profile: Profile) -> Profile:
    """Waits until somebody has approved it in a browser (RFC 8628)."""
    from guidehall.core.errors import AppError, Unavailable

    began = gateway.post("/auth/device/code", {"client": f"guidehall on {platform.node() or 'a machine'}"})
    click.echo(f"open {clean(str(began['verification_uri_complete']))}", err=True)
    click.echo(f"and approve the code {clean(str(began['user_code']))}", err=True)
    wait, ends = float(began["interval"]), time.monotonic() + float(began["expires_in"])
    while True:
        time.sleep(wait)
        try:
            tokens = gateway.post("/auth/device/token", {"device_code": began["device_code"]})
        except AppError as error:
            if error.reason == "SLOW_DOWN":
                wait += 5.0
            elif error.reason != "AUTHORIZATION_PENDING" and (
                # The gateway may be away for a moment.
                not isinstance(error, Unavailable) or time.monotonic() > ends
            ):
                raise
        else:
            subject = str(tokens["user"]["name"]).removeprefix("users/")
            return _profiles.with_tokens(replace(profile, subject=subject), tokens)


def _secret(what: str) -> str:
    """Asked for without being shown; in a pipe the first line of the input. No flag: others see those."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, err=True))
    return sys.stdin.readline().strip()


@click.command(epilog="\b\nExample\n  guidehall logout")
@click.option("--server", metavar="URL", help="Its gateway. [default: where you logged in last]")
@json_option
@click.pass_context
def logout(ctx: click.Context, server: str | None, as_json: bool) -> None:
    """Log out: end the session at the server and forget it here. An API key is forgotten and stays good."""
    from guidehall.cli._gateway import Gateway
    from guidehall.core.errors import AppError, FailedPrecondition

    timeout = ctx.find_root().params["timeout"]
    profile = _profiles.of_server(Gateway(server, timeout).url) if server else _profiles.current()
    if profile is None:
        raise FailedPrecondition("you are not logged in" + (f" at {server}" if server else ""))
    try:
        if profile.refresh_token:
            Gateway(profile.server, timeout).post("/auth/logout", {"refresh_token": profile.refresh_token})
    except AppError as error:
        click.echo(f"warning: the session may go on at the server: {error.message}", err=True)
    finally:
        _profiles.forget(profile.server)
    if as_json:
        emit({"server": profile.server})
    else:
        click.echo(f"logged out at {profile.server}")


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples
  guidehall tokens
  guidehall tokens create --name beamline-7 --role scientist --ttl 90d > beamline.key
  guidehall tokens revoke 5c0d91aa
""",
)
@click.option("--user", default="", metavar="NAME", help="Whose. [default: your own]")
@json_option
@click.pass_context
def tokens(ctx: click.Context, user: str, as_json: bool) -> None:
    """List API keys, by which programs call in your name; make or revoke one."""
    if ctx.invoked_subcommand is not None:
        return
    with connect() as client:
        found = client.api_keys(user)
    if as_json:
        emit(found)
        return
    rows = [
        (
            short(item.name),
            item.prefix + "…",
            item.display_name,
            ", ".join(role.lower() for role in item.roles),
            age(item.create_time),
            f"{age(item.last_use_time)} ago" if item.last_use_time else "",
            item.expire_time.astimezone().date().isoformat() if item.expire_time else "",
            f"{age(item.revoke_time)} ago" if item.revoke_time else "",
        )
        for item in found
    ]
    headings = ("KEY", "BEGINS", "NAME", "ROLES", "AGE", "USED", "EXPIRES", "REVOKED")
    table(headings, rows, empty="no API keys")


@tokens.command()
@click.option("--name", default="", help="What it is for, such as the program's name.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(_ROLES, case_sensitive=False),
    multiple=True,
    help="What it may do, at most what you may. [default: all of that]",
)
@click.option("--ttl", type=DURATION, default=0, help="How long it counts, such as 90d. [default: for ever]")
@click.option("--user", default="", metavar="NAME", help="For whom. [default: yourself]")
@click.option(
    "--scope", "scopes", multiple=True, help="Limits it, such as jobs:write. [default: all the roles allow]"
)
@json_option
def create(
    name: str, roles: tuple[str, ...], ttl: int, user: str, scopes: tuple[str, ...], as_json: bool
) -> None:
    """Make an API key. It is shown this once: on standard output, alone."""
    with connect() as client:
        made = client.create_api_key(user, name=name, roles=roles, ttl=ttl, scopes=scopes)
    if as_json:
        emit(made)
        return
    click.echo(
        f"API key {short(made.api_key.name)} of {made.api_key.user}; revoke it with: "
        f"guidehall tokens revoke {short(made.api_key.name)}",
        err=True,
    )
    click.echo(clean(made.secret))


@tokens.command()
@click.argument("key")
@click.option("--user", default="", metavar="NAME", help="Whose it is. [default: your own]")
@json_option
def revoke(key: str, user: str, as_json: bool) -> None:
    """End KEY, for good."""
    with connect() as client:
        ended = client.revoke_api_key(key, user)
    if as_json:
        emit(ended)
    else:
        click.echo(f"API key {short(ended.name)} of {ended.user} is revoked")


COMMANDS = (login, logout, tokens)
