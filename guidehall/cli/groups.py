"""`guidehall groups`, `share`."""

from __future__ import annotations

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._output import clean, emit, table

_ROLES = click.Choice(("reader", "member", "manager"), case_sensitive=False)


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples
  guidehall groups
  guidehall groups create film --name "Thin films"
  guidehall groups add film ada --role manager
  guidehall groups robot film beamline-7
""",
)
@json_option
@click.pass_context
def groups(ctx: click.Context, as_json: bool) -> None:
    """List your groups; make one, say who is in it."""
    if ctx.invoked_subcommand is not None:
        return
    with connect() as client:
        found = client.groups()
    if as_json:
        emit(found)
        return
    rows = [(item.id, item.display_name, item.role.lower(), item.project) for item in found]
    table(("GROUP", "NAME", "ROLE", "PROJECT"), rows, empty="no groups")


@groups.command()
@click.argument("group")
@click.option("--name", default="", help="What people call it.")
@json_option
def create(group: str, name: str, as_json: bool) -> None:
    """Make GROUP. For administrators."""
    with connect() as client:
        made = client.create_group(group, display_name=name)
    if as_json:
        emit(made)
    else:
        click.echo(f"group {clean(made.id)}; its project is {clean(made.project)}")


@groups.command()
@click.argument("group")
@json_option
def members(group: str, as_json: bool) -> None:
    """List who is in GROUP."""
    with connect() as client:
        found = client.group_members(group)
    if as_json:
        emit(found)
        return
    rows = [(item.user.removeprefix("users/"), item.role.lower()) for item in found]
    table(("USER", "ROLE"), rows, empty="nobody")


@groups.command()
@click.argument("group")
@click.argument("user")
@click.option("--role", type=_ROLES, default="member", show_default=True, help="What they may do.")
@json_option
def add(group: str, user: str, role: str, as_json: bool) -> None:
    """Add USER to GROUP, or give another role. For managers."""
    with connect() as client:
        member = client.set_group_member(group, user, role)
    if as_json:
        emit(member)
    else:
        click.echo(f"{clean(user)} is a {role} of {clean(group)}")


@groups.command()
@click.argument("group")
@click.argument("user")
@json_option
def remove(group: str, user: str, as_json: bool) -> None:
    """Take USER out of GROUP. For managers."""
    with connect() as client:
        client.remove_group_member(group, user)
    if as_json:
        emit({"group": group, "user": user})
    else:
        click.echo(f"{clean(user)} is not in {clean(group)}")


@groups.command()
@click.argument("group")
@click.argument("account")
@click.option("--name", default="", help="What people call it.")
@json_option
def robot(group: str, account: str, name: str, as_json: bool) -> None:
    """Make a service account for a program of GROUP. For managers."""
    with connect() as client:
        made = client.create_service_account(group, account, display_name=name)
    if as_json:
        emit(made)
    else:
        click.echo(
            f"service account {clean(account)}; its key: guidehall tokens create --user {clean(account)}"
        )


@click.command(
    epilog="""\b
Examples
  guidehall share projects/default/models/film --with group:film
  guidehall share projects/default/models/film --not-with user:ada
""",
)
@click.argument("name")
@click.option("--with", "add", multiple=True, metavar="WHO", help="Who may read it: group:NAME or user:NAME.")
@click.option("--not-with", "remove", multiple=True, metavar="WHO", help="Who may no longer.")
@json_option
def share(name: str, add: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """Let others read NAME, a job, a dataset, a model or a result; without options, see who may."""
    with connect() as client:
        readers = client.share(name, add=add, remove=remove)
    if as_json:
        emit({"name": name, "readers": list(readers)})
    else:
        click.echo("shared with " + (", ".join(map(clean, readers)) or "nobody"))


COMMANDS = (groups, share)
