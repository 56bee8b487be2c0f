"""`guidehall submit PIPELINE` and `guidehall simulate`, whose flags come from the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._output import clean, emit, emit_line, pairs, short
from guidehall.cli._schema_command import SchemaCommand
from guidehall.cli.data import key_values

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
@click.option("--time-limit", type=click.IntRange(min=0), default=0, metavar="SECONDS", help="Longest run.")
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
    time_limit: int,
    as_json: bool,
    **fields: Any,
) -> None:
    from guidehall.cli._watch import follow
    from guidehall.client.errors import AppError

    command = ctx.command
    assert isinstance(command, SchemaCommand)  # noqa: S101 (for the type checker)
    params = command.params_from(ctx, file)
    with connect() as client:
        try:
            job = client.submit(
                command.pipeline,
                params,
                inputs=key_values(inputs, "--input"),
                labels=key_values(labels, "--label"),
                timeout_seconds=time_limit,
                validate_only=dry_run,
                **fields,
            )
        except AppError as error:
            raise command.in_flags(error) from error
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
