"""`guidehall queue`, `workers`, `pipelines`, `whoami`, `version`."""

from __future__ import annotations

import click

import guidehall
from guidehall.cli._context import connect, json_option
from guidehall.cli._output import age, duration, emit, pairs, short, size, table


@click.command(epilog="\b\nExample\n  guidehall queue")
@json_option
def queue(as_json: bool) -> None:
    """Show how full each pool's queue is, and who works on it."""
    with connect() as client:
        pools = client.pools()
    if as_json:
        emit(pools)
        return
    rows = [
        (
            pool.id,
            pool.queued_jobs,
            duration(pool.oldest_wait_seconds) if pool.queued_jobs else "",
            pool.running_jobs,
            pool.paused_jobs,
            pool.live_workers,
            pool.idle_workers,
        )
        for pool in pools
    ]
    table(("POOL", "QUEUED", "OLDEST", "RUNNING", "PAUSED", "WORKERS", "IDLE"), rows, empty="no pools")


@click.command(epilog="\b\nExample\n  guidehall workers --pool cpu")
@click.option("--pool", default="", help="Only the workers of this pool.")
@json_option
def workers(pool: str, as_json: bool) -> None:
    """List workers: their machines, and what they do."""
    with connect() as client:
        found = client.workers(pool)
    if as_json:
        emit(found)
        return
    rows = [
        (
            short(worker.name),
            worker.pool.rpartition("/")[2],
            worker.hostname,
            worker.state.lower(),
            worker.device_name or worker.device_class,
            size(worker.device_memory_bytes or worker.memory_bytes),
            short(worker.job) if worker.job else "",
            age(worker.last_seen_time),
        )
        for worker in found
    ]
    table(("WORKER", "POOL", "HOST", "STATE", "DEVICE", "MEMORY", "JOB", "SEEN"), rows, empty="no workers")


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
def whoami(as_json: bool) -> None:
    """Show who the server takes you for."""
    with connect() as client:
        identity = client.whoami()
    if as_json:
        emit(identity)
        return
    pairs(
        {
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


COMMANDS = (queue, workers, pipelines, whoami, version)
