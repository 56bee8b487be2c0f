"""`guidehall up`, `status`, `logs`, `down`: the whole platform on this machine; `worker`: more workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guidehall.cli._context import json_option, own_token
from guidehall.cli._exit import ExitCode
from guidehall.cli._extras import require_linux, require_platform, require_workers
from guidehall.cli._flags import DURATION
from guidehall.cli._output import clean, duration, emit, emit_line, table

if TYPE_CHECKING:
    from guidehall.local.control import ServiceStatus


def _data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    option = click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Folder of everything the stack keeps. [$GUIDEHALL_DATA, else ~/.local/share/guidehall]",
    )

    @wraps(command)
    def with_folder(data: Path | None, *args: Any, **kwargs: Any) -> Any:
        from guidehall.client._endpoints import data_folder

        folder = data_folder() if data is None else data.expanduser()
        return command(folder.resolve(), *args, **kwargs)

    return option(with_folder)


# Of what runs until it is told to end: what it says to people goes to standard error then.
_stages_option = click.option(
    "--json", "as_json", is_flag=True, help="A line of JSON when everything is ready, and one at the end."
)


@click.command(
    epilog="""\b
Examples
  guidehall up                in the foreground; Ctrl-C stops everything
  guidehall up --detach       in the background; see guidehall status, logs, down
  guidehall up --workers 2 --data /scratch/guidehall
"""
)
@_data_option
@click.option(
    "--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Workers that run jobs."
)
@click.option(
    "--auth-mode",
    type=click.Choice(("single", "proxy", "token")),
    default="single",
    show_default=True,
    help="single: one local user; proxy, token: callers are known, see docs/reference/cli.md.",
)
@click.option("--detach", is_flag=True, help="Return when everything is ready, and leave it running.")
@_stages_option
def up(data: Path, workers: int, auth_mode: str, detach: bool, as_json: bool) -> None:
    """Start the platform on this machine: database, broker, object store, services, workers.

    It brings a PostgreSQL, a NATS and an S3 server of its own, but for those that $GUIDEHALL_POSTGRES_URL
    (postgresql://USER:PASSWORD@HOST:PORT), $GUIDEHALL_NATS_URL (nats://USER:PASSWORD@HOST:PORT) and
    $GUIDEHALL_S3_URL (https://ACCESS_KEY:SECRET_KEY@HOST:PORT/BUCKET) name.
    """
    require_platform()
    from guidehall.local import control, stack

    def told() -> None:
        if as_json:
            emit_line(control.status(data))

    report = partial(click.echo, err=as_json)
    options = stack.Options(data=data, workers=workers, auth_mode=auth_mode)
    if detach:
        control.up_detached(options, report)
    else:
        stack.up(options, report, told)
    # In the background it is ready now, in the foreground it has stopped.
    told()


@click.command(epilog="Exits with 0 when everything answers, else with 4.")
@_data_option
@json_option
@click.pass_context
def status(ctx: click.Context, data: Path, as_json: bool) -> None:
    """Show whether the platform of this machine runs, part by part."""
    require_linux()
    from guidehall.local import control

    found = control.status(data)
    if as_json:
        emit(found)
    else:
        since = f" for {duration(found.uptime_seconds)}" if found.supervisor else ""
        # The end of a log may follow the reason.
        reason = clean(found.error.splitlines()[0]) if found.error else ""
        click.echo(f"{found.stage}{since} ({data})" + (f": {reason}" if reason else ""))
        rows = [
            (
                part.name,
                _state(part),
                part.pid,
                part.restarts,
            )
            for part in found.services
        ]
        if rows:
            table(("PART", "STATE", "PID", "RESTARTS"), rows)
        if engines := _engines(found.services):
            click.echo(f"reflectometry engine: {engines}")
        if "gateway" in found.endpoints:
            click.echo(f"gateway: {found.endpoints['gateway']}")
    ctx.exit(ExitCode.DONE if found.healthy else ExitCode.UNAVAILABLE)


def _state(part: ServiceStatus) -> str:
    if not part.answers:
        return f"{part.state}, does not answer"
    return f"{part.state}, does not reach {', '.join(part.unreached)}" if part.unreached else part.state


def _engines(parts: Sequence[ServiceStatus]) -> str:
    """What calculates reflectivities; where, if not everywhere the same."""
    where: dict[str, list[str]] = {}
    for part in parts:
        if part.reflectometry_engine:
            where.setdefault(clean(part.reflectometry_engine), []).append(part.name)
    if len(where) == 1:
        return next(iter(where))
    return "; ".join(f"{engine} in {', '.join(names)}" for engine, names in where.items())


@click.command(epilog="\b\nExample\n  guidehall logs -f trainer")
@_data_option
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Last lines to show."
)
@click.option("--json", "as_json", is_flag=True, help="The lines as they were written, most of them JSON.")
def logs(data: Path, service: str, follow: bool, lines: int, as_json: bool) -> None:
    """Show the log of one SERVICE of this machine's platform; a job's is shown by `guidehall job-log`."""
    require_linux()
    from guidehall.local import control
    from guidehall.local.loglines import readable

    parts = control.tail_logs(data, service, lines, follow)
    if as_json:
        for part in parts:
            click.echo(part, nl=False)
        return
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n")
        for line in whole:
            # A traceback keeps its lines.
            click.echo("\n".join(map(clean, readable(line).split("\n"))))


@click.command()
@_data_option
@click.option("--delete-data", is_flag=True, help="Then delete everything that it keeps: jobs, models, data.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
def down(data: Path, delete_data: bool, yes: bool, as_json: bool) -> int:
    """Stop the platform of this machine. Everything that it keeps stays, unless it is to be deleted."""
    require_linux()
    from guidehall.local import control

    kept = control.folders(data) if delete_data else []
    names = " and ".join(map(str, kept))
    if kept and not yes and not click.confirm(f"Delete all jobs, models and data in {names}?", err=True):
        click.echo("nothing was stopped or deleted", err=as_json)
        return ExitCode.FAILED
    stopped = control.down(data)
    click.echo("stopped" if stopped else "nothing was running", err=as_json)
    if kept:
        control.delete(data)
        click.echo(f"deleted what was in {names}", err=as_json)
    elif delete_data:
        click.echo(f"there is nothing to delete in {data}", err=as_json)
    if as_json:
        emit({"stopped": stopped, "deleted": kept})
    return ExitCode.DONE


@click.command(
    epilog="""\b
Examples
  guidehall worker --pool h200                   one more worker for the platform of this machine
  guidehall --endpoints trainer=hall:7101,storage=hall:7102 worker --pool h200 --count 4 \\
      --credential-file h200.credential          workers of a platform elsewhere
"""
)
@click.option("--pool", default="cpu", show_default=True, metavar="POOL", help="Whose jobs they run.")
@click.option(
    "--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many workers to start."
)
@click.option(
    "--credential-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The pool's credential. Without it one is made, which operators may, and revoked at the end.",
)
@_stages_option
@click.pass_context
def worker(ctx: click.Context, pool: str, count: int, credential_file: Path | None, as_json: bool) -> None:
    """Run workers on this machine. Ctrl-C stops them; what they run goes on elsewhere."""
    require_workers()
    from guidehall.local import workers

    given = ctx.find_root().params["endpoints"]
    token = None if given or credential_file else own_token()
    options = workers.Options(pool, count, given, token, credential_file)

    def tell(stage: str) -> None:
        if as_json:
            emit_line({"stage": stage, "pool": pool, "count": count})

    workers.run(options, partial(click.echo, err=as_json), lambda: tell("ready"))
    tell("stopped")


@click.command(
    "rotate-key",
    epilog="""\b
Examples
  guidehall rotate-key                                    on this machine, at once
  guidehall rotate-key --folder secrets --step announce   elsewhere: first every server gets trust.json
  guidehall rotate-key --folder secrets --step sign       then storage gets its key, and all trust.json
""",
)
@_data_option
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the keys and trust.json are. [default: identity in the data folder]",
)
@click.option("--step", type=click.Choice(("announce", "sign", "both")), default="both", show_default=True)
@click.option(
    "--keep",
    type=DURATION,
    default=3600,
    help="How long what the old key has signed holds. [default: 1h, the longest that an access token may]",
)
@json_option
def rotate_key(data: Path, folder: Path | None, step: str, keep: int, as_json: bool) -> None:
    """Have another key sign access tokens. Those of the old key hold until they are over."""
    require_platform()
    from guidehall.core.errors import FailedPrecondition
    from guidehall.local.files import write_atomically
    from guidehall.local.identity import Identity

    identity = Identity(folder or data / "identity")
    if not identity.trust_file.exists():
        raise FailedPrecondition(f"there are no keys in {identity.folder}", reason="NO_KEYS")
    if step != "sign":
        identity.announce_key()
    renewed = []
    if step != "announce":
        identity.change_key(keep)
        # The administrator's token is for a year, which its key no longer is.
        for place in (identity.folder, *(() if folder else (data / "secrets",))):
            path = place / "administrator.token"
            if path.exists():
                write_atomically(path, identity.administrator_token())
                renewed.append(path)
    if as_json:
        emit({"step": step, "folder": identity.folder, "renewed": renewed})
        return
    if step == "announce":
        click.echo("announced: give trust.json to every server, then: --step sign")
    else:
        click.echo(f"another key signs; what the old one has signed holds {duration(keep)} more")
        for path in renewed:
            click.echo(f"{clean(str(path))} is new")


COMMANDS = (up, status, logs, down, worker, rotate_key)
