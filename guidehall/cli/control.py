"""`guidehall cancel`, `stop`, `pause`, `resume`, `retry`, `rename`, `claim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from guidehall.cli import _schema
from guidehall.cli._context import connect, json_option
from guidehall.cli._flags import DURATION, in_flags, renamed
from guidehall.cli._output import clean, emit, emit_line, pairs, short
from guidehall.cli.jobs import job_argument

if TYPE_CHECKING:
    from guidehall.client import Client, Job


def _tell(job: Job, as_json: bool, more: str = "") -> None:
    if as_json:
        emit(job)
    else:
        click.echo(f"job {short(job.name)} is {job.status}{more}")


@click.command(epilog="\b\nExample\n  guidehall cancel 3f2a91c0")
@job_argument
@json_option
def cancel(job: str, as_json: bool) -> None:
    """Ask for the end of JOB; nothing but its log is kept. To ask again does no harm."""
    with connect() as client:
        _tell(client.cancel(job), as_json)


@click.command(epilog="\b\nExample\n  guidehall stop 3f2a91c0")
@job_argument
@json_option
def stop(job: str, as_json: bool) -> None:
    """Ask JOB to end early and to keep its best model so far. To ask again does no harm."""
    with connect() as client:
        _tell(client.stop(job), as_json)


@click.command(epilog="\b\nExample\n  guidehall pause 3f2a91c0")
@job_argument
@json_option
def pause(job: str, as_json: bool) -> None:
    """Ask JOB to save its state and to give up its device, until `guidehall resume`."""
    with connect() as client:
        found = client.pause(job)
    _tell(found, as_json, f"; let it go on with: guidehall resume {short(found.name)}")


@click.command(epilog="\b\nExample\n  guidehall resume 3f2a91c0")
@job_argument
@json_option
def resume(job: str, as_json: bool) -> None:
    """Let a paused JOB go on from where it was, as soon as a worker is free."""
    with connect() as client:
        _tell(client.resume(job), as_json)


@click.command(epilog="\b\nExample\n  guidehall rename 3f2a91c0 'film under water, 3 layers'")
@job_argument
@click.argument("name")
@json_option
def rename(job: str, name: str, as_json: bool) -> None:
    """Give JOB another NAME for people, of at most 80 characters."""
    with connect() as client, in_flags({"job.display_name": "NAME", "display_name": "NAME"}):
        found = client.update(job, name=name)
    if as_json:
        emit(found)
    else:
        click.echo(f"job {short(found.name)} is called {clean(found.display_name)!r}")


@click.command(epilog="\b\nExample\n  guidehall claim 3f2a91c0")
@job_argument
@json_option
def claim(job: str, as_json: bool) -> None:
    """Make a guest's JOB your own."""
    with connect() as client:
        found = client.claim(job)
    if as_json:
        emit(found)
    else:
        click.echo(f"job {short(found.name)} belongs to {clean(found.owner)}")


_RETRY_FLAGS = {
    "seed": "--seed",
    "pool": "--pool",
    "display_name": "--name",
    "timeout_seconds": "--timeout",
    "param_changes": "--set",
}


def _flag(field: str) -> str:
    head, _, path = field.partition(".")
    # A change is refused by its path, in whichever place of the request.
    return (
        f"--set {path}"
        if head in ("params", "param_changes", "changes") and path
        else (_RETRY_FLAGS.get(field, field))
    )


@click.command(
    epilog="""\b
Examples
  guidehall retry 3f2a91c0                              as it was; goes on from its last checkpoint
  guidehall retry 3f2a91c0 --set training.epochs=50 --set stack.layers.0.thickness=80
  guidehall retry 3f2a91c0 --seed 7 --watch
"""
)
@job_argument
@click.option("--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change a parameter; may repeat.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Another one. [0: the same, and the same data]"
)
@click.option("--from-start", is_flag=True, help="Begin anew even where a checkpoint is kept.")
@click.option("--name", default="", help="Another name for people.")
@click.option("--pool", default="", help="Another queue to wait in.")
@click.option("--timeout", type=DURATION, default=0, help="Another longest run, such as 30m.")
@click.option("--dry-run", is_flag=True, help="Check everything, submit nothing.")
@click.option("--watch", is_flag=True, help="Follow the new job until it is over.")
@json_option
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    job: str,
    changes: tuple[str, ...],
    dry_run: bool,
    watch: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Submit JOB, which has ended, once more: same parameters, seed and data unless you change them.

    Without changes the new job goes on from the last checkpoint of the old one where that is kept.
    """
    from guidehall.cli._watch import follow
    from guidehall.client.errors import AppError

    with connect() as client:
        changed = _changes(client, job, changes) if changes else {}
        try:
            again = client.retry(job, changed, validate_only=dry_run, **fields)
        except AppError as error:
            raise renamed(error, _flag) from error
        if as_json:
            (emit_line if watch and not dry_run else emit)(again)
        elif dry_run:
            click.echo("the job would be accepted; nothing was submitted")
        else:
            pairs({"job": again.id, "state": again.status, "seed": again.seed, "repeats": again.retried_from})
            if not watch:
                click.echo(f"follow it with: guidehall watch {short(again.name)}")
        if watch and not dry_run:
            ctx.exit(follow(client, again.name, 0, as_json))


def _changes(client: Client, job: str, texts: Sequence[str]) -> dict[str, Any]:
    """The values of `--set` by their paths, of the types that the job's pipeline gives them."""
    known = _schema.fields(client.pipeline(client.job(job).pipeline).params_schema)
    changes = {}
    for text in texts:
        try:
            field, value = _schema.setting(known, text)
            changes[field.indexed] = _schema.parse(field, value)
        except ValueError as error:
            raise click.BadParameter(f"{error}.", param_hint=f"--set {text.partition('=')[0]}") from None
    return changes


COMMANDS = (cancel, stop, pause, resume, retry, rename, claim)
