"""`guidehall predict FILE`: physics from a measured curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._flags import in_flags
from guidehall.cli._output import clean, emit, number, pairs, table

if TYPE_CHECKING:
    from guidehall.client import Analysis, Parameter

# How near to a bound, in parts of the allowed range, a parameter counts as stuck to it.
_AT_BOUND = 1e-3
# Fields of a curve, as the client and as the server call them.
_FLAGS = {"model": "--model"} | {
    f"{prefix}{field}": flag
    for prefix in ("", "curve.")
    for field, flag in (
        ("dq", "--dq"),
        ("dq_convention", "--dq"),
        ("relative_dq", "--resolution"),
        ("q_unit", "--q-unit"),
        ("beam_side", "--beam-side"),
    )
}


@click.command(
    epilog="""\b
FILE has 2 to 4 columns: q, R, dR, dq, separated by blanks, commas or semicolons, or is a numpy .npy of them.
A fourth column is a standard deviation in some places and a full width at half maximum in others: say which.

\b
Examples
  guidehall predict measured.dat --dq fwhm
  guidehall predict measured.txt --resolution 0.05 --dq fwhm --refine --plot fit.png
  guidehall predict measured.csv --dq sigma --model film@3 --json
"""
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Such as film, or film@3; without it the newest that accepts the curve.")
@click.option("--refine", is_flag=True, help="Follow the network's answer by a bounded least-squares fit.")
@click.option(
    "--dq", type=click.Choice(("sigma", "fwhm")), help="What a fourth column, or --resolution, means."
)
@click.option(
    "--resolution",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="DQ/Q",
    help="Relative resolution of a file without a fourth column, such as 0.05; needs --dq.",
)
@click.option(
    "--q-unit",
    type=click.Choice(("1/angstrom", "1/nm")),
    default="1/angstrom",
    show_default=True,
    help="Unit of q.",
)
@click.option(
    "--beam-side",
    type=click.Choice(("fronting", "backing")),
    help="Medium that the beam comes through; without it the model's.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw fit, residuals and profile into this file (.png, .pdf, .svg).",
)
@json_option
def predict(
    file: Path,
    model: str | None,
    refine: bool,
    dq: str | None,
    resolution: float | None,
    q_unit: str,
    beam_side: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Read a measured curve from FILE and tell the film: layers with units and bounds, chi-square, notes."""
    from guidehall.client import Stage, read_curve

    if resolution is not None and dq is None:
        raise click.UsageError("--resolution needs --dq: is it sigma or fwhm?")
    if plot is not None:
        # Before the work, so that it is not in vain.
        from guidehall.cli._plot import check_plot

        check_plot(plot)
    with in_flags(_FLAGS):
        curve = read_curve(file, dq, resolution, q_unit, beam_side)
        with connect() as client:
            analysis = client.analyze(curve, model, Stage.REFINED if refine else Stage.NETWORK)
    if plot is not None:
        from guidehall.cli._plot import draw_analysis

        draw_analysis(curve, analysis, plot, title=file.name)
    if as_json:
        emit(analysis)
        return
    _show(analysis, len(curve.q))
    if plot is not None:
        click.echo(f"drawn in {plot}")


def _show(analysis: Analysis, points: int) -> None:
    with_errors = any(parameter.standard_error is not None for parameter in analysis.parameters)
    rows = [
        (
            parameter.name,
            parameter.value,
            *((parameter.standard_error,) if with_errors else ()),
            parameter.unit,
            parameter.lower,
            parameter.upper,
            at_bound(parameter),
        )
        for parameter in analysis.parameters
    ]
    errors = ("± 1 SD",) if with_errors else ()
    table(("PARAMETER", "VALUE", *errors, "UNIT", "LOWEST", "HIGHEST", ""), rows)
    click.echo()
    pairs(
        {
            "stage": "network, then least squares" if analysis.stage.value == "refined" else "network alone",
            "model": analysis.model_version,
            "digest": analysis.model_digest[:16],
            "points": f"{len(analysis.used_points)} of {points}",
            "chi-square": _chi_square(analysis),
            "mean |Δ log10 R|": number(analysis.mean_abs_log10_error),
        }
    )
    for note in analysis.notes:
        click.echo(f"note: {clean(note.message)} [{clean(note.code)}]")


def _chi_square(analysis: Analysis) -> str:
    if analysis.chi_square is None:
        return "not known without dR"
    reduced = analysis.reduced_chi_square
    return number(analysis.chi_square) + (
        "" if reduced is None else f" ({number(reduced)} per degree of freedom)"
    )


def at_bound(parameter: Parameter) -> str:
    """Says so when the value sticks to a bound of the prior: then the bound, not the curve, chose it."""
    width = parameter.upper - parameter.lower
    if width <= 0:
        return "fixed"
    if parameter.value - parameter.lower < _AT_BOUND * width:
        return "at lower bound"
    return "at upper bound" if parameter.upper - parameter.value < _AT_BOUND * width else ""


COMMANDS = (predict,)
