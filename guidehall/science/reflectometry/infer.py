"""Pipeline `reflectometry.infer`: the film behind one curve, many, several contrasts or a series."""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from guidehall.science.pipeline import Context, UserError, obey
from guidehall.science.reflectometry import engine, export, plots
from guidehall.science.reflectometry.analysis import Analysis
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import Search
from guidehall.science.reflectometry.formats.read import read_curves
from guidehall.science.reflectometry.infer_params import (
    MAX_CURVES,
    FittedCurve,
    FoundFilm,
    FoundParameter,
    InferParams,
    InferResult,
    Instrument,
    LayerEvidence,
    own_bounds,
    probe_of,
)
from guidehall.science.reflectometry.params import Note, Range, Stack, StackPrior, Tie
from guidehall.science.reflectometry.solve import Measured, Solution, series, solve

ROLE = "curves"
# Notes that speak against a film, whatever its probability among others.
_AGAINST_FILM = {
    "MODEL_INSUFFICIENT",
    "OUTSIDE_PRIOR",
    "ERROR_BARS_TOO_LARGE",
    "POOR_FIT",
    "NO_SIGNAL",
    "TOO_FEW_POINTS",
    "SAMPLES_NOT_MIXED",
}
# Fewer do not tell the evidence.
_EVIDENCE_SAMPLES = 200
# In a checkpoint, beside the files; no artifact may be called so.
_DOCUMENT = "."


def run(params: InferParams, context: Context) -> InferResult:
    """Fits what the dataset in the role `curves` holds."""
    began = time.monotonic()
    path = context.dataset(ROLE)
    curves = read_curves(path.read_bytes(), path.name, dq=params.dq_convention, field=f"inputs.{ROLE}")
    if len(curves) > MAX_CURVES:
        raise UserError(
            f"inputs.{ROLE}", f"{len(curves)} curves", f"at most {MAX_CURVES} are fitted in one job"
        )
    measured = _measured(params, curves)
    context.log(f"{len(curves)} curves, engine {engine.name()}")
    done = _Done(context)
    evidence = _evidence(params, measured, context, done) if params.layer_counts else []
    stopped = False
    for solution, items in _solutions(params, measured, context, done):
        done.keep(joint_files(items, solution.analyses))
        for item, analysis, film in zip(items, solution.analyses, solution.films, strict=True):
            label = f"curve-{len(done.fitted) + 1}"
            files = answer_files(label, params.stack, params.instrument, item, analysis, film)
            done.add(_fitted(label, item, analysis, script_notes(params.instrument)), files)
            context.progress(len(done.fitted), len(measured), phase="fit")
            notes = ", ".join(note.code for note in analysis.notes) or "no doubts"
            quality = analysis.reduced_chi_square
            per = "" if quality is None else f"chi-square per degree of freedom {quality:.3g}, "
            context.log(f"{item.name}: {per}{notes}")
        done.start |= solution.start
        stopped = done.obey() and len(done.fitted) < len(measured)
        if stopped:
            context.log(f"stopped after {len(done.fitted)} of {len(measured)} curves")
            break
    return InferResult(
        curves=done.fitted,
        stopped_early=stopped,
        layer_evidence=evidence,
        engine=engine.name(),
        seconds=time.monotonic() - began,
    )


class Counted(NamedTuple):
    """What speaks for a number of layers."""

    layers: int
    log_evidence: float
    chi_square: float
    doubts: str


class _Done:
    """What is done so far. Another attempt goes on after it: the job's checkpoint holds it with its files."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changed = False
        self._files: dict[str, tuple[bytes, str]] = {}
        self.fitted: list[FittedCurve] = []
        # In a series, where the fit of the next curve begins.
        self.start: dict[str, float] = {}
        # Numbers of layers that were tried, by the name of the curve.
        self.counts: dict[str, list[Counted]] = {}
        data = context.checkpoint.load()
        if data is not None:
            self._restore(data)

    def add(self, curve: FittedCurve, files: Iterator[tuple[str, bytes, str]]) -> None:
        """A curve, and name, content and media type of its files."""
        self.fitted.append(curve)
        self.keep(files)
        self._changed = True

    def keep(self, files: Iterable[tuple[str, bytes, str]]) -> None:
        """Name, content and media type of files of the result."""
        for name, data, media_type in files:
            self._files[name] = data, media_type
            self._context.artifact(name, data, media_type)

    def count(self, curve: str, counted: Counted) -> None:
        """The evidence of so many layers of a curve."""
        self.counts[curve].append(counted)
        self._changed = True

    def obey(self) -> bool:
        """See `pipeline.obey`. Saves only what is new, so a fit may call it often."""
        return obey(self._context, self._state, changed=self._changed)

    def _state(self) -> bytes:
        document = {
            "counts": self.counts,
            "start": self.start,
            "fitted": [curve.model_dump(mode="json") for curve in self.fitted],
            "media_types": {name: media_type for name, (_, media_type) in self._files.items()},
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(_DOCUMENT, json.dumps(document))
            for name, (data, _) in self._files.items():
                archive.writestr(name, data)
        self._changed = False
        return buffer.getvalue()

    def _restore(self, data: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            document = json.loads(archive.read(_DOCUMENT))
            for name, media_type in document["media_types"].items():
                self._files[name] = archive.read(name), media_type
        for name, (content, media_type) in self._files.items():
            self._context.artifact(name, content, media_type)
        self.counts = {name: [Counted(*item) for item in items] for name, items in document["counts"].items()}
        self.start = document["start"]
        self.fitted = [FittedCurve.model_validate(item) for item in document["fitted"]]
        self._context.log(f"goes on from the checkpoint after {len(self.fitted)} curves")


def _measured(params: InferParams, curves: Sequence[Curve]) -> list[Measured]:
    names = [curve.metadata.data_set or str(place) for place, curve in enumerate(curves, start=1)]
    if len(set(names)) < len(names):
        names = [str(place) for place in range(1, len(curves) + 1)]
    return list(map(Measured, names, curves, own_bounds(params.contrasts, names)))


def _solutions(
    params: InferParams, measured: Sequence[Measured], context: Context, done: _Done
) -> Iterator[tuple[Solution, Sequence[Measured]]]:
    """Of all curves that are not done."""
    left = measured[len(done.fitted) :]
    if not left:
        return
    options = _options(params, context, done) | {"samples": params.samples}
    if params.relation == "contrasts":
        yield solve(params.stack, measured=measured, **options), measured
    elif params.relation == "series":
        found = series(params.stack, measured=left, guess=done.start, **options)
        for item, solution in zip(left, found, strict=True):
            yield solution, [item]
    else:
        for item in left:
            yield solve(params.stack, measured=[item], **options), [item]


def _options(params: InferParams, context: Context, done: _Done) -> dict[str, Any]:
    """What all fits of a job have in common."""
    return {
        "probe": probe_of(params.instrument),
        "seed": context.seed,
        "how": Search(starts=params.starts),
        "segments": params.instrument.segment_bounds if params.instrument.segments else None,
        "pulse": done.obey,
    }


def _evidence(
    params: InferParams, measured: Sequence[Measured], context: Context, done: _Done
) -> list[LayerEvidence]:
    """How many layers each curve supports, or all contrasts together."""
    together = params.relation == "contrasts"
    cases = [("", measured)] if together else [(item.name, [item]) for item in measured]
    for item in measured:
        if item.curve.dr is None:
            raise UserError("layer_counts", params.layer_counts, f"curve {item.name} needs dr")
    total = len(cases) * params.layer_counts
    return [
        found
        for place, (name, items) in enumerate(cases)
        for found in _layer_evidence(params, name, items, context, done, place * params.layer_counts, total)
    ]


def _layer_evidence(
    params: InferParams,
    name: str,
    items: Sequence[Measured],
    context: Context,
    done: _Done,
    before: int,
    total: int,
) -> Iterator[LayerEvidence]:
    """Of 1 to n layers in the place of the one that is counted, with the curves as contrasts of one film.

    Args:
        name: of the one curve; empty for contrasts.
        done: what an earlier attempt has done of it.
        before, total: how many numbers of layers are tried for other curves before, and in all.
    """
    options = _options(params, context, done)
    counts = done.counts.setdefault(name, [])
    for count in range(len(counts) + 1, params.layer_counts + 1):
        context.progress(before + count - 1, total, phase="count layers")
        samples = max(params.samples, _EVIDENCE_SAMPLES)
        solution = solve(params.with_layers(count), measured=items, samples=samples, **options)
        assert solution.posterior is not None  # noqa: S101 (the curves have dr)
        codes = {note.code for analysis in solution.analyses for note in analysis.notes}
        doubts = ", ".join(sorted(codes & _AGAINST_FILM))
        log_evidence, chi_square = solution.posterior.log_evidence, solution.modes[0].chi_square
        done.count(name, Counted(count, log_evidence, chi_square, doubts))
        done.obey()
    best = max(item.log_evidence for item in counts)
    whole = sum(math.exp(item.log_evidence - best) for item in counts)
    for item in counts:
        probability = math.exp(item.log_evidence - best) / whole
        yield LayerEvidence(curve=name, probability=probability, **item._asdict())


def _fitted(label: str, item: Measured, analysis: Analysis, more: Sequence[Note]) -> FittedCurve:
    names = [parameter.name for parameter in analysis.parameters]
    error = analysis.mean_abs_log10_error
    return FittedCurve(
        label=label,
        name=item.name,
        points=len(analysis.q),
        chi_square=analysis.chi_square,
        reduced_chi_square=analysis.reduced_chi_square,
        mean_abs_log10_error=error if math.isfinite(error) else None,
        effective_samples=analysis.effective_samples,
        parameters=[FoundParameter(**asdict(item)) for item in analysis.parameters],
        explanations=[
            FoundFilm(chi_square=film.chi_square, values=dict(zip(names, film.values, strict=True)))
            for film in analysis.explanations
        ],
        notes=[*analysis.notes, *more],
    )


def answer_files(
    label: str, stack: StackPrior, instrument: Instrument, item: Measured, analysis: Analysis, film: Stack
) -> Iterator[tuple[str, bytes, str]]:
    """Name, content and media type of what an answer leaves.

    Pictures, the fitted curve, the film, and scripts with which to check it elsewhere.
    """
    curve = item.curve
    if curve.sigma is None:
        # What was assumed belongs to the answer: without it nobody gets the same chi-square.
        curve = replace(curve, dq=analysis.sigma)
    band = analysis.sld_band
    bands = () if band is None else ((band.lower_68, band.upper_68), (band.lower_95, band.upper_95))
    figures = {
        "fit": plots.fit(curve, analysis.calculated, analysis.line, analysis.calculated_band),
        "q4": plots.fit_q4(curve, analysis.calculated, analysis.line),
        "sld": plots.sld_bands(analysis.z, analysis.sld, *bands),
    }
    for name, figure in figures.items():
        yield from plots.files(f"{label}-{name}", figure)
    yield f"{label}.ort", export.to_ort(curve, analysis.calculated, film), "text/plain"
    yield f"{label}.npy", export.to_npy(curve), "application/x-npy"
    yield f"{label}.csv", export.to_csv(curve, analysis.calculated, analysis.calculated_band), "text/csv"
    profile = io.BytesIO()
    np.save(profile, np.stack([analysis.z, analysis.sld, analysis.isld]), allow_pickle=False)
    yield f"{label}-profile.npy", profile.getvalue(), "application/x-npy"
    yield f"{label}-profile.csv", export.profile_csv(analysis), "text/csv"
    if analysis.samples is not None:
        samples = export.samples_csv(analysis.parameters, analysis.samples)
        yield f"{label}-samples.csv", samples, "text/csv"
    yield f"{label}-parameters.csv", export.parameters_csv(analysis.parameters), "text/csv"
    if len(analysis.explanations) > 1:
        films = export.explanations_csv(analysis.parameters, analysis.explanations)
        yield f"{label}-explanations.csv", films, "text/csv"
    yield f"{label}-film.json", json.dumps(film.model_dump(), indent=2).encode(), "application/json"
    if curve.dr is None or script_notes(instrument):
        return
    if not instrument.segments:
        curve = replace(curve, segment=None)
    values = {parameter.name: parameter.value for parameter in analysis.parameters}
    known = {
        "scale": instrument.scale,
        "background": instrument.background,
        "q_offset": instrument.q_offset,
        **instrument.segment_bounds,
        **item.own,
    }

    def value(name: str) -> float:
        """What was found, or where the bounds fix it; a further segment has those of the first by default."""
        return values.get(name, known.get(name, known[name.partition("[")[0]]).min)

    count = 1 if curve.segment is None else int(curve.segment.max()) + 1
    numbers = ["", *(f"[{number}]" for number in range(2, count + 1))]
    options: dict[str, Any] = {
        "scale": [value(f"scale{number}") for number in numbers],
        "background": [value(f"background{number}") for number in numbers],
        "q_offset": value("q_offset"),
        "free": _plain_bounds(stack, analysis),
    }
    for package, script in (("refl1d", export.refl1d_script), ("refnx", export.refnx_script)):
        text = script(curve, film, **options)
        yield f"{label}-{package}.py", text.encode(), "text/x-python"


def joint_files(items: Sequence[Measured], analyses: Sequence[Analysis]) -> Iterator[tuple[str, bytes, str]]:
    """Name, content and media type of the picture of several curves that were fitted together."""
    if len(items) > 1:
        names, curves = [item.name for item in items], [item.curve for item in items]
        yield from plots.files("joint", plots.joint_answer(names, curves, analyses))


def script_notes(instrument: Instrument) -> tuple[Note, ...]:
    """Why there are no scripts to check a fit, where the instrument does what they cannot say."""
    if instrument.footprint_q == Range(min=0.0, max=0.0):
        return ()
    message = (
        "refl1d and refnx cannot say footprint_q, a footprint that acts before the resolution: there are no"
        " scripts to check this fit"
    )
    return (Note("NO_SCRIPTS", message),)


def _plain_bounds(stack: StackPrior, analysis: Analysis) -> dict[str, tuple[float, float]] | None:
    """What a script may go on to fit: all parameters, or none of a film whose parameters are tied."""
    parts = (stack.fronting, *stack.layers, stack.backing)
    tied = any(isinstance(bounds, Tie) for part in parts for _, bounds in part)
    wet = any(layer.solvent is not None for layer in stack.layers)
    repeated = len(stack.sequence) > len(stack.layers)
    if tied or wet or repeated or stack.parameters or stack.max_roughness_share is not None:
        return None
    return {parameter.name: (parameter.lower, parameter.upper) for parameter in analysis.parameters}
