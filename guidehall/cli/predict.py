"""`guidehall predict FILE`: physics from a measured curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._curves import Said, read
from guidehall.cli._flags import in_flags
from guidehall.cli._output import clean, emit, number, pairs, table, wrapped

if TYPE_CHECKING:
    from guidehall.client import Analysis, Explanation, Parameter

# How near to a bound, in parts of the allowed range, a parameter counts as stuck to it.
_AT_BOUND = 1e-4
_DECADES = 100.0
# Of the posterior, where nobody says how many: well below a second.
_SAMPLES = 500
_MAX_SAMPLES = 5000
# So many of the films that the curve allows have room in a table.
_SHOWN_FILMS = 6
# Fields of a curve, as the client and as the server call them.
_FLAGS = {
    "model": "--model",
    "data_set": "--data-set",
    "samples": "--samples",
    "seed": "--seed",
} | {
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
With the extra "science" it may also be ORSO text (.ort), NeXus or other HDF5, or text with named columns.
A fourth column is a standard deviation in some places and a full width at half maximum in others: say which,
where the file does not.

\b
Examples
  guidehall predict measured.dat --dq fwhm
  guidehall predict measured.txt --resolution 0.05 --dq fwhm --refine --plot fit.png
  guidehall predict measured.csv --dq sigma --model film@3 --json
  guidehall predict measured.ort --data-set 2 --refine --samples 2000 --seed 1
"""
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Such as film, or film@3; without it the one that explains the curve best.")
@click.option("--refine", is_flag=True, help="Follow the network's answer by a bounded least-squares fit.")
@click.option(
    "--samples",
    type=click.IntRange(0, _MAX_SAMPLES),
    help=f"Of the posterior, for intervals and bands; 0 draws none.  [{_SAMPLES} with --refine and dR]",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**53 - 1), help="Of the fit's starts and of the samples.  [0]"
)
@click.option(
    "--data-set", metavar="NAME", help="Which of several curves in FILE: its name, or its place from 1."
)
@click.option(
    "--dq",
    type=click.Choice(("sigma", "fwhm")),
    help="What a fourth column, or --resolution, means, where the file does not say it.",
)
@click.option(
    "--resolution",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="DQ/Q",
    help="Relative resolution of a file that has none, such as 0.05; needs --dq.",
)
@click.option(
    "--q-unit",
    type=click.Choice(("1/angstrom", "1/nm")),
    help="Unit of q, where the file does not say it.  [1/angstrom]",
)
@click.option(
    "--beam-side",
    type=click.Choice(("fronting", "backing")),
    help="Medium that the beam comes through; without it the model's.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw fit, residuals, profile and bands into this file (.png, .pdf, .svg).",
)
@json_option
def predict(
    file: Path,
    model: str | None,
    refine: bool,
    samples: int | None,
    seed: int | None,
    data_set: str | None,
    dq: Literal["sigma", "fwhm"] | None,
    resolution: float | None,
    q_unit: Literal["1/angstrom", "1/nm"] | None,
    beam_side: Literal["fronting", "backing"] | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Read a measured curve from FILE and tell the film: layers with units and bounds, chi-square, notes.

    With --refine also credible intervals, and the other films that the curve allows.
    """
    from guidehall.client import Note, Stage

    if resolution is not None and dq is None:
        raise click.UsageError("--resolution needs --dq: is it sigma or fwhm?")
    if not refine and (samples or seed is not None):
        raise click.UsageError("--samples and --seed need --refine: the network's answer has no intervals")
    if plot is not None:
        # Before the work, so that it is not in vain.
        from guidehall.cli._plot import check_plot

        check_plot(plot)
    with in_flags(_FLAGS):
        curve, file_notes = read(file, Said(dq, resolution, q_unit, beam_side, data_set))
        if samples is None:
            samples = _SAMPLES if refine and len(curve.dr) else 0
        stage = Stage.REFINED if refine else Stage.NETWORK
        with connect() as client:
            analysis = client.analyze(curve, model, stage, samples=samples, seed=seed or 0)
    understood = tuple(Note("FILE_READ", text) for text in file_notes)
    analysis = replace(analysis, notes=(*understood, *analysis.notes))
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
    with_intervals = any(parameter.interval_95 is not None for parameter in analysis.parameters)
    rows = [
        (
            parameter.name,
            parameter.value,
            *((parameter.standard_error,) if with_errors else ()),
            *((_interval(parameter.interval_68), _interval(parameter.interval_95)) if with_intervals else ()),
            parameter.unit,
            parameter.lower,
            parameter.upper,
            at_bound(parameter),
        )
        for parameter in analysis.parameters
    ]
    errors = ("± 1 SD",) if with_errors else ()
    intervals = ("68 %", "95 %") if with_intervals else ()
    table(("PARAMETER", "VALUE", *errors, *intervals, "UNIT", "LOWEST", "HIGHEST", ""), rows)
    click.echo()
    if len(analysis.explanations) > 1:
        _show_explanations(analysis.explanations)
    pairs(
        {
            "stage": "network, then least squares" if analysis.stage.value == "refined" else "network alone",
            "model": analysis.model_version,
            "digest": analysis.model_digest[:16],
            "points": f"{len(analysis.used_points)} of {points}",
            "chi-square": _chi_square(analysis),
            "mean |Δ log10 R|": number(analysis.mean_abs_log10_error),
            "independent samples": _about(analysis.effective_samples),
        }
    )
    for note in analysis.notes:
        click.echo(wrapped(f"note: {clean(note.message)} [{clean(note.code)}]"))


def _show_explanations(films: Sequence[Explanation]) -> None:
    """One column for each film, the best first."""
    shown = films[:_SHOWN_FILMS]
    others = len(films) - len(shown)
    more = "" if not others else f"; {others} more with --json"
    click.echo(f"{len(films)} films explain the curve, the best first{more}")
    rows = [(name, *(film.values.get(name) for film in shown)) for name in shown[0].values]
    rows.append(("chi-square", *(film.chi_square for film in shown)))
    table(("PARAMETER", *(f"FILM {place}" for place in range(1, len(shown) + 1))), rows)
    click.echo()


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.5g} to {ends[1]:.5g}"


def _about(count: float | None) -> str:
    return "" if count is None else f"about {count:.0f}"


def _chi_square(analysis: Analysis) -> str:
    if analysis.chi_square is None:
        return "not known without dR"
    reduced = analysis.reduced_chi_square
    return number(analysis.chi_square) + (
        "" if reduced is None else f" ({number(reduced)} per degree of freedom)"
    )


def at_bound(parameter: Parameter) -> str:
    """Says so when the value sticks to a bound of the prior: then the bound, not the curve, chose it."""
    ends = (parameter.lower, parameter.value, parameter.upper)
    if ends[0] > 0 and ends[2] > _DECADES * ends[0]:
        # Bounds over decades are those of a logarithm.
        ends = (math.log(ends[0]), math.log(max(ends[1], ends[0])), math.log(ends[2]))
    low, value, high = ends
    if high <= low:
        return "fixed"
    if value - low < _AT_BOUND * (high - low):
        return "at lower bound"
    return "at upper bound" if high - value < _AT_BOUND * (high - low) else ""


COMMANDS = (predict,)
