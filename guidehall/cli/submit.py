"""`guidehall submit PIPELINE` and `guidehall simulate`, whose flags come from the server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._flags import DURATION
from guidehall.cli._output import clean, emit, emit_line, pairs, short, table
from guidehall.cli._schema_command import SchemaCommand
from guidehall.cli.data import key_values

if TYPE_CHECKING:
    from guidehall.client import Batch

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_from_option = click.option(
    "--from", "file", type=_FILE, help="Parameters in YAML or JSON; flags count more."
)


@click.command()
@_from_option
@click.option("--dry-run", is_flag=True, help="Check everything, submit nothing.")
@click.option("--watch", is_flag=True, help="Follow the job until it is over.")
@click.option("--name", default="", help="A name for people; at most 80 characters.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Every random draw comes from it. [0: any]"
)
@click.option(
    "--input", "inputs", multiple=True, metavar="ROLE=DATASET", help="A dataset it reads; may repeat."
)
@click.option("--pool", default="", help="Queue to wait in.")
@click.option(
    "--priority",
    type=click.Choice(("low", "normal", "high"), case_sensitive=False),
    default="normal",
    show_default=True,
)
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A word to find it by; may repeat."
)
@click.option(
    "--device-class", default="", help="In the place of a pool: such as H200, or the next lower one."
)
@click.option("--group", default="", help="The one of your groups whose share it counts against.")
@click.option(
    "--timeout",
    type=DURATION,
    default=0,
    help="Longest run, in seconds or such as 30m. [default: the pool's]",
)
@click.option(
    "--notify",
    multiple=True,
    metavar="ADDRESS",
    help="Tell this web address or e-mail address when it has ended; may repeat.",
)
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="PATH=V1,V2,…",
    help="One job for each of these values; several sweeps make every combination.",
)
@click.option("--zip", "zipped", is_flag=True, help="Sweeps go together: first values, second values, …")
@json_option
@click.pass_context
def _submit(
    ctx: click.Context,
    /,
    file: Path | None,
    dry_run: bool,
    watch: bool,
    inputs: tuple[str, ...],
    labels: tuple[str, ...],
    sweeps: tuple[str, ...],
    zipped: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    from guidehall.cli._watch import follow
    from guidehall.client import Submission, Sweep
    from guidehall.client.errors import AppError

    command = ctx.command
    assert isinstance(command, SchemaCommand)  # noqa: S101 (for the type checker)
    if zipped and not sweeps:
        raise click.UsageError("--zip goes with --sweep")
    if watch and sweeps:
        raise click.UsageError("--watch follows one job; see those of a sweep with `guidehall jobs`")
    fields |= {
        "params": command.params_from(ctx, file),
        "inputs": key_values(inputs, "--input"),
        "labels": key_values(labels, "--label"),
    }
    axes = command.sweep_from(ctx, sweeps)
    with connect() as client:
        try:
            if axes:
                sweep = Sweep(Submission(command.pipeline, **fields), axes, zipped)
                _show_batch(client.submit_many(sweep=sweep, validate_only=dry_run), axes, as_json)
                return
            job = client.submit(command.pipeline, validate_only=dry_run, **fields)
        except AppError as error:
            raise command.in_flags(error, list(axes)) from error
        if as_json:
            (emit_line if watch and not dry_run else emit)(job)
        elif dry_run:
            click.echo("the job would be accepted; nothing was submitted")
        else:
            pairs({"job": job.id, "state": job.status, "seed": job.seed})
            if not watch:
                click.echo(f"follow it with: guidehall watch {short(job.name)}")
        if watch and not dry_run:
            ctx.exit(follow(client, job.name, 0, as_json))


def _show_batch(batch: Batch, axes: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        emit(batch)
    elif not batch.name:
        click.echo(f"{len(batch.jobs)} jobs would be accepted; nothing was submitted")
    else:
        rows = [(short(job.name), *(_value(job.params, path) for path in axes)) for job in batch.jobs]
        table(("JOB", *axes), rows)
        click.echo(f"see them with: guidehall jobs --filter 'batch = \"{clean(batch.name)}\"'")


def _value(params: Any, path: str) -> str:
    """What a job has at a parameter's path."""
    for part in path.replace("[", ".").replace("]", "").split("."):
        params = params[int(part)] if isinstance(params, list) else params[part]
    return json.dumps(params)


class _Submit(click.Group):
    """Its commands are the pipelines of the server."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002
        """The command that submits the pipeline `cmd_name`, whether there is one or not."""
        return SchemaCommand(
            cmd_name,
            pipeline=cmd_name,
            params=_submit.params,
            callback=_submit.callback,
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the pipelines; none when no server can be reached."""
        return list(self._titles(ctx))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the pipelines with their titles."""
        with formatter.section("Pipelines"):
            titles = self._titles(ctx)
            if titles:
                formatter.write_dl(list(titles.items()))
            else:
                formatter.write_text("none can be listed: no services are reached (see guidehall --help)")

    def _titles(self, ctx: click.Context) -> dict[str, str]:
        from guidehall.client.errors import AppError

        try:
            with connect(ctx) as client:
                return {pipeline.name: pipeline.title for pipeline in client.pipelines()}
        except AppError:
            return {}


@click.group(
    cls=_Submit,
    subcommand_metavar="PIPELINE [--from FILE] [--FIELD VALUE]...",
    epilog="""\b
Examples
  guidehall submit reflectometry.nr_sld --help
  guidehall submit reflectometry.nr_sld --from examples/film.yml --training.epochs 5 --watch
  guidehall submit reflectometry.nr_sld --from examples/film.yml --dry-run
  guidehall submit reflectometry.nr_sld --from examples/film.yml --sweep training.epochs=5,10,20 --timeout 30m
""",
)
def submit() -> None:
    """Submit a job. Its flags are the parameters of the pipeline: see PIPELINE --help."""


@click.command(
    "simulate",
    cls=SchemaCommand,
    pipeline="reflectometry.simulate",
    epilog="""\b
Examples
  guidehall simulate --from examples/simulate.yml > curve.txt
  guidehall simulate --from examples/simulate.yml --stack.layers.1.thickness 120 --plot film.png
A training job takes another document, with ranges in the place of numbers: see examples/film.yml.
""",
)
@_from_option
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw curve and profile into this file."
)
@json_option
@click.pass_context
def simulate(ctx: click.Context, file: Path | None, plot: Path | None, as_json: bool) -> None:
    """Calculate the reflectivity of a film, as text in columns."""
    from guidehall.client.errors import AppError

    command = ctx.command
    assert isinstance(command, SchemaCommand)  # noqa: S101 (for the type checker)
    if plot is not None:
        from guidehall.cli._plot import check_plot

        check_plot(plot)
    params = command.params_from(ctx, file)
    with connect() as client:
        try:
            answer = client.simulate(params)
        except AppError as error:
            raise command.in_flags(error) from error
    if plot is not None:
        from guidehall.cli._plot import draw_simulation

        draw_simulation(answer, plot)
    if as_json:
        emit(answer)
        return
    for note in answer.notes:
        # Not among the columns.
        click.echo(f"note: {clean(note.message)} [{clean(note.code)}]", err=True)
    curve = answer.curve
    named = {"R": curve.r, "dq": curve.dq}
    columns = {"q": curve.q, **{name: values for name, values in named.items() if len(values)}}
    click.echo(
        f"# {' '.join(columns)}; q in {curve.q_unit.value}"
        + (f", dq is {curve.dq_convention.value}" if curve.dq_convention and "dq" in columns else "")
    )
    for row in zip(*columns.values(), strict=True):
        click.echo(" ".join(f"{value:.8e}" for value in row))


COMMANDS = (submit, simulate)
