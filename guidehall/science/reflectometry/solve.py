"""Measured curves in, films out, without a network: what `reflectometry.infer` and `guidehall.fit` share."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from guidehall.science.pipeline import UserError, first_fault
from guidehall.science.reflectometry.analysis import (
    Analysis,
    Prepared,
    describe,
    drawn_line,
    file_notes,
    given_resolution,
    target_of,
)
from guidehall.science.reflectometry.curves import Curve
from guidehall.science.reflectometry.fit import (
    CurveTarget,
    JointTarget,
    LogTarget,
    Mode,
    Search,
    search,
    sharpen,
)
from guidehall.science.reflectometry.params import (
    Note,
    Range,
    ResolutionMode,
    Stack,
    StackPrior,
    TrainingProbe,
    segment_bounds,
)
from guidehall.science.reflectometry.posterior import Posterior, sample
from guidehall.science.reflectometry.prior import FreeParameter, Prior, Segments
from guidehall.science.reflectometry.verdict import doubts
from guidehall.science.reflectometry.watched import Pulse, Tell, Watched, nothing, silent

# Of a layer of a stack.
_LONGEST_NAME = 40
# Of the instrument, so each curve has its own.
_INSTRUMENT = ("scale", "background", "q_offset", "footprint_q")
# Notes that are of no single curve.
OF_THE_ANSWER = {"SEVERAL_FILMS", "FEW_SAMPLES", "SAMPLES_NOT_MIXED"}


@dataclass(frozen=True)
class Measured:
    """A curve, and what in its sample differs from the others'.

    Attributes:
        name: of the curve, such as "D2O".
        own: bounds that hold for this curve alone, by the parameter's name, such as "water.sld". Parameters
            without own bounds are shared by all curves, but for scale, background, q_offset and footprint_q.
    """

    name: str
    curve: Curve
    own: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """What several curves say together.

    Attributes:
        free: the joint parameters; those of one curve are called "<curve>: <parameter>".
        modes: explanations of all curves, best first, in the unit cube of `free`.
        posterior: samples of the same cube; None where a curve has no dr or none were wanted.
        analyses: one for each curve, in its own parameters.
        films: the best for each curve, with all its layers.
    """

    free: tuple[FreeParameter, ...]
    modes: tuple[Mode, ...]
    posterior: Posterior | None
    analyses: tuple[Analysis, ...]
    films: tuple[Stack, ...]

    @property
    def start(self) -> dict[str, float]:
        """The best explanation, as a start for the fit of a curve that is much the same."""
        names = (free.name for free in self.free)
        return dict(zip(names, self.modes[0].unit.tolist(), strict=True))


def solve(
    stack: StackPrior,
    probe: TrainingProbe,
    measured: Sequence[Measured],
    *,
    seed: int,
    how: Search,
    samples: int = 0,
    guess: Mapping[str, float] | None = None,
    segments: Mapping[str, Range] | None = None,
    pulse: Pulse = nothing,
    tell: Tell = silent,
) -> Solution:
    """Fits one film, or films that share parameters, to all curves together.

    Args:
        stack: what is known of the film.
        probe: bounds of scale, background and q_offset, and the resolution where a curve has none. Its range
            of q is not used.
        seed: of starts and samples.
        samples: of the posterior.
        guess: a start in the unit cube of the joint parameters, by their names.
        segments: bounds of the further segments of a curve, such as "scale[2]", each of which has a scale and
            a background of its own, by default with the bounds of the first; those that a curve does not have
            do not matter. None takes a curve as one.
        pulse: called often; what it raises ends the fit.
        tell: called with each stage of the fit.

    Raises:
        UserError: a curve is wrong, or its own bounds name no parameter.
    """
    cases = [_Case.of(stack, probe, item, index, segments) for index, item in enumerate(measured)]
    names, free, columns = _joint(cases, measured)
    guesses = torch.zeros(1, 0, len(names), dtype=torch.float64)
    if guess:
        # A curve may have more segments than the one before it: those begin like the first.
        start = [guess.get(name, guess.get(name.partition("[")[0], 0.5)) for name in names]
        guesses = torch.tensor(start, dtype=torch.float64)[None, None]
    threads = min(len(cases), torch.get_num_threads())
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:

        def joint(targets: Iterable[CurveTarget | LogTarget]) -> JointTarget:
            # All curves are calculated together, so that one pulse is that of all.
            pulses = itertools.chain([pulse], itertools.repeat(nothing))
            return JointTarget(list(map(Watched, targets, pulses)), columns, pool)

        target = joint(case.target for case in cases)
        smoother = joint(LogTarget(case.target) for case in cases)
        tell("looking for films that explain the data")
        found = search(target, smoother, guesses, seed, how)[0]
        modes = sharpen(joint(case.exact for case in cases), found)
        posterior = None
        if samples and all(case.prepared.dr is not None for case in cases):
            posterior = sample(
                target,
                modes,
                samples,
                seed,
                reached=lambda share: tell(f"sampling the posterior, {share:.0%}"),
            )
    tell("profiles and bands")
    analyses = tuple(
        _analysis(case, np.array(places), modes, posterior, pulse, first=number == 0)
        for number, (case, places) in enumerate(zip(cases, columns, strict=True))
    )
    films = tuple(case.film(modes[0].unit[places]) for case, places in zip(cases, columns, strict=True))
    return Solution(tuple(free), modes, posterior, analyses, films)


def series(
    stack: StackPrior,
    probe: TrainingProbe,
    measured: Sequence[Measured],
    *,
    seed: int,
    how: Search,
    samples: int = 0,
    segments: Mapping[str, Range] | None = None,
    pulse: Pulse = nothing,
    guess: Mapping[str, float] | None = None,
) -> Iterator[Solution]:
    """Fits curves one after the other, each from the answer to the one before: a film that dries.

    Arguments are those of `solve`; `guess` is the answer to the curve before the first.
    """
    known = dict(guess or {})
    for item in measured:
        found = solve(
            stack,
            probe,
            [item],
            seed=seed,
            how=how,
            samples=samples,
            guess=known,
            segments=segments,
            pulse=pulse,
        )
        known |= found.start
        yield found


@dataclass(frozen=True)
class _Case:
    """One curve, ready to be fitted; `exact` is for the last steps of a fit."""

    curve: Curve
    stack: StackPrior
    prior: Prior
    prepared: Prepared
    mode: ResolutionMode
    target: CurveTarget
    exact: CurveTarget
    segmented: bool

    @classmethod
    def of(
        cls,
        stack: StackPrior,
        probe: TrainingProbe,
        item: Measured,
        index: int,
        segments: Mapping[str, Range] | None,
    ) -> _Case:
        where = f"curves[{index}]"
        item.curve.check(where)
        if item.curve.beam_side not in (None, stack.beam):
            raise UserError(
                f"{where}.beam_side", item.curve.beam_side, f"the stack is seen through its {stack.beam}"
            )
        of_segments = {name: bounds for name, bounds in item.own.items() if "[" in name}
        _check_segments(of_segments, 1 if segments is None else _segment_count(item.curve), f"{where}.own")
        whole = {name: bounds for name, bounds in item.own.items() if name not in of_segments}
        stack, probe = _with_own(stack, probe, whole, f"{where}.own")
        own_segments = None
        if segments is not None and item.curve.segment is not None:
            own_segments = Segments(
                item.curve.segment, _of_segments(probe, {**segments, **of_segments}, f"{where}.own")
            )
        prior = Prior(stack, probe, segments=own_segments)
        prepared = _prepare(probe, item.curve)
        mode = probe.resolution_mode
        target, exact = (target_of(prior, prepared, mode, exact=exact) for exact in (False, True))
        return cls(item.curve, stack, prior, prepared, mode, target, exact, own_segments is not None)

    def film(self, unit: np.ndarray) -> Stack:
        """The film at a point of the prior's unit cube, repeated layers written out."""
        stack = self.stack
        media = self.prior.films(self.prior.values(torch.from_numpy(unit)[None]))
        sld, isld, thickness, roughness = (
            part[0].tolist() for part in (media.sld, media.isld, media.thickness, media.roughness)
        )
        names = [stack.fronting.name]
        seen: Counter[int] = Counter()
        for index in stack.sequence:
            seen[index] += 1
            behind = f" x{seen[index]}" if seen[index] > 1 else ""
            names.append(stack.layers[index].name[: _LONGEST_NAME - len(behind)] + behind)
        names.append(stack.backing.name)
        parts: list[dict[str, object]] = [
            {"name": name, "sld": real, "isld": imaginary}
            for name, real, imaginary in zip(names, sld, isld, strict=True)
        ]
        for part, rough in zip(parts[1:], roughness, strict=True):
            part["roughness"] = rough
        for part, thick in zip(parts[1:-1], thickness, strict=True):
            part["thickness"] = thick
        return Stack.model_validate(
            {"fronting": parts[0], "layers": parts[1:-1], "backing": parts[-1], "beam": stack.beam}
        )


def _segment_count(curve: Curve) -> int:
    return 1 if curve.segment is None else int(curve.segment.max()) + 1


def _check_segments(bounds: Mapping[str, Range], count: int, where: str) -> None:
    for name in bounds:
        found = re.fullmatch(r"(?:scale|background)\[([0-9]{1,2})\]", name)
        if found is None or not 2 <= int(found[1]) <= count:
            there = (
                f"scale[2] to background[{count}]" if count > 1 else "none, for the points are one segment"
            )
            raise UserError(where, name, f"parameters of further segments: {there}")


def _of_segments(probe: TrainingProbe, bounds: Mapping[str, Range], where: str) -> dict[str, Range]:
    try:
        return {name: segment_bounds(probe, name, item) for name, item in bounds.items()}
    except ValidationError as error:
        raise first_fault(error, where) from None


def _with_own(
    stack: StackPrior, probe: TrainingProbe, own: Mapping[str, Range], where: str
) -> tuple[StackPrior, TrainingProbe]:
    quantities = {item.name: item for item in stack.quantities() if isinstance(item.bounds, Range)}
    document, instrument = stack.model_dump(), dict[str, Range]()
    for name, bounds in own.items():
        if name in _INSTRUMENT:
            instrument[name] = bounds
        elif name in quantities:
            *path, kind = quantities[name].path
            part: Any = document
            for key in path:
                part = part[key]
            part[kind] = bounds.model_dump()
        else:
            near = difflib.get_close_matches(name, quantities, 3) or list(quantities)[:20]
            allowed = f"a parameter with bounds: {', '.join([*near, *_INSTRUMENT])}"
            raise UserError(where, name, allowed)
    try:
        # Validated anew: an expression may not hold any more.
        changed = StackPrior.model_validate(document)
        seen = TrainingProbe.model_validate(dict(probe) | instrument)
    except ValidationError as error:
        raise first_fault(error, where) from None
    return changed, seen


def _prepare(probe: TrainingProbe, curve: Curve) -> Prepared:
    sigma, notes = given_resolution(probe, curve)
    if curve.dr is None:
        notes.append(Note("NO_ERROR_BARS", "the curve has no dr, so there is no chi-square"))
    points = np.arange(len(curve.q))
    return Prepared(curve.q, curve.r, curve.dr, sigma, points, (*file_notes(curve), *notes))


def _joint(
    cases: Sequence[_Case], measured: Sequence[Measured]
) -> tuple[list[str], list[FreeParameter], list[list[int]]]:
    """Names and parameters of all, and for each curve the places of its own among them."""
    names: list[str] = []
    free: list[FreeParameter] = []
    columns: list[list[int]] = []
    for case, item in zip(cases, measured, strict=True):
        places = []
        for parameter in case.prior.free:
            # Those of further segments are called like "scale[2]".
            alone = parameter.name in item.own or parameter.name.partition("[")[0] in _INSTRUMENT
            name = f"{item.name}: {parameter.name}" if alone and len(cases) > 1 else parameter.name
            if name not in names:
                names.append(name)
                free.append(replace(parameter, name=name))
            places.append(names.index(name))
        columns.append(places)
    return names, free, columns


def _analysis(
    case: _Case,
    places: np.ndarray,
    modes: tuple[Mode, ...],
    posterior: Posterior | None,
    pulse: Pulse,
    *,
    first: bool,
) -> Analysis:
    """One curve's view of the joint answer; what the notes say of the answer itself the first one says."""
    own_modes = tuple(
        Mode(mode.unit[places], mode.chi_square, mode.covariance[np.ix_(places, places)]) for mode in modes
    )
    own = None if posterior is None else replace(posterior, unit=posterior.unit[:, places])
    best = own_modes[0].unit
    analysis = describe(case.prepared, case.target, case.exact, best, "refined", own_modes, own, pulse)
    more = [] if case.prepared.dr is None else list(doubts(case.exact, own_modes[0]))
    runs = _segment_count(case.curve)
    if runs > 1 and not case.segmented and any(note.code == "MODEL_INSUFFICIENT" for note in more):
        message = f"the file has {runs} runs of q, fitted with one scale: `segments` gives each its own"
        more.append(Note("SEGMENTS_TOGETHER", message))
    # Segments have no curve between their points: each has a scale of its own.
    line = None
    if not case.segmented:
        line = drawn_line(case.prior, case.prepared, case.mode, best)
    notes = [note for note in (*analysis.notes, *more) if first or note.code not in OF_THE_ANSWER]
    return replace(analysis, notes=tuple(notes), line=line)
