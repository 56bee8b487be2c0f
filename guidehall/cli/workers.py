"""`guidehall workers`, with `drain`, `reinstate` and `credentials`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._flags import DURATION
from guidehall.cli._output import age, clean, emit, short, size, table

if TYPE_CHECKING:
    from guidehall.client import Worker

_worker_argument = click.argument("worker")


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples
  guidehall workers --pool cpu
  guidehall workers drain 1d2e3f4a              before its machine is switched off
  guidehall workers reinstate 1d2e3f4a
  guidehall workers credentials create gpu --note beamline-7 > worker.token
""",
)
@click.option("--pool", default="", help="Only the workers of this pool.")
@json_option
@click.pass_context
def workers(ctx: click.Context, pool: str, as_json: bool) -> None:
    """List workers: their machines, and what they do. Take one out of service; manage credentials."""
    if ctx.invoked_subcommand is not None:
        return
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
            worker.quarantine_reason,
        )
        for worker in found
    ]
    headings = ("WORKER", "POOL", "HOST", "STATE", "DEVICE", "MEMORY", "JOB", "SEEN", "QUARANTINED FOR")
    table(headings, rows, empty="no workers")


@workers.command(epilog="\b\nExample\n  guidehall workers drain 1d2e3f4a --release-job")
@_worker_argument
@click.option(
    "--release-job", is_flag=True, help="Its job saves its state and leaves, instead of running to its end."
)
@json_option
def drain(worker: str, release_job: bool, as_json: bool) -> None:
    """Take WORKER out of service: it finishes its job and takes no other."""
    with connect() as client:
        _tell(client.drain(worker, release_job=release_job), as_json)


@workers.command(epilog="\b\nExample\n  guidehall workers reinstate 1d2e3f4a")
@_worker_argument
@json_option
def reinstate(worker: str, as_json: bool) -> None:
    """Take WORKER, which was drained or has quarantined itself, into service again."""
    with connect() as client:
        _tell(client.reinstate(worker), as_json)


def _tell(worker: Worker, as_json: bool) -> None:
    if as_json:
        emit(worker)
        return
    at_work = f"; it works on job {short(worker.job)}" if worker.job else ""
    click.echo(f"worker {short(worker.name)} is {worker.state.lower()}{at_work}")


@workers.group(
    invoke_without_command=True,
    epilog="""\b
Examples
  guidehall workers credentials
  guidehall workers credentials create gpu --note beamline-7 --ttl 90d > worker.token
  guidehall workers credentials revoke 5c0d91aa
""",
)
@click.option("--pool", default="", help="Only the credentials of this pool.")
@json_option
@click.pass_context
def credentials(ctx: click.Context, pool: str, as_json: bool) -> None:
    """List what workers prove themselves with; make or revoke one."""
    if ctx.invoked_subcommand is not None:
        return
    with connect() as client:
        found = client.worker_credentials(pool)
    if as_json:
        emit(found)
        return
    rows = [
        (
            short(item.name),
            item.pool,
            item.note,
            age(item.create_time),
            item.expire_time.astimezone().date().isoformat() if item.expire_time else "",
            f"{age(item.revoke_time)} ago" if item.revoke_time else "",
        )
        for item in found
    ]
    table(("CREDENTIAL", "POOL", "NOTE", "AGE", "EXPIRES", "REVOKED"), rows, empty="no credentials")


@credentials.command()
@click.argument("pool")
@click.option("--note", default="", help="What it is for, such as the machine's name.")
@click.option("--ttl", type=DURATION, default=0, help="How long it counts, such as 90d. [default: a year]")
@json_option
def create(pool: str, note: str, ttl: int, as_json: bool) -> None:
    """Make a credential for the workers of POOL. Its token is shown this once: on standard output, alone."""
    with connect() as client:
        made = client.create_worker_credential(pool, note=note, ttl=ttl)
    if as_json:
        emit(made)
        return
    click.echo(
        f"credential {short(made.credential.name)} for pool {made.credential.pool}; revoke it with: "
        f"guidehall workers credentials revoke {short(made.credential.name)}",
        err=True,
    )
    click.echo(clean(made.token))


@credentials.command()
@click.argument("credential")
@json_option
def revoke(credential: str, as_json: bool) -> None:
    """End CREDENTIAL: what its workers hold is lost to them."""
    with connect() as client:
        ended = client.revoke_worker_credential(credential)
    if as_json:
        emit(ended)
    else:
        click.echo(f"credential {short(ended.name)} of pool {ended.pool} is revoked")


COMMANDS = (workers,)
