"""`guidehall demo`: from a film model to a fitted measurement, through the real services."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guidehall.cli._exit import ExitCode
from guidehall.cli._extras import require_platform
from guidehall.cli._output import emit, number, short, table, wrapped
from guidehall.cli._watch import follow
from guidehall.cli.predict import at_bound

if TYPE_CHECKING:
    from guidehall.client import Analysis, Client, Curve, Parameter
    from guidehall.local.demo import PeerFit

PIPELINE = "reflectometry.nr_sld"
SEED = 1
# How far, in decades of reflectivity, the refined answer may be from the measurement on average.
WORST_MEAN_LOG10 = 0.15


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".guidehall/demo"),
    show_default=True,
    help="Folder of everything that the demonstration keeps.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("demo.png"),
    show_default=True,
    help="Picture to draw.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="The answer as one JSON document; steps on standard error."
)
def demo(data: Path, plot: Path, as_json: bool) -> int:
    """Train a network for a film under water, serve it, and read a measured curve with it."""
    require_platform("demo")
    # Told to end from outside it stops everything, too, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        answer = _demonstrate(data, plot)
    if answer is None:
        return ExitCode.FAILED
    if as_json:
        emit(answer)
    return (
        ExitCode.DONE
        if answer["fit"]["refined"]["mean_abs_log10_error"] <= WORST_MEAN_LOG10
        else ExitCode.FAILED
    )


def _demonstrate(data: Path, plot: Path) -> dict[str, Any] | None:
    """The whole of it; None where the job failed."""
    from guidehall.cli._plot import check_plot
    from guidehall.client import Client
    from guidehall.local.demo import film_params, measured_file
    from guidehall.local.stack import ENDPOINTS, Options, Stack

    check_plot(plot)

    started = time.monotonic()
    _step("Starting PostgreSQL, NATS, an S3 endpoint, four services and a worker")
    with (
        Stack(Options(data=data), report=click.echo) as stack,
        Client(data.resolve() / ENDPOINTS) as client,
    ):
        _step("A film on silicon under heavy water: synthetic curves, and a network that learns to read them")
        prior = film_params()
        _end_earlier_runs(client)
        job = client.submit(PIPELINE, prior, name="demonstration", seed=SEED)
        click.echo(f"job {short(job.name)}: {PIPELINE}, seed {SEED}")
        try:
            ended = follow(client, job.name, 0, as_json=False)
        except KeyboardInterrupt:
            # What it says of a job that goes on is not true of one whose platform stops with it.
            raise KeyboardInterrupt("everything is stopped; the next demo begins anew") from None
        if ended is not ExitCode.DONE:
            return None
        (model,) = client.result(job.id).model_versions
        _step(f"A measured curve ({measured_file().name}, 99 points) asked of {model}")
        network, refined, curve = _analyze(client, model)
        _step("The same model within the same bounds, fitted by refnx (global, then least squares)")
        peer = _refnx(prior)
        gateway = str(stack.endpoints["gateway"])
    _show(network, refined, peer)
    _draw(curve, refined, plot)
    seconds = time.monotonic() - started
    _next_steps(data, plot, gateway, seconds)
    return {
        "job": job.name,
        "model_version": model,
        "parameters": refined.parameters,
        "network": {parameter.name: parameter.value for parameter in network.parameters},
        "refnx": peer.values,
        "fit": {
            **{answer.stage.value: _misfit(answer) for answer in (network, refined)},
            "refnx": {"chi_square": peer.chi_square, "reduced_chi_square": peer.reduced_chi_square},
        },
        "notes": refined.notes,
        "plot": plot,
        "data": data,
        "seconds": seconds,
    }


def _misfit(analysis: Analysis) -> dict[str, float | None]:
    names = ("chi_square", "reduced_chi_square", "mean_abs_log10_error")
    return {name: getattr(analysis, name) for name in names}


def _end_earlier_runs(client: Client) -> None:
    """A run that was interrupted left a job that would now be trained first."""
    for job in client.jobs(limit=20):
        if not job.state.final:
            client.cancel(job.name)


def _step(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _analyze(client: Client, model: str) -> tuple[Analysis, Analysis, Curve]:
    from guidehall.client import Stage, read_curve
    from guidehall.local.demo import RELATIVE_DQ_FWHM, measured_file

    curve = read_curve(measured_file(), "fwhm", RELATIVE_DQ_FWHM)
    answers = []
    for stage in (Stage.NETWORK, Stage.REFINED):
        start = time.monotonic()
        answers.append(client.analyze(curve, model, stage))
        click.echo(f"{stage.value}: {(time.monotonic() - start) * 1000:.0f} ms")
    return answers[0], answers[1], curve


def _refnx(prior: dict[str, Any]) -> PeerFit:
    from guidehall.local.demo import measured_file, refnx_fit

    start = time.monotonic()
    fit = refnx_fit(prior, measured_file())
    click.echo(f"refnx: {(time.monotonic() - start) * 1000:.0f} ms")
    return fit


def _show(network: Analysis, refined: Analysis, peer: PeerFit) -> None:
    _step("Answer")
    by_network = {parameter.name: parameter.value for parameter in network.parameters}
    rows = [
        (
            f"{parameter.name}, {_unit(parameter)}" if parameter.unit else parameter.name,
            _brief(by_network.get(parameter.name)),
            _brief(parameter.value),
            _brief(peer.values.get(parameter.name)),
            f"{_brief(parameter.lower)} to {_brief(parameter.upper)}",
            at_bound(parameter).removesuffix(" bound"),
        )
        for parameter in refined.parameters
    ]
    table(("PARAMETER", "NETWORK", "REFINED", "REFNX", "ALLOWED", ""), rows)
    fits = [
        ("chi-square", *map(_known, (network.chi_square, refined.chi_square, peer.chi_square))),
        (
            "per degree of freedom",
            *map(_known, (network.reduced_chi_square, refined.reduced_chi_square, peer.reduced_chi_square)),
        ),
        ("mean |Δ log10 R|", number(network.mean_abs_log10_error), number(refined.mean_abs_log10_error), ""),
    ]
    click.echo()
    table(("FIT", "NETWORK", "REFINED", "REFNX"), fits)
    for note in refined.notes:
        click.echo(wrapped(f"note: {note.message} [{note.code}]"))


def _unit(parameter: Parameter) -> str:
    return parameter.unit.replace("1e-6/", "10⁻⁶/").replace("angstrom", "Å").replace("^2", "²")


def _brief(value: float | None) -> str:
    """Short enough for all columns to stand side by side in a terminal of 80."""
    return "" if value is None else f"{value:.4g}"


def _known(value: float | None) -> str:
    return "" if value is None else number(value)


def _draw(curve: Curve, analysis: Analysis, plot: Path) -> None:
    from guidehall.cli._plot import draw_analysis

    draw_analysis(curve, analysis, plot, title="Film on silicon under heavy water")


def _next_steps(data: Path, plot: Path, gateway: str, seconds: float) -> None:
    from guidehall.local.demo import measured_file

    click.echo(f"\nDone in {seconds:.0f} s; the picture is {plot}.")
    click.echo(f"All is stopped; the model stays in {data}. To remove all that it has left:")
    click.echo(f"  ./run guidehall down --data {data} --delete-data")
    click.echo("\nTry next")
    click.echo(f"  ./run up --data {data}  # the platform with this model; its HTTP pages at {gateway}/docs")
    click.echo("and in a second terminal")
    steps = {
        f"export GUIDEHALL_DATA={data}": "where the commands find it",
        "./run guidehall models": "what is served",
        f"./run guidehall submit {PIPELINE} --from examples/film.yml --watch": "a smaller training",
        f"./run guidehall submit {PIPELINE} --help": "every parameter, for a film of your own",
        "./run guidehall simulate --from examples/simulate.yml --plot film.png": "the curve of a known film",
    }
    width = max(map(len, steps))
    for command, about in steps.items():
        click.echo(f"  {command:<{width}}  # {about}")
    # Too long to stand in a column.
    click.echo(f"  ./run guidehall predict {measured_file()} --dq fwhm --resolution 0.05 --refine")


COMMANDS = (demo,)
