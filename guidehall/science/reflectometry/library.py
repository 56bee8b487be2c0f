"""The science without the platform: `guidehall.fit`, the same code that the platform runs."""

from __future__ import annotations

import base64
import html
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import ValidationError

import guidehall
from guidehall.science.pipeline import UserError, first_fault
from guidehall.science.reflectometry import plots
from guidehall.science.reflectometry.analysis import Analysis, Parameter
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import Search
from guidehall.science.reflectometry.formats.common import QUnit
from guidehall.science.reflectometry.formats.read import read_files
from guidehall.science.reflectometry.formats.safe_yaml import load_all
from guidehall.science.reflectometry.infer import answer_files, joint_files, script_notes
from guidehall.science.reflectometry.infer_params import (
    MAX_SAMPLES,
    MAX_STARTS,
    InferParams,
    Instrument,
    own_bounds,
    probe_of,
)
from guidehall.science.reflectometry.params import Note, Range, ResolutionConvention, StackPrior
from guidehall.science.reflectometry.progress import ProgressLine
from guidehall.science.reflectometry.solve import OF_THE_ANSWER, Measured, Solution, solve

_LARGEST_SEED = 2**53 - 1

Model = StackPrior | Mapping[str, Any] | str | Path
Data = str | Path | Curve | Sequence[str | Path | Curve]

_CITATIONS = (
    "L. G. Parratt, Phys. Rev. 95, 359 (1954): the recursion over layers.",
    "L. Névot and P. Croce, Rev. Phys. Appl. 15, 761 (1980): rough interfaces.",
    "D. W. Marquardt, J. Soc. Ind. Appl. Math. 11, 431 (1963): least squares.",
    "P. Del Moral, A. Doucet and A. Jasra, J. R. Stat. Soc. B 68, 411 (2006): samples of the posterior.",
)


@dataclass(frozen=True)
class Fit:
    """What was found. In a notebook it shows itself.

    Attributes:
        curves: as they were fitted.
        analyses: one for each curve: its parameters, profile, calculated curve, residuals and notes.
    """

    stack: StackPrior
    instrument: Instrument
    curves: tuple[Measured, ...]
    solution: Solution

    @property
    def analyses(self) -> tuple[Analysis, ...]:
        """One for each curve."""
        return self.solution.analyses

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All that was fitted, with error bars; of several curves those of each but what they share once."""
        found: dict[str, Parameter] = {}
        for item, analysis in zip(self.curves, self.analyses, strict=True):
            joint = {parameter.name for parameter in self.solution.free}
            for parameter in analysis.parameters:
                own = f"{item.name}: {parameter.name}"
                name = own if own in joint else parameter.name
                found.setdefault(name, replace(parameter, name=name))
        return tuple(found.values())

    def __getitem__(self, name: str) -> Parameter:
        """The parameter of that name, such as "film.thickness".

        Raises:
            KeyError: there is none.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(f"{name!r}; the parameters are {', '.join(p.name for p in self.parameters)}")

    @property
    def chi_square(self) -> float | None:
        """Of all curves together; None where one has no dr."""
        return self.solution.modes[0].chi_square if self._has_errors else None

    @property
    def reduced_chi_square(self) -> float | None:
        """Chi-square per degree of freedom; None also where there are not more points than parameters."""
        freedom = self.points - len(self.solution.free)
        return None if self.chi_square is None or freedom <= 0 else self.chi_square / freedom

    @property
    def points(self) -> int:
        """Of all curves together, those that were used."""
        return sum(len(analysis.q) for analysis in self.analyses)

    @property
    def mean_abs_log10_error(self) -> float:
        """Mean of |log10 measured - log10 calculated| over all curves; NaN where nothing is positive."""
        errors = [analysis.mean_abs_log10_error for analysis in self.analyses]
        return float(np.average(errors, weights=[len(analysis.q) for analysis in self.analyses]))

    @property
    def _has_errors(self) -> bool:
        return all(item.curve.dr is not None for item in self.curves)

    @property
    def _quality(self) -> str:
        if self.chi_square is None:
            return f"mean |log10 R| between curve and answer {self.mean_abs_log10_error:.3g}"
        said = (
            f"chi-square {self.chi_square:.6g} for {self.points} points, {len(self.solution.free)} parameters"
        )
        each = self.reduced_chi_square
        return said if each is None else f"{said} ({each:.3g} per degree of freedom)"

    @property
    def notes(self) -> tuple[Note, ...]:
        """What a reader must know; of several curves it begins with the curve that it is about."""
        found = []
        for item, analysis in zip(self.curves, self.analyses, strict=True):
            about = f"curve {item.name}: " if len(self.curves) > 1 else ""
            found += [
                note if note.code in OF_THE_ANSWER else replace(note, message=f"{about}{note.message}")
                for note in analysis.notes
            ]
        return (*found, *script_notes(self.instrument))

    def plot(self, curve: int | None = None) -> Figure:
        """Measured and calculated curves, what is left over, and profiles with their bands.

        Args:
            curve: its place from 0, to draw one of several; without it all are drawn.

        Raises:
            UserError: there is no such curve.
        """
        if curve is None and len(self.curves) > 1:
            return plots.joint_answer(
                [item.name for item in self.curves], [item.curve for item in self.curves], self.analyses
            )
        place = curve or 0
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(self.curves):
            raise UserError("curve", curve, f"must be a whole number from 0 to {len(self.curves) - 1}")
        item, analysis = self.curves[place], self.analyses[place]
        return plots.answer(item.curve, analysis)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes the answer, pictures, curves, films, scripts for refl1d and refnx; returns their paths.

        Files that are called so are replaced.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for name, data in self._files():
            path = target / name
            path.write_bytes(data)
            written.append(path)
        return written

    def _files(self) -> Iterator[tuple[str, bytes]]:
        yield "answer.txt", f"{self}\n".encode()
        for name, data, _ in joint_files(self.curves, self.analyses):
            yield name, data
        found = zip(self.curves, self.analyses, self.solution.films, strict=True)
        for place, (item, analysis, film) in enumerate(found, start=1):
            files = answer_files(f"curve-{place}", self.stack, self.instrument, item, analysis, film)
            for name, data, _ in files:
                yield name, data

    def cite(self) -> str:
        """What to cite beside the data."""
        return "\n".join((f"Guidehall {guidehall.__version__}", *_CITATIONS))

    def __str__(self) -> str:
        lines = [self._quality]
        for parameter in self.parameters:
            lines.append(f"{parameter.name:24} {_said(parameter, self._has_errors)}")
        lines += [f"{note.code}: {note.message}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(p.name)}</td><td>{p.value:.6g}</td>"
            f"<td>{'' if p.standard_error is None else format(p.standard_error, '.2g')}</td>"
            f"<td>{html.escape(p.unit)}</td><td>{_interval(p)}</td><td>{p.at_bound}</td></tr>"
            for p in self.parameters
        )
        picture = f'<img alt="fit" src="data:image/png;base64,{_encoded(self.plot())}">'
        notes = "".join(f"<p>{html.escape(f'{note.code}: {note.message}')}</p>" for note in self.notes)
        head = "".join(f"<th>{name}</th>" for name in ("parameter", "value", "±", "unit", "95 %", ""))
        return f"<p>{self._quality}</p><table><tr>{head}</tr>{rows}</table>{notes}{picture}"


def _said(parameter: Parameter, has_errors: bool) -> str:
    """A value with error bar, unit, interval, and where it rests at a bound."""
    error = parameter.standard_error
    if error is not None and error > 0 and parameter.value:
        # As many digits as the error bar leaves.
        digits = math.floor(math.log10(abs(parameter.value))) - math.floor(math.log10(error)) + 2
        value = f"{parameter.value:#.{max(digits, 1)}g}".rstrip(".")
        said = f"{value} ± {error:#.2g}".rstrip(".")
    else:
        said = f"{parameter.value:.6g}"
    said += f" {parameter.unit}".rstrip()
    if has_errors and error is None and not parameter.at_bound:
        # The curvature says no more than the bounds.
        said += ", ± unknown"
    if parameter.interval_95 is not None:
        said += f"  (95 %: {_interval(parameter)})"
    return f"{said} {parameter.at_bound}".rstrip()


def _interval(parameter: Parameter) -> str:
    """The 95 % interval, where the posterior was sampled."""
    return "" if parameter.interval_95 is None else "{:.5g} to {:.5g}".format(*parameter.interval_95)


def _encoded(figure: Figure) -> str:
    return base64.b64encode(plots.picture(figure, "png")).decode()


def fit(
    data: Data,
    model: Model,
    *,
    own: Sequence[Mapping[str, Any]] = (),
    instrument: Instrument | Mapping[str, Any] | None = None,
    dq: ResolutionConvention | None = None,
    q_unit: QUnit | None = None,
    resolution: float | None = None,
    samples: int | None = None,
    starts: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Fit:
    """Finds the film behind a measured curve, or behind several curves of one film.

    Args:
        data: a file (ORSO, text, NeXus, .npy) or several, or curves. Several curves share the film.
        model: what is known of the film, with bounds: a `StackPrior`, a mapping like one, or a YAML or JSON
            file that holds one, by itself or as `stack` of the parameters of `reflectometry.infer`. Of these
            `instrument`, `contrasts`, `dq_convention`, `samples` and `starts` count where nothing else is
            given here.
        own: for each curve the bounds that hold for it alone, such as
            {"water.sld": {"min": 5.9, "max": 6.4}}.
        instrument: bounds of scale and background, and the resolution of curves that have none.
        dq: what dq in the file is, where the file does not say it.
        q_unit: of q in the file, where the file does not say it.
        resolution: dq/q of curves that have none, in place of the instrument's; what it is says `dq`, else
            the instrument.
        samples: of the posterior, for intervals and bands; 0 leaves them out. By default 500.
        starts: of the search. By default 24.
        seed: the same gives the same answer.
        progress: whether a line on standard error says how far it is; by default where that is a terminal or
            a notebook.

    Raises:
        UserError: names what is wrong and what is allowed.
    """
    known = _known(model)
    samples = known.samples if samples is None else samples
    starts = known.starts if starts is None else starts
    for name, value, least, most in (
        ("samples", samples, 0, MAX_SAMPLES),
        ("starts", starts, 1, MAX_STARTS),
        ("seed", seed, 0, _LARGEST_SEED),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(name, value, f"must be a whole number from {least} to {most}")
    items = _measured(data, dq, q_unit, own, known)
    probe = _instrument(known.instrument if instrument is None else instrument, resolution, dq)
    # A notebook shows what is told, too.
    wanted = (sys.stderr.isatty() or "ipykernel" in sys.modules) if progress is None else progress
    with ProgressLine(sys.stderr if wanted else None) as line:
        solution = solve(
            known.stack,
            probe_of(probe),
            items,
            seed=seed,
            how=Search(starts=starts),
            samples=samples,
            segments=probe.segment_bounds if probe.segments else None,
            pulse=line.pulse,
            tell=line.stage,
        )
    return Fit(known.stack, probe, items, solution)


def _measured(
    data: Data,
    dq: ResolutionConvention | None,
    q_unit: QUnit | None,
    own: Sequence[Mapping[str, Any]],
    known: InferParams,
) -> tuple[Measured, ...]:
    """The curves with their names, which are those of the files or their places."""
    items = [data] if isinstance(data, str | Path | Curve) else list(data)
    if not items:
        raise UserError("data", "no curves", "must hold at least one")
    paths = [Path(item) for item in items if isinstance(item, str | Path)]
    for name, value in (("dq", dq), ("q_unit", q_unit)):
        if value is not None and not paths:
            raise UserError(name, value, "only with files: a Curve has q and one standard deviation of it")
    curves = [item for item in items if isinstance(item, Curve)]
    if len(curves) + len(paths) < len(items) or (curves and paths):
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise UserError("data", kinds, "must be files or curves, all of one kind")
    names = []
    if paths:
        curves = read_files(paths, dq or known.dq_convention, q_unit)
        names = [curve.metadata.data_set for curve in curves] if len(curves) > 1 else []
    names = names or [str(place) for place in range(1, len(curves) + 1)]
    for item in [own] if isinstance(own, str | Mapping) else own:
        if not isinstance(item, Mapping) or own is item:
            raise UserError("own", type(item).__name__, "must be a list: for each curve, bounds by name")
    if len(curves) > 1 and known.relation != "contrasts" and "relation" in known.model_fields_set:
        allowed = "contrasts: these curves are fitted as one film; the platform fits others"
        raise UserError("model.relation", known.relation, allowed)
    given = [{name: _range(bounds, name) for name, bounds in item.items()} for item in own]
    if given and len(given) != len(curves):
        raise UserError(
            "own", f"{len(given)} sets of bounds", f"must be one for each of {len(curves)} curves"
        )
    return tuple(map(Measured, names, curves, given or own_bounds(known.contrasts, names)))


def _known(model: Model) -> InferParams:
    """What the document says: a film, by itself or among the parameters of a job."""
    if isinstance(model, StackPrior):
        return InferParams(stack=model)
    if isinstance(model, str | Path):
        path = Path(model)
        try:
            documents = load_all(path.read_text(encoding="utf-8"), path.name)
        except (OSError, UnicodeDecodeError):
            raise UserError("model", path, "must be a YAML or JSON file that can be read") from None
        model = documents[0] if documents and isinstance(documents[0], Mapping) else {}
    if not isinstance(model, Mapping) or "stack" not in model:
        return InferParams(stack=_valid(StackPrior, model, "model"))
    known: InferParams = _valid(InferParams, model, "model")
    if known.layer_counts:
        allowed = "0: numbers of layers are compared by the platform"
        raise UserError("model.layer_counts", known.layer_counts, allowed)
    return known


def _instrument(
    given: Instrument | Mapping[str, Any], resolution: float | None, convention: ResolutionConvention | None
) -> Instrument:
    found: Instrument = given if isinstance(given, Instrument) else _valid(Instrument, given, "instrument")
    if resolution is None:
        return found
    wanted = {"resolution": resolution} | ({"resolution_convention": convention} if convention else {})
    changed: Instrument = _valid(Instrument, dict(found) | wanted, "instrument")
    return changed


def _range(bounds: Any, name: str) -> Range:
    found: Range = bounds if isinstance(bounds, Range) else _valid(Range, bounds, f"own.{name}")
    return found


def _valid(kind: Any, document: Any, where: str) -> Any:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise first_fault(error, where) from None
