"""`guidehall pipelines`, `whoami`, `usage`, `version`."""

from __future__ import annotations

import click

import guidehall
from guidehall.cli._context import connect, json_option, profile_in_use
from guidehall.cli._output import emit, pairs, size, table


@click.command(
    epilog="""\b
Examples
  guidehall pipelines
  guidehall pipelines reflectometry.nr_sld --json   with the JSON Schema of its parameters
"""
)
@click.argument("name", required=False)
@json_option
def pipelines(name: str | None, as_json: bool) -> None:
    """List what jobs can run, or show the pipeline NAME."""
    with connect() as client:
        found = client.pipelines() if name is None else client.pipeline(name)
    if as_json:
        emit(found)
    elif isinstance(found, list):
        rows = [(item.name, item.version, item.title, item.live_workers) for item in found]
        table(("PIPELINE", "VERSION", "TITLE", "WORKERS"), rows, empty="no pipelines")
    else:
        pairs(
            {
                "pipeline": found.name,
                "version": found.version,
                "title": found.title,
                "about": found.description,
                "workers": found.live_workers,
            }
        )
        click.echo(f"its parameters: guidehall submit {found.name} --help")


@click.command()
@json_option
def usage(as_json: bool) -> None:
    """Show what you have stored, how much it may be, and how many jobs you have."""
    with connect() as client:
        found = client.usage()
    if as_json:
        emit(found)
        return
    allowed = f" of {size(found.allowed_bytes)}" if found.allowed_bytes else ""
    pairs(
        {
            "datasets": size(found.dataset_bytes),
            "models": size(found.model_bytes),
            "result files": size(found.artifact_bytes),
            "logs": size(found.log_bytes),
            "in all": size(found.total_bytes) + allowed,
            "jobs": f"{found.queued_jobs} queued, {found.running_jobs} running, {found.ended_jobs} ended",
        }
    )


@click.command()
@json_option
def whoami(as_json: bool) -> None:
    """Show who the server takes you for."""
    with connect() as client:
        identity = client.whoami()
    if as_json:
        emit(identity)
        return
    profile = profile_in_use(click.get_current_context().find_root().params["endpoints"])
    pairs(
        {
            "server": profile.server if profile else "",
            "subject": identity.subject,
            "kind": identity.kind.lower(),
            "roles": ", ".join(role.lower() for role in identity.roles),
            "groups": ", ".join(identity.groups),
            "project": identity.default_project,
            "through": identity.actor,
        }
    )


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Show the version of this command line."""
    if as_json:
        emit({"version": guidehall.__version__})
    else:
        click.echo(f"guidehall {guidehall.__version__}")


COMMANDS = (pipelines, usage, whoami, version)
